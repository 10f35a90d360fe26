//! Whether a payload for another process is copied into the message or its memfd passed beside it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ropewalk::{Rope, Sealed};
use ropewalk_bench::measure::timed;

use super::{Tables, Trial, Unit, doubling};

/// Payloads per round.
const TOTAL: usize = 500;

/// Both sides, until the receiver has read each byte once, and dropped it.
pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    let (here, there) = &UnixStream::pair()?;
    let payload = vec![7; 128 << 10];
    let sealed: Vec<Sealed> =
        doubling(1 << 10, 64 << 10).map(|len| Sealed::copy_of(&payload[..len])).collect::<io::Result<_>>()?;
    let trial = |sealed: &Sealed, way: Way| {
        timed(|| (0..TOTAL).for_each(|_| read(&way(here, there, sealed).expect("there is room for it"))))
    };
    let trials = sealed.iter().flat_map(|sealed| {
        let each = |name, way| Trial::new(sealed.len(), name, move || trial(sealed, way));
        [each("passed", passed as Way), each("copied", copied as Way)]
    });
    tables.weigh("handover", Unit::each(TOTAL), 31, trials.collect());
    Ok(())
}

type Way = fn(&UnixStream, &UnixStream, &Sealed) -> io::Result<Sealed>;

fn passed(here: &UnixStream, there: &UnixStream, sealed: &Sealed) -> io::Result<Sealed> {
    Rope::from("header").sendmsg_to(here, 0, &[sealed.as_fd()])?;
    let received = Rope::new().recvmsg_from(there, 0)?;
    Sealed::from_fd(received.fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?)
}

fn copied(here: &UnixStream, there: &UnixStream, sealed: &Sealed) -> io::Result<Sealed> {
    let mut message = Rope::from("header");
    message.push(sealed.clone());
    message.write_all_to(here)?;
    let mut bytes = vec![0; "header".len() + sealed.len()];
    io::Read::read_exact(&mut &*there, &mut bytes)?;
    Sealed::copy_of(&bytes["header".len()..])
}

fn read(bytes: &[u8]) {
    std::hint::black_box(bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
}
