//! Counts the system calls of a child, exactly, and the memory that it holds at most: ptrace(2).
//!
//! Memory grows by page faults, of which `MADV_POPULATE_WRITE` counts one a page, and shrinks in a few calls only, so
//! its peak is seen by looking before those. Counted is what is not shared with anybody else: anonymous pages, each
//! once however often it is mapped (Pss), and pages of a memfd, whether mapped or not.

use std::fs;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::MetadataExt;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The peak is looked for whenever the memory may have grown by this part of the payload.
const FINENESS: u64 = 256;

/// The child marks where a round starts and ends by a call that nothing else makes: getppid(2).
const MARK: i64 = libc::SYS_getppid;

/// What was seen of one round.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) syscalls: u64,
    /// Bytes beyond what the child held before its first round.
    pub(super) peak: u64,
}

/// Follows a child that has been told to wait.
pub(super) struct Tracer {
    child: Pid,
    /// Growth that is worth a look.
    fine: u64,
    /// What the child held before its first round.
    base: Option<u64>,
    /// The round that is going on.
    round: Option<Seen>,
    /// The bytes by which its memory may have grown when it was last looked at.
    looked: u64,
    done: Vec<Seen>,
}

impl Tracer {
    pub(super) fn attach(child: u32, size: u64) -> io::Result<Tracer> {
        let child = Pid::from_raw(i32::try_from(child).map_err(Error::other)?);
        ptrace::seize(child, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL)?;
        ptrace::interrupt(child)?;
        waitpid(child, Some(WaitPidFlag::__WALL))?;
        let fine = size / FINENESS;
        let (base, round, done) = (None, None, Vec::new());
        Ok(Tracer { child, fine, base, round, looked: 0, done })
    }

    /// Lets the child run until it exits.
    pub(super) fn follow(mut self) -> io::Result<Vec<Seen>> {
        let mut signal = None;
        loop {
            ptrace::syscall(self.child, signal)?;
            signal = match waitpid(self.child, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceSyscall(_) => self.at_call().map(|()| None)?,
                WaitStatus::Stopped(_, signal) => Some(signal),
                WaitStatus::Exited(_, 0) => return Ok(self.done),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    return Err(Error::other("the receiver failed"));
                }
                _ => None,
            };
        }
    }

    fn at_call(&mut self) -> io::Result<()> {
        let info = ptrace::syscall_info(self.child)?;
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return Ok(());
        }
        // SAFETY: the kernel says that this is an entry.
        let number = unsafe { info.u.entry.nr };
        self.enter(i64::try_from(number).map_err(Error::other)?)
    }

    fn enter(&mut self, call: i64) -> io::Result<()> {
        if call == MARK {
            return self.mark();
        }
        let Some(round) = &mut self.round else { return Ok(()) };
        round.syscalls += 1;
        if may_release(call) && self.grown()? > self.looked + self.fine { self.look() } else { Ok(()) }
    }

    /// A round starts, or the one that is going on ends.
    fn mark(&mut self) -> io::Result<()> {
        if self.round.is_some() {
            self.look()?;
            self.done.extend(self.round.take());
            return Ok(());
        }
        if self.base.is_none() {
            self.base = Some(held(self.child)?);
        }
        self.round = Some(Seen::default());
        self.looked = 0;
        Ok(())
    }

    fn look(&mut self) -> io::Result<()> {
        let peak = held(self.child)?.saturating_sub(self.base.unwrap_or(0));
        self.looked = self.grown()?;
        if let Some(round) = &mut self.round {
            round.peak = round.peak.max(peak);
        }
        Ok(())
    }

    /// The bytes by which the child's memory can have grown since it started.
    fn grown(&self) -> io::Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child))?;
        // The name, in parentheses, may hold spaces; minflt is the eighth field behind it.
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let faults: u64 = behind.split_whitespace().nth(7).and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok(faults * 4096)
    }
}

fn may_release(call: i64) -> bool {
    const CALLS: [i64; 6] = [
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_fallocate,
        libc::SYS_mmap, // over what is there, MAP_FIXED
    ];
    CALLS.contains(&call)
}

/// Bytes that the process holds in anonymous pages and in those of memfds.
fn held(process: Pid) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let kilobytes = |name: &str| -> io::Result<u64> {
        let line = rollup.lines().find(|line| line.starts_with(name));
        let word = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse().ok());
        word.ok_or_else(|| Error::new(ErrorKind::Unsupported, "smaps_rollup is not as in Linux 5.4"))
    };
    let (anonymous, shared) = (kilobytes("Pss_Anon:")? << 10, kilobytes("Pss_Shmem:")? << 10);
    Ok(anonymous + shared.max(in_memfds(process)?))
}

fn in_memfds(process: Pid) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|name| name.starts_with("/memfd:")) {
            bytes += fs::metadata(&path)?.blocks() * 512;
        }
    }
    Ok(bytes)
}
