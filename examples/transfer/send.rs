//! `transfer send`: a file to any peer.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use indicatif::ProgressBar;
use nix::poll::{PollFd, PollFlags};
use ropewalk::{Pool, Rope};
use xxhash_rust::xxh3::Xxh3;

use crate::socket::{Socket, wait};
use crate::{advise, progress, wire};

/// How long a raw peer that has all bytes may take to close the connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends a file to `transfer recv`, and succeeds when that has stored all of it.
///
/// The file is read as it is sent, so it may be a pipe, and of any size. If this process dies or cannot
/// read on, the receiver sees that the payload is not complete and discards it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to send; `-` is standard input
    file: PathBuf,
    /// Where a receiver listens, such as 127.0.0.1:7000
    #[arg(long, value_name = "ADDR")]
    to: String,
    /// Send the bytes of the file alone, for a peer such as `nc` or `socat`. Such a peer cannot say that it
    /// has stored them: one that leaves the connection open for a second after the end is believed
    #[arg(long)]
    raw: bool,
    /// Give up when the peer takes no byte, or has not answered, for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    idle: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = open(&args.file).with_context(|| cannot_read(&args.file))?;
    let stream = TcpStream::connect(&args.to).map_err(|error| {
        advise(format_args!("cannot connect to {}", args.to), error, "start a receiver there first")
    })?;
    let mut sending = Sending {
        rope: Rope::in_pool(&Pool::new().context("cannot set memory aside")?),
        socket: Socket::new(stream)?.with_idle(Duration::from_secs(args.idle)),
        hasher: Xxh3::new(),
        sent: 0,
        started: args.raw,
        raw: args.raw,
        bar: progress::bar(file_len(&file)).with_message("sending"),
    };
    while read(&mut sending.rope, &file).with_context(|| cannot_read(&args.file))? > 0 {
        sending.send_piece().map_err(|error| explain(error, sending.sent, args))?;
    }
    sending.end(args)?;
    let (sent, checksum) = (sending.sent, sending.hasher.digest());
    Ok(writeln!(io::stdout(), "{sent} bytes to {}, xxh3 {checksum:016x}", args.to)?)
}

fn open(path: &Path) -> io::Result<File> {
    if path == Path::new("-") {
        return Ok(io::stdin().as_fd().try_clone_to_owned()?.into());
    }
    File::open(path)
}

/// Reads one piece, and waits for it where the file is a non-blocking pipe.
fn read(rope: &mut Rope, file: &File) -> io::Result<usize> {
    loop {
        match rope.readv_up_to(file, wire::PIECE_MAX) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)])?;
            }
            done => return done,
        }
    }
}

fn cannot_read(file: &Path) -> String {
    format!(
        "cannot read {}",
        if file == Path::new("-") { "standard input".into() } else { file.display().to_string() }
    )
}

/// The length of a regular file.
fn file_len(file: &File) -> Option<u64> {
    file.metadata().ok().filter(|file| file.is_file()).map(|file| file.len())
}

fn explain(error: io::Error, sent: u64, args: &Args) -> anyhow::Error {
    let to = &args.to;
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
            anyhow!("{to} closed the connection after {sent} bytes were sent; its own message says why")
        }
        ErrorKind::TimedOut => {
            anyhow!(
                "{to} did nothing for {} s after {sent} bytes were sent; raise --idle to wait longer",
                args.idle
            )
        }
        _ => anyhow!(error).context(format!("cannot send to {to} after {sent} bytes")),
    }
}

struct Sending {
    /// A piece that has been read and not been sent.
    rope: Rope,
    socket: Socket,
    hasher: Xxh3,
    /// Bytes of the payload.
    sent: u64,
    /// Whether the magic has been sent, or is not wanted.
    started: bool,
    raw: bool,
    bar: ProgressBar,
}

impl Sending {
    fn send_piece(&mut self) -> io::Result<()> {
        self.start()?;
        self.rope.chunks().for_each(|chunk| self.hasher.update(chunk));
        let len = self.rope.len() as u64;
        if !self.raw {
            wire::frame(&mut self.rope);
        }
        while !self.rope.is_empty() {
            self.socket.write(|stream| self.rope.writev_to(stream))?;
        }
        self.sent += len;
        self.bar.inc(len);
        Ok(())
    }

    fn start(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.started, true) { Ok(()) } else { self.socket.write_all(wire::MAGIC) }
    }

    fn end(&mut self, args: &Args) -> anyhow::Result<()> {
        if self.raw {
            return self.close().map_err(|error| explain(error, self.sent, args));
        }
        let stored = self.finish().map_err(|error| explain(error, self.sent, args))?;
        ensure!(
            stored == self.sent,
            "{} has stored {stored} of {} bytes; send them again",
            args.to,
            self.sent
        );
        Ok(())
    }

    /// Sends the end marker; returns how many bytes the receiver has stored.
    fn finish(&mut self) -> io::Result<u64> {
        self.start()?;
        self.socket.write_all(&wire::END)?;
        self.socket.read_array().map(u64::from_be_bytes)
    }

    /// Ends a raw stream and waits for the peer to do so, since one that resets it has not taken all.
    fn close(&mut self) -> io::Result<()> {
        let mut stream = self.socket.stream();
        stream.shutdown(Shutdown::Write)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = [0; 4096];
        loop {
            match stream.read(&mut answer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
