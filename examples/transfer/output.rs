//! Where `transfer recv` puts a payload: a file, written whole or not at all, a device, or standard output.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{self, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::linkat;
use ropewalk::Rope;
use tempfile::{Builder, TempPath};

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
        let is_file = match fs::metadata(&path) {
            Ok(there) => there.is_file(),
            Err(error) if error.kind() == ErrorKind::NotFound && !names_a_directory(&path) => true,
            // Such as a name that is too long: what the rename would report when all bytes have come.
            Err(error) => return Err(error),
        };
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
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                crate::socket::wait(&mut [nix::poll::PollFd::new(
                    device.as_fd(),
                    nix::poll::PollFlags::POLLOUT,
                )])?
            }
            done => return done,
        }
    }
}

/// Writes a file without a name, and gives it that of `path` when it is on the disk. A signal that would end this
/// process meanwhile is an error, so that the new file does not stay under its temporary name.
fn replace(path: &Path, mut payload: Rope) -> io::Result<()> {
    let signals = Signals::hold()?;
    let mut file = New::beside(path)?;
    while !payload.is_empty() {
        signals.check()?;
        payload.split_to(payload.len().min(PIECE)).write_all_to(&file.file)?;
    }
    file.file.sync_all()?;
    signals.check()?;
    file.name(path)?.persist(path)?;
    // The entry is safe from a power loss before the sender is told that its payload is stored.
    File::open(directory(path))?.sync_all()
}

/// A file that is to replace another one, and is gone if it does not.
struct New {
    file: File,
    /// Where the file system knows no files without a name.
    named: Option<TempPath>,
}

impl New {
    /// SIGKILL leaves nothing of a file without a name.
    fn beside(path: &Path) -> io::Result<New> {
        let permissions = fs::metadata(path).map(|there| there.permissions());
        let permissions = permissions.unwrap_or_else(|_absent| Permissions::from_mode(0o666));
        let unnamed = File::options()
            .write(true)
            .mode(permissions.mode())
            .custom_flags(OFlag::O_TMPFILE.bits())
            .open(directory(path));
        match unnamed.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
            Ok(file) => Ok(New { file, named: None }),
            Err((Some(Errno::EISDIR | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOENT), _)) => {
                let (file, name) =
                    Builder::new().permissions(permissions).tempfile_in(directory(path))?.into_parts();
                Ok(New { file, named: Some(name) })
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Its temporary name, since a link replaces no file and a rename does.
    fn name(&mut self, path: &Path) -> io::Result<TempPath> {
        if let Some(name) = self.named.take() {
            return Ok(name);
        }
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let link =
            |name: &Path| Ok(linkat(AT_FDCWD, file.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)?);
        Ok(Builder::new().make_in(directory(path), link)?.into_temp_path())
    }
}

/// Whether a path ends with a slash, which no file's does.
fn names_a_directory(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// The signals that end this process, held back until this is dropped. The process has one thread.
struct Signals {
    before: SigSet,
    pending: SignalFd,
    /// Of `RLIMIT_FSIZE`: the write fails with EFBIG too, which says more than a death by the signal.
    too_large: SignalFd,
}

impl Signals {
    fn hold() -> io::Result<Signals> {
        let ignored = ignored()?;
        let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
        let held =
            SigSet::from_iter(ending.into_iter().filter(|&signal| ignored >> (signal as i32 - 1) & 1 == 0));
        let pending = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let too_large = SigSet::from(Signal::SIGXFSZ);
        let before =
            SigSet::from_iter(held.iter().chain(&too_large)).thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let too_large = SignalFd::with_flags(&too_large, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { before, pending, too_large })
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
        let _ = self.too_large.read_signal();
        // One that has arrived since the last check ends the process here.
        let _ = self.before.thread_set_mask();
    }
}
