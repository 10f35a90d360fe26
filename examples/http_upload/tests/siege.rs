//! The server besieged by 190 hostile peers while ten others are served.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../recipes/tests/support/siege.rs"]
mod siege;

use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};

use siege::{Server, pattern};

const MAX: usize = 1 << 20;

/// The status and the body of the answer.
fn ask(address: SocketAddr, head: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(siege::PATIENCE))?;
    let length = body.len();
    let head =
        format!("{head} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end =
        answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    Ok((status, answer.split_off(end + 4)))
}

#[test]
fn others_are_served() {
    let options = format!("127.0.0.1:0 {MAX} 64MiB --max-connections 60 --idle 1 --stall 1 --patience 1");
    let server = Server::start(env!("CARGO_BIN_EXE_http_upload"), 80, &options);
    let put = |fields: &str, content: usize| {
        let head = format!("PUT /hostile HTTP/1.1\r\nHost: here\r\n{fields}\r\n\r\n");
        [head.as_bytes(), &pattern(9, content)].concat()
    };
    let openings = [
        vec![],
        b"PUT /ho".to_vec(),
        b"PUT /hostile HTTP/1.1\r\nHost: he".to_vec(),
        pattern(9, 100_000),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        put("Content-Length: 0", 0),
        put(&format!("Content-Length: {MAX}"), 0),
        put(&format!("Content-Length: {MAX}"), MAX / 2),
        put("Content-Length: 9223372036854775808", 10),
        put("Content-Length: 18446744073709551616", 10),
        put("Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF", 1000),
        put("Transfer-Encoding: chunked\r\n\r\n100000", MAX / 2),
        b"GET /0 HTTP/1.1\r\nHost: here\r\n\r\n".repeat(1000),
    ];
    server.besiege(&openings, |address, seed| {
        let content = pattern(seed, 300_000 + seed as usize);
        let (stored, why) = ask(address, &format!("PUT /{seed}"), &content)?;
        if ![200, 201].contains(&stored) {
            return Err(Error::other(String::from_utf8_lossy(&why)));
        }
        let (status, got) = ask(address, &format!("GET /{seed}"), b"")?;
        if status != 200 || got.len() < content.len() {
            return Err(Error::other(format!("{status} with {} bytes", got.len())));
        }
        assert!(got == content);
        Ok(())
    });
    assert!(server.peak() <= 300 << 10, "{} KiB", server.peak());
}
