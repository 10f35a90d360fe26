//! The first payload of a fresh process.

use std::env;
use std::io::{self, Error};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use ropewalk_bench::accumulate::{Message, variant};
use ropewalk_bench::measure::{Contender, in_turn, timed};
use ropewalk_bench::report;
use ropewalk_bench::wire;

use super::{Bar, Tables};

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    const NAMES: [&str; 4] = ["ropewalk", "ropewalk, known size", "Vec, known size", "Vec, read_to_end"];
    for (size, rounds) in [(1 << 20, 30), (16 << 20, 15), (256 << 20, 9)] {
        let fresh = |name: &'static str| move || first_payload(name, size).expect("a fresh process");
        let mut contenders: Vec<Contender<'_>> =
            NAMES.iter().map(|&name| (name.to_owned(), Box::new(fresh(name)) as Box<_>)).collect();
        let timings = in_turn(&mut contenders, tables.rounds(rounds));
        let known = |name: &str| if name == "Vec, known size" { Bar::AtLeast(1.0) } else { Bar::None };
        tables.compare("receive, cold", size, &timings, |name| {
            if size == 256 << 20 { known(name) } else { Bar::None }
        });
    }
    Ok(())
}

/// Sends one payload to a process that has just started; the seconds that it took there.
fn first_payload(name: &str, size: usize) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let child = Command::new(env::current_exe()?)
        .args(["--cold", name, "--size", &size.to_string(), "--port", &port])
        .stdout(Stdio::piped())
        .spawn()?;
    let socket = listener.accept()?.0;
    wire::send(&socket, &wire::pattern(), size)?;
    socket.shutdown(Shutdown::Write)?;
    let output = child.wait_with_output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().map_err(Error::other)
}

/// The process that has just started. Making the pool belongs to what is timed.
pub(super) fn receiver(name: &str) -> io::Result<()> {
    let number =
        |flag| report::value_of(flag).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidInput);
    let (size, port): (usize, usize) = (number("--size")?, number("--port")?);
    let socket = TcpStream::connect(("127.0.0.1", u16::try_from(port).map_err(Error::other)?))?;
    wire::steady(&socket)?;
    let message = Message { size, framed: false };
    let mut result = Ok(());
    let seconds =
        timed(|| result = variant(name).receive(&socket, message, &mut |all| assert_eq!(all.len(), size)));
    println!("{seconds}");
    result
}
