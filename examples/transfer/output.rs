//! Where `transfer recv` puts a payload: a file, written whole or not at all, a device, or standard output.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{self, Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ropewalk::Rope;
use tempfile::{Builder, NamedTempFile};

use crate::advise;

/// Bytes written to a file between two looks at the signals.
const PIECE: usize = 8 << 20;

pub(crate) struct Output {
    path: PathBuf,
    /// A device or a pipe is written to; a file is replaced when the new one is complete.
    device: Option<File>,
}

impl Output {
    /// Finds out, before anything is received, whether there is a way to write there.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Output> {
        Self::open(path).map_err(|error| {
            advise(format_args!("cannot write to {}", path.display()), error, "choose another --output")
        })
    }

    fn open(path: &Path) -> io::Result<Output> {
        if path == Path::new("-") {
            let device = Some(File::from(io::stdout().as_fd().try_clone_to_owned()?));
            return Ok(Output { path: "standard output".into(), device });
        }
        let path = fs::canonicalize(path).or_else(|_absent| path::absolute(path))?;
        let is_file = fs::metadata(&path).map_or(true, |there| there.is_file());
        if is_file {
            tempfile::tempfile_in(directory(&path))?;
        }
        let device = if is_file { None } else { Some(File::options().write(true).open(&path)?) };
        Ok(Output { path, device })
    }

    pub(crate) fn write(&self, payload: Rope) -> anyhow::Result<()> {
        let len = payload.len();
        let put = match &self.device {
            Some(device) => write_all(payload, device),
            None => replace(&self.path, payload),
        };
        put.map_err(|error| {
            let what = format!("cannot write {len} bytes to {}", self.path.display());
            advise(what, error, "make room there or choose another --output")
        })
    }
}

/// A pipe from elsewhere may be non-blocking.
fn write_all(mut payload: Rope, device: &File) -> io::Result<()> {
    loop {
        match payload.write_all_to(device) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                crate::socket::wait(&mut [nix::poll::PollFd::new(
                    device.as_fd(),
                    nix::poll::PollFlags::POLLOUT,
                )])?
            }
            done => return done,
        }
    }
}

/// Writes a file beside the one at `path` and renames it. A signal that would end this process meanwhile
/// is an error, so that the new file does not stay under its temporary name.
fn replace(path: &Path, mut payload: Rope) -> io::Result<()> {
    let signals = Signals::hold()?;
    let file = beside(path)?;
    while !payload.is_empty() {
        signals.check()?;
        payload.split_to(payload.len().min(PIECE)).write_all_to(&file)?;
    }
    file.as_file().sync_all()?;
    signals.check()?;
    file.persist(path)?;
    Ok(())
}

/// A file that is to replace the one at `path`, and is gone if it does not.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let permissions = fs::metadata(path).map(|there| there.permissions());
    let permissions = permissions.unwrap_or_else(|_absent| Permissions::from_mode(0o666));
    Builder::new().permissions(permissions).tempfile_in(directory(path))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// The signals that end this process, held back until this is dropped. The process has one thread.
struct Signals {
    before: SigSet,
    pending: SignalFd,
}

impl Signals {
    fn hold() -> io::Result<Signals> {
        let ignored = ignored()?;
        let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
        let held =
            SigSet::from_iter(ending.into_iter().filter(|&signal| ignored >> (signal as i32 - 1) & 1 == 0));
        let pending = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Signals { before, pending })
    }

    /// Fails if one of them has arrived.
    fn check(&self) -> io::Result<()> {
        let Some(signal) = self.pending.read_signal()? else { return Ok(()) };
        let signal = i32::try_from(signal.ssi_signo).ok().and_then(|signal| Signal::try_from(signal).ok());
        Err(io::Error::other(format!("interrupted by {}", signal.map_or("a signal", Signal::as_str))))
    }
}

/// The signals that this process ignores, as under nohup(1): bit 0 is signal 1. One that is held back would
/// arrive all the same.
fn ignored() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.ok_or_else(|| io::Error::other("no SigIgn in /proc/self/status"))
}

impl Drop for Signals {
    fn drop(&mut self) {
        // One that has arrived since the last check ends the process here.
        let _ = self.before.thread_set_mask();
    }
}
