//! Each server of the guide, as a program with few descriptors, besieged by 190 hostile peers while ten others are
//! served.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "support/siege.rs"]
mod siege;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use siege::{Server, exchange, pattern};
use socket2::SockRef;

const MAX: usize = 1 << 20;

fn serve(recipe: &str) -> Server {
    let options = format!("{recipe} --connections 60 --max {MAX} --time 1");
    Server::start(env!("CARGO_BIN_EXE_serve"), 50, &options)
}

/// Whatever comes until the end of the stream comes back.
fn besiege_until_the_end(recipe: &str, peak: u64) {
    let server = serve(recipe);
    let openings = [0, 1, 100_000, MAX + 1].map(|len| pattern(9, len));
    server.besiege(&openings, |address, seed| {
        let content = pattern(seed, 300_000 * seed as usize % (MAX + 1));
        exchange(address, &content, &content)
    });
    assert!(server.peak() <= peak << 10, "{} KiB", server.peak());
}

#[test]
fn receive() {
    besiege_until_the_end("receive", 200);
}

#[test]
fn spill() {
    besiege_until_the_end("spill", 200);
}

/// Sockets do not take the descriptors that whole uploads need to become files.
#[test]
fn more_uploads_than_descriptors_are_stored() {
    let server = Server::start(env!("CARGO_BIN_EXE_serve"), 50, "spill --connections 60 --time 60");
    let peers: Vec<_> = (0..60).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for mut peer in &peers {
        peer.write_all(b"all of it").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
    }
    for (number, mut peer) in peers.iter().enumerate() {
        let mut answer = Vec::new();
        peer.set_read_timeout(Some(siege::PATIENCE)).unwrap();
        let answered = peer.read_to_end(&mut answer);
        assert!(answered.is_ok() && answer == b"all of it", "upload {number}: {answered:?}, {answer:?}");
    }
}

#[test]
fn echo() {
    besiege_until_the_end("echo", 200);
}

#[test]
fn stream() {
    besiege_until_the_end("stream", 200);
}

#[test]
fn body() {
    let server = serve("body");
    let announce = |len: u64, content: usize| [&len.to_be_bytes()[..], &pattern(9, content)].concat();
    let openings = [
        vec![],
        vec![0; 3],
        announce(0, 0),
        announce(0, 100_000),
        announce(MAX as u64, 0),
        announce(MAX as u64, MAX / 2),
        announce(MAX as u64, MAX),
        announce(1 << 31, 100_000),
        announce(1 << 63, 1),
        announce(u64::MAX, 1),
    ];
    server.besiege(&openings, |address, seed| {
        let content = pattern(seed, 300_000 * seed as usize % (MAX + 1));
        exchange(address, &[&(content.len() as u64).to_be_bytes()[..], &content].concat(), &content)
    });
    assert!(server.peak() <= 200 << 10, "{} KiB", server.peak());
}

fn frame(len: u32, content: usize) -> Vec<u8> {
    [&len.to_be_bytes()[..], &pattern(9, content)].concat()
}

fn besiege_frames(recipe: &str) {
    let server = serve(recipe);
    let openings = [
        vec![],
        vec![0; 2],
        vec![0; 10_000],
        frame(MAX as u32, 0),
        frame(MAX as u32, MAX / 2),
        frame(100_000, 100_000),
        frame(1, 1).repeat(1000),
        frame(1 << 31, 10),
        frame(u32::MAX, 10),
    ];
    server.besiege(&openings, |address, seed| {
        let lens = [0, 1, 5, 300, 70_000, 300_000, 0, 17];
        let frames: Vec<u8> = lens
            .iter()
            .flat_map(|&len| [&(len as u32).to_be_bytes()[..], &pattern(seed, len)].concat())
            .collect();
        exchange(address, &frames, &frames)
    });
    assert!(server.peak() <= 200 << 10, "{} KiB", server.peak());
}

#[test]
fn frames() {
    besiege_frames("frames");
}

#[test]
fn framed() {
    besiege_frames("framed");
}

#[test]
fn broadcast() {
    let server = Server::start(
        env!("CARGO_BIN_EXE_serve"),
        50,
        &format!("broadcast --connections 60 --max {} --time 1", 8 * MAX),
    );
    let content: Vec<u8> = (0..8 * MAX).map(|at| (at % 251) as u8).collect();
    server.besiege(&[vec![], vec![7; 100_000]], |address, _| exchange(address, b"", &content));
    assert!(server.peak() <= 100 << 10, "{} KiB", server.peak());
}

/// Sends back what comes, if it begins as it should; else does harm, each time in another way.
fn behind(mut peer: TcpStream, number: usize) -> std::io::Result<()> {
    let mut head = [0; 8];
    peer.set_read_timeout(Some(Duration::from_secs(1)))?;
    let honest = peer.read_exact(&mut head).is_ok() && &head == b"honestly";
    peer.set_read_timeout(Some(siege::PATIENCE))?;
    match (honest, number % 3) {
        (true, _) => {
            peer.write_all(&head)?;
            std::io::copy(&mut peer.try_clone()?, &mut peer)?;
            peer.shutdown(Shutdown::Write)
        }
        (_, 0) => SockRef::from(&peer).set_linger(Some(Duration::ZERO)),
        (_, 1) => {
            peer.set_write_timeout(Some(Duration::from_secs(5))).and_then(|()| peer.write_all(&[7; 4 << 20]))
        }
        _ => {
            thread::sleep(Duration::from_secs(2));
            Ok(())
        }
    }
}

#[test]
fn proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, peer) in listener.incoming().enumerate() {
            thread::spawn(move || behind(peer?, number));
        }
    });
    let server = Server::start(env!("CARGO_BIN_EXE_proxy"), 80, &format!("--to {to} --idle 1"));
    let openings = [0, 1, 100_000, 4 << 20].map(|len| pattern(9, len));
    server.besiege(&openings, |address, seed| {
        let content = [b"honestly", &pattern(seed, 3_000_000)[..]].concat();
        exchange(address, &content, &content)
    });
    assert!(server.peak() <= 200 << 10, "{} KiB", server.peak());
}
