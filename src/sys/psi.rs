//! Notifications of memory pressure, as systemd hands them out: <https://systemd.io/MEMORY_PRESSURE/>.
//!
//! `MEMORY_PRESSURE_WATCH` names a file, FIFO or socket, and `MEMORY_PRESSURE_WRITE` what is written to it once, in
//! base64. Without these the process watches the pressure of its own control group (version 2), or else of the machine.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use super::retry;

/// Notifies when tasks have waited for memory for 200 ms within 2 s. Any process may ask for that, since the window is
/// a multiple of 2 s. The kernel takes the last byte for the end of the text.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// A descriptor that becomes ready when memory is short.
#[derive(Debug)]
pub(crate) struct PressureWatch {
    fd: OwnedFd,
    /// Whether each notification is a byte to be read; if not, poll(2) takes it.
    is_stream: bool,
}

impl PressureWatch {
    /// Opens what the environment names; `None` if it says that nothing is to be watched.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a `MEMORY_PRESSURE_WRITE` that is not base64; whatever open(2), connect(2) and write(2)
    /// report, such as EOPNOTSUPP from a kernel without PSI.
    pub(crate) fn from_env() -> io::Result<Option<PressureWatch>> {
        let (watch, write) = (env::var_os("MEMORY_PRESSURE_WATCH"), env::var_os("MEMORY_PRESSURE_WRITE"));
        match watch {
            Some(path) if path == "/dev/null" => Ok(None),
            Some(path) => {
                let write = write.as_deref().map(OsStr::as_bytes).unwrap_or_default();
                PressureWatch::open(Path::new(&path), &decode_base64(write)?).map(Some)
            }
            None => PressureWatch::open(&default_path()?, TRIGGER).map(Some),
        }
    }

    /// open(2) or connect(2), then write(2) of the trigger.
    ///
    /// A FIFO is opened for writing too, so that it does not hang up when its last writer leaves; it has one direction,
    /// and the trigger is not written to it.
    fn open(path: &Path, trigger: &[u8]) -> io::Result<PressureWatch> {
        let kind = fs::metadata(path)?.file_type();
        if kind.is_socket() {
            let mut socket = UnixStream::connect(path)?;
            socket.write_all(trigger)?;
            socket.set_nonblocking(true)?;
            return Ok(PressureWatch { fd: socket.into(), is_stream: true });
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        let is_stream = kind.is_fifo();
        if !is_stream && !trigger.is_empty() {
            // In one call: the kernel takes each for a trigger.
            let _all = file.write(trigger)?;
        }
        Ok(PressureWatch { fd: file.into(), is_stream })
    }

    /// poll(2): waits for a notification, or until `timeout` has passed; returns whether one came.
    ///
    /// # Errors
    ///
    /// When no more will come.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let interest = if self.is_stream { PollFlags::POLLIN } else { PollFlags::POLLPRI };
        let mut polled = [PollFd::new(self.fd.as_fd(), interest)];
        // Rounded up, so that nothing is waited for in a loop.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        if retry(|| poll(&mut polled, timeout))? == 0 {
            return Ok(false);
        }
        let ended = if self.is_stream {
            self.clear()?
        } else {
            polled[0].revents().is_some_and(|ready| ready.contains(PollFlags::POLLERR))
        };
        if ended { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(true) }
    }

    /// read(2) until there is nothing more: takes the notifications that have come; returns whether the socket was closed.
    fn clear(&self) -> io::Result<bool> {
        loop {
            match retry(|| read(&self.fd, &mut [0; 512])) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// `memory.pressure` of this process's control group, if there is one.
fn default_path() -> io::Result<PathBuf> {
    let own = super::pressure::own_group()?.map(|group| group.join("memory.pressure"));
    Ok(own.filter(|path| path.exists()).unwrap_or_else(|| "/proc/pressure/memory".into()))
}

/// Base64 as of RFC 4648, section 4, with or without padding.
fn decode_base64(text: &[u8]) -> io::Result<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for letter in text.trim_ascii().iter().take_while(|&&letter| letter != b'=') {
        let Some(value) = (0u32..).zip(ALPHABET).find(|(_, known)| *known == letter).map(|(value, _)| value)
        else {
            let message = format!("MEMORY_PRESSURE_WRITE: {:?} is not base64", char::from(*letter));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        (bits, count) = (bits << 6 | value, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap_or(0));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn is_notified(watch: &PressureWatch) -> bool {
        watch.wait(Duration::ZERO).expect("more may come")
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg", "foob"),
            ("c29tZSAyMDAwMDAgMjAwMDAwMAA=\n", "some 200000 2000000\0"),
        ] {
            assert_eq!(decode_base64(text.as_bytes()).expect(text), bytes.as_bytes());
        }
        assert_eq!(decode_base64(&[b'/'; 4]).expect("letters"), [255; 3]);
        assert_eq!(decode_base64(b"Zm-v").expect_err("no letter").kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs a FIFO")]
    fn a_fifo_notifies_and_does_not_hang_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let watch = PressureWatch::open(&path, TRIGGER).expect("opened");
        assert!(!is_notified(&watch), "not by its own trigger");
        for _ in 0..2 {
            fs::write(&path, [1; 1000]).expect("written");
            assert!(is_notified(&watch));
            assert!(!is_notified(&watch), "nor when the writer leaves");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets")]
    fn a_socket_gets_the_trigger_and_notifies() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        let watch = PressureWatch::open(&path, b"trigger").expect("connected");
        let (mut peer, _) = listener.accept().expect("accepted");
        let mut trigger = [0; 7];
        peer.read_exact(&mut trigger).expect("read");
        assert_eq!(&trigger, b"trigger");
        assert!(!is_notified(&watch));
        peer.write_all(b"!").expect("written");
        assert!(is_notified(&watch) && !is_notified(&watch));
        drop(peer);
        watch.wait(Duration::ZERO).expect_err("nothing more will come");
    }

    /// The kernel's own file takes the trigger and is quiet as long as memory is not short.
    #[test]
    #[cfg_attr(miri, ignore = "needs files")]
    fn a_psi_file_takes_the_trigger() {
        let path = default_path().expect("descriptors");
        if !path.exists() {
            return println!("skipped: this kernel has no PSI");
        }
        let watch = match PressureWatch::open(&path, TRIGGER) {
            Ok(watch) => watch,
            Err(error) => return println!("skipped: {} takes no trigger: {error}", path.display()),
        };
        watch.wait(Duration::ZERO).expect("more may come");
        let refused = PressureWatch::open(&path, b"some 1 2\0").expect_err("no such window");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }

    /// A control group that is removed notifies no more.
    #[test]
    #[cfg_attr(miri, ignore = "needs control groups")]
    fn a_group_that_is_gone_says_so() {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let group = format!("ropewalk-psi-{}", std::process::id());
        let v2 = roots.iter().find(|root| root.join("cgroup.controllers").exists());
        let Some(group) = v2.map(|root| root.join(group)).filter(|group| fs::create_dir(group).is_ok())
        else {
            return println!("skipped: no control group may be made here");
        };
        let watch = PressureWatch::open(&group.join("memory.pressure"), TRIGGER);
        fs::remove_dir(&group).expect("removed");
        match watch {
            Ok(watch) => drop(watch.wait(Duration::ZERO).expect_err("the group is gone")),
            Err(error) => println!("skipped: {error}"),
        }
    }
}
