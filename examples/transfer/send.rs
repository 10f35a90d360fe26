//! `transfer send`: a file to any peer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use ropewalk::{Pool, Rope};
use xxhash_rust::xxh3::Xxh3;

use crate::socket::Socket;
use crate::{advise, progress};

/// How long a peer that has all bytes may take to close the connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends a file to any peer and closes the connection.
///
/// The file is read as it is sent, so it may be a pipe, and of any size. A peer that does not want all
/// of it resets the connection; one that leaves it open for a second afterwards is believed to have it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to send
    file: PathBuf,
    /// Where a receiver listens, such as 127.0.0.1:7000
    #[arg(long, value_name = "ADDR")]
    to: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = File::open(&args.file).with_context(|| cannot_read(&args.file))?;
    let stream = TcpStream::connect(&args.to).map_err(|error| {
        advise(format_args!("cannot connect to {}", args.to), error, "start a receiver there first")
    })?;
    let mut sending = Sending {
        rope: Rope::in_pool(&Pool::new().context("cannot set memory aside")?),
        socket: Socket::new(stream)?,
        hasher: Xxh3::new(),
        sent: 0,
        bar: progress::bar(file_len(&file)).with_message("sending"),
    };
    while sending.rope.readv_from(&file).with_context(|| cannot_read(&args.file))? > 0 {
        sending.send_rope().map_err(|error| explain(error, &sending, &args.to))?;
    }
    sending.close().map_err(|error| explain(error, &sending, &args.to))?;
    let (sent, checksum) = (sending.sent, sending.hasher.digest());
    Ok(writeln!(io::stdout(), "{sent} bytes to {}, xxh3 {checksum:016x}", args.to)?)
}

fn cannot_read(file: &Path) -> String {
    format!("cannot read {}", file.display())
}

/// The length of a regular file.
fn file_len(file: &File) -> Option<u64> {
    file.metadata().ok().filter(|file| file.is_file()).map(|file| file.len())
}

fn explain(error: io::Error, sending: &Sending, to: &str) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            anyhow!(
                "{to} closed the connection after {} bytes were sent; its own message says why",
                sending.sent
            )
        }
        _ => anyhow!(error).context(format!("cannot send to {to} after {} bytes", sending.sent)),
    }
}

struct Sending {
    /// What has been read and not been sent.
    rope: Rope,
    socket: Socket,
    hasher: Xxh3,
    sent: u64,
    bar: ProgressBar,
}

impl Sending {
    fn send_rope(&mut self) -> io::Result<()> {
        self.rope.chunks().for_each(|chunk| self.hasher.update(chunk));
        while !self.rope.is_empty() {
            let sent = self.socket.write(|stream| self.rope.writev_to(stream))? as u64;
            self.sent += sent;
            self.bar.inc(sent);
        }
        Ok(())
    }

    /// Ends the stream and waits for the peer to do so, since one that resets it has not taken all.
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
