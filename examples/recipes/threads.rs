//! A server on blocking sockets.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// Serves for ever, one connection on each of `threads` threads; further ones wait in the listen backlog.
pub fn serve(
    listener: &TcpListener,
    threads: NonZero<u16>,
    service: impl Fn(&TcpStream) -> io::Result<()> + Sync,
) {
    // accept(2) takes a descriptor before it waits: one thread waits, else the others would have none to open a file.
    let listener = Mutex::new(listener);
    let serve_one_by_one = || {
        loop {
            let accepted = listener.lock().unwrap_or_else(PoisonError::into_inner).accept();
            match accepted {
                Ok((socket, _peer)) => {
                    // An error is the peer's: log it. Without a reset half of an answer would end as a whole one does.
                    if service(&socket).is_err() {
                        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                    }
                }
                Err(_no_descriptors_left) => thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(serve_one_by_one);
        }
    });
}
