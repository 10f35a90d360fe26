//! What several test files need.

use std::env;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use ropewalk::{Pool, Rope};

/// Names the test that a child process is to run.
const CHILD: &str = "ROPEWALK_TEST_IN_CHILD";

/// Bytes in which every position differs from its neighbours and no page repeats; another `seed` makes
/// others.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let at = |i: u64| (i.wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    (0..len as u64).map(at).collect()
}

/// Runs `body`, the body of the test `name`, in a process of its own: the limits that it sets affect
/// no other test, and a signal or an abort is seen here.
pub(crate) fn in_child(name: &str, body: impl FnOnce()) {
    if env::var(CHILD).is_ok_and(|child| child == name) {
        return body();
    }
    let mut child = Command::new(env::current_exe().unwrap());
    let output = child.args([name, "--exact", "--nocapture"]).env(CHILD, name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{}\n{said}", output.status);
    said.lines().filter(|line| line.starts_with("skipped")).for_each(|line| println!("{line}"));
}

/// Bytes in the line of a file of procfs that begins with `name`, a colon included.
pub(crate) fn bytes_in(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A pair of connected sockets, both non-blocking.
pub(crate) fn pair() -> (UnixStream, UnixStream) {
    let (one, other) = UnixStream::pair().unwrap();
    one.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    (one, other)
}

/// A rope that has received `payload` into `pool`, all of it.
pub(crate) fn received(pool: &Pool, payload: &[u8]) -> Rope {
    let mut rope = Rope::in_pool(pool);
    receive_all(&mut rope, payload);
    rope
}

/// Sends `payload` to itself; all of it arrives in `rope`.
pub(crate) fn receive_all(rope: &mut Rope, payload: &[u8]) {
    let (got, error) = receive(rope, payload);
    assert_eq!((got, error.map(|error| error.to_string())), (payload.len(), None));
}

/// Sends `payload` to itself until all of it has arrived in `rope` or that is refused; returns how much
/// has arrived.
pub(crate) fn receive(rope: &mut Rope, payload: &[u8]) -> (usize, Option<std::io::Error>) {
    use std::io::{ErrorKind, Write};
    let (mut peer, socket) = pair();
    let (mut sent, mut got) = (0, 0);
    while got < payload.len() {
        if let Ok(count) = peer.write(&payload[sent..]) {
            sent += count;
        }
        match rope.readv_from(&socket) {
            Ok(count) => got += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return (got, Some(error)),
        }
    }
    (got, None)
}
