//! The gateway in front of a directory, and of a server with the S3 protocol that is slow, full or gone.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::{Gateway, MIB, Mode, Reply, Store, pattern};
use tempfile::TempDir;

const PART: &str = "--part 5MiB";

#[test]
fn a_directory_keeps_objects_of_all_sizes() {
    let directory = TempDir::new().unwrap();
    let gateway = Gateway::start(&format!("file://{}", directory.path().display()), PART, &[]);
    objects_of_all_sizes(&gateway);
    ranges_and_conditions(&gateway);
    encoded_names(&gateway);
    names(&gateway);
    hosts_and_codings(&gateway);
}

#[test]
fn a_server_with_the_s3_protocol_keeps_objects_of_all_sizes() {
    let store = Store::start();
    let gateway = store.gateway(PART);
    objects_of_all_sizes(&gateway);
    ranges_and_conditions(&gateway);
    encoded_names(&gateway);
    assert_eq!(store.uploads(), 0, "each multipart upload was completed");
}

fn objects_of_all_sizes(gateway: &Gateway) {
    for len in [0, 1, 100_000, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 23 * MIB + 7] {
        let content = pattern(len);
        let sized = gateway.ask(&format!("PUT /dir/sized HTTP/1.1\r\nContent-Length: {len}\r\n"), &content);
        assert_eq!(sized.status, 204, "{len}: {sized:?}");
        let chunks: Vec<u8> = content
            .chunks(70_000)
            .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
            .chain(*b"0\r\n\r\n")
            .collect();
        let chunked = gateway.ask("PUT /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", &chunks);
        assert_eq!(chunked.status, 204, "{len}: {chunked:?}");
        for name in ["dir/sized", "chunked"] {
            let got = gateway.get(name, "");
            assert!(got.status == 200 && got.body == content, "{len} {name}: {got:?}");
            let head = gateway.ask(&format!("HEAD /{name} HTTP/1.1\r\n"), b"");
            assert_eq!((head.status, head.field("content-length")), (200, Some(&*len.to_string())));
        }
    }
    assert_eq!(gateway.ask("DELETE /chunked HTTP/1.1\r\n", b"").status, 204);
    for method in ["GET", "HEAD"] {
        assert_eq!(gateway.ask(&format!("{method} /chunked HTTP/1.1\r\n"), b"").status, 404);
    }
    assert_eq!(gateway.ask("POST /chunked HTTP/1.1\r\n", b"").status, 405);
}

fn ranges_and_conditions(gateway: &Gateway) {
    let content = pattern(6 * MIB);
    assert_eq!(gateway.put("object", &content).status, 204);
    let whole = gateway.get("object", "");
    let tag = whole.field("etag").unwrap().to_owned();
    let modified = whole.field("last-modified").unwrap().to_owned();
    assert!(tag.ends_with('"') && whole.field("last-modified").unwrap().ends_with("GMT"));
    let len = content.len();
    for (range, part) in [
        ("0-0", Some(0..1)),
        ("100-199", Some(100..200)),
        ("3000000-", Some(3_000_000..len)),
        ("-7", Some(len - 7..len)),
        ("-99999999", Some(0..len)),
        ("5-99999999", Some(5..len)),
        ("2-18446744073709551615", Some(2..len)),
        ("2-18446744073709551616", Some(2..len)),
        ("-9223372036854775808", Some(0..len)),
        ("-18446744073709551616", Some(0..len)),
        ("1-0", None),
        ("0-1,3-4", None),
        ("+2-+4", None),
        ("-", None),
    ] {
        let got = gateway.get("object", &format!("Range: bytes={range}\r\n"));
        let Some(part) = part else {
            assert!(got.status == 200 && got.body == content, "{range}");
            continue;
        };
        assert_eq!(got.status, 206, "{range}: {got:?}");
        let expected = format!("bytes {}-{}/{len}", part.start, part.end - 1);
        assert_eq!(got.field("content-range"), Some(&*expected), "{range}");
        assert!(got.body == content[part], "{range}");
    }
    let large =
        ["2147483648", "4294967296", "9223372036854775808", "18446744073709551615", "18446744073709551616"];
    for from in large.into_iter().map(|from| format!("{from}-")).chain(["-0".into(), "99999999-".into()]) {
        let beyond = gateway.get("object", &format!("Range: bytes={from}\r\n"));
        let expected = (416, Some(&*format!("bytes */{len}")));
        assert_eq!((beyond.status, beyond.field("content-range")), expected, "{from}");
    }
    for (condition, status) in [
        (format!("If-None-Match: {tag}"), 304),
        ("If-None-Match: \"x\"".into(), 200),
        (format!("If-None-Match: \"\u{fc}\", \"a b\", {tag}"), 304), // tags of others
        (format!("If-Match: \"\u{fc}\", {tag}"), 200),
        (format!("If-Match: {tag}"), 200),
        ("If-Match: \"x\"".into(), 412),
        (format!("Range: bytes=1-2\r\nIf-Range: {tag}"), 206),
        ("Range: bytes=1-2\r\nIf-Range: \"x\"".into(), 200),
        ("Range: bytes=1-2\r\nIf-Range: nonsense".into(), 200),
        (format!("Range: bytes=1-2\r\nIf-Range: {modified}"), 200), // it may have changed twice in that second
        ("Range: bytes=1-2\r\nIf-Range: Thu, 31 Dec 2099 23:59:59 GMT".into(), 200),
        (format!("Range: bytes=1-2\r\nIf-None-Match: {tag}"), 304),
        (format!("Range: bytes=99999999-\r\nIf-None-Match: {tag}"), 304), // before the range
        ("If-None-Match: *".into(), 304),
        (format!("If-Modified-Since: {modified}"), 304),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT".into(), 200),
        ("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT".into(), 412),
        (format!("If-Unmodified-Since: {modified}"), 200),
    ] {
        for method in ["GET", "HEAD"] {
            let status = if method == "HEAD" && status == 206 { 200 } else { status };
            let got = gateway.ask(&format!("{method} /object HTTP/1.1\r\n{condition}\r\n"), b"");
            assert_eq!(got.status, status, "{method} {condition}");
            if status == 304 {
                let announced = got.field("content-length"); // RFC 9110, section 8.6: that of the content
                assert!(
                    [None, Some(&*len.to_string())].contains(&announced),
                    "{method} {condition}: {got:?}"
                );
            }
        }
    }
    let twice = gateway.get("object", "Range: bytes=0-1\r\nRange: bytes=4-5\r\n");
    assert!(twice.status == 200 && twice.body == content, "not a list field: {twice:?}");
    let part = "PUT /object HTTP/1.1\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n";
    assert_eq!(gateway.ask(part, b"01234").status, 400);
    let conditional = "PUT /object HTTP/1.1\r\nIf-None-Match: *\r\nContent-Length: 5\r\n";
    assert_eq!(gateway.ask(conditional, b"01234").status, 501);
    assert_eq!(gateway.ask("DELETE /object HTTP/1.1\r\nIf-Match: \"x\"\r\n", b"").status, 501);
    assert!(gateway.get("object", "").body == content, "it stays");
}

/// None is reserved, and each is the same however it is encoded.
fn encoded_names(gateway: &Gateway) {
    for (name, same) in
        [("metrics", "%6Detrics"), ("a~b", "a%7Eb"), ("n\u{fc}", "n%C3%BC"), ("health", "h%65alth?x")]
    {
        assert_eq!(gateway.put(name, name.as_bytes()).status, 204, "{name}");
        assert!(gateway.get(same, "").body == name.as_bytes(), "{same}");
        assert_eq!(gateway.ask(&format!("DELETE /{same} HTTP/1.1\r\n"), b"").status, 204, "{same}");
        assert_eq!(gateway.get(name, "").status, 404, "{name}");
    }
}

/// RFC 9112, sections 3.2 and 6.1.
fn hosts_and_codings(gateway: &Gateway) {
    assert_eq!(gateway.put("object", b"x").status, 204);
    for (fields, status) in
        [("", 400), ("Host: a\r\nHost: a\r\n", 400), ("Host: a b\r\n", 400), ("Host:\r\n", 200)]
    {
        let request = format!("GET /object HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
        let mut peer = gateway.connect();
        peer.write_all(request.as_bytes()).unwrap();
        assert_eq!(Reply::read(&mut peer).status, status, "{fields}");
    }
    let put = "PUT /object HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n";
    assert_eq!(gateway.ask(put, b"1\r\ny\r\n0\r\n\r\n").status, 501);
    assert!(gateway.get("object", "").body == b"x", "it stays");
}

fn names(gateway: &Gateway) {
    for (name, status) in
        [("", 400), ("../etc/passwd", 400), ("a/%2e%2e/b", 400), ("a%20b", 204), ("a%23b", 204)]
    {
        assert_eq!(gateway.put(name, b"x").status, status, "{name}");
    }
    for (name, status) in [("x".repeat(240), 204), ("x".repeat(241), 400), ("y/".repeat(512) + "y", 400)] {
        assert_eq!(gateway.put(&name, b"x").status, status, "{name}");
    }
    for (method, name) in [("PUT", "a%231"), ("GET", "a%231"), ("HEAD", "b/%2300"), ("DELETE", "a%231")] {
        let head = format!("{method} /{name} HTTP/1.1\r\nContent-Length: 0\r\n");
        assert_eq!(gateway.ask(&head, b"").status, 400, "{method} {name}: of an upload in progress");
    }
    // A file system has one kind of thing at a name; the store has not failed.
    assert_eq!(gateway.put("directory/object", b"x").status, 204);
    for (method, name) in
        [("PUT", "directory"), ("DELETE", "directory"), ("PUT", "directory/object/x"), ("GET", "a%20b/x")]
    {
        let head = format!("{method} /{name} HTTP/1.1\r\nContent-Length: 0\r\n");
        assert_eq!(gateway.ask(&head, b"").status, 409, "{method} {name}");
    }
}

#[test]
fn an_upload_is_many_times_larger_than_the_memory_for_it() {
    let store = Store::start();
    let gateway = store.gateway("--part 5MiB --capacity 20MiB --parallel 2");
    let before = gateway.peak_memory();
    let content = pattern(200 * MIB);
    assert_eq!(gateway.put("large", &content).status, 204);
    let grown = gateway.peak_memory() - before;
    assert!(grown < 60 * MIB, "{} MiB", grown / MIB);
    assert!(gateway.get("large", "").body == content);
}

#[test]
fn a_store_that_is_full_is_507_and_nothing_is_left_behind() {
    let store = Store::start();
    let gateway = store.gateway(PART);
    assert_eq!(gateway.put("before", b"stays").status, 204);
    store.set(Mode::Full);
    assert_eq!(gateway.put("small", b"x").status, 507);
    assert_eq!(gateway.put("large", &pattern(12 * MIB)).status, 507);
    assert_eq!(gateway.get("before", "").body, b"stays"); // reading works
    store.set(Mode::PartsFull);
    assert_eq!(gateway.put("parts", &pattern(12 * MIB)).status, 507);
    store.set(Mode::Usual);
    store.wait_until(|store| store.uploads() == 0); // aborted
    assert_eq!(gateway.get("parts", "").status, 404);
    assert_eq!(gateway.put("parts", &pattern(12 * MIB)).status, 204);
}

#[test]
fn a_store_that_does_not_answer_is_504() {
    let store = Store::start();
    let gateway = store.gateway("--part 5MiB --patience 1");
    assert_eq!(gateway.put("object", b"stays").status, 204);
    store.set(Mode::Silent);
    assert_eq!(gateway.put("small", b"x").status, 504);
    assert_eq!(gateway.put("large", &pattern(12 * MIB)).status, 504);
    assert_eq!(gateway.get("object", "").status, 504);
    store.set(Mode::Usual);
    assert_eq!(gateway.get("object", "").body, b"stays");
}

/// Parts that are stored slowly hold the client up, and not the memory.
#[test]
fn a_store_that_is_slow_slows_the_client_down() {
    let store = Store::start();
    let gateway = store.gateway("--part 5MiB --capacity 15MiB --parallel 2");
    store.set(Mode::Slow(Duration::from_millis(300)));
    let before = gateway.peak_memory();
    let content = pattern(60 * MIB);
    assert_eq!(gateway.put("slow", &content).status, 204);
    assert!(gateway.peak_memory() - before < 60 * MIB);
    store.set(Mode::Usual);
    assert!(gateway.get("slow", "").body == content);
}

/// The size is asked for first, and the range of that version then.
#[test]
fn an_object_that_is_replaced_while_a_range_is_read_is_sent_whole() {
    let directory = TempDir::new().unwrap();
    let gateway = Gateway::start(&format!("file://{}", directory.path().display()), PART, &[]);
    assert_eq!(gateway.put("object", &[0; 1000]).status, 204);
    let is_read = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for version in (0..=255).cycle().take_while(|_| !is_read.load(Ordering::Relaxed)) {
                assert_eq!(gateway.put("object", &[version; 1000]).status, 204);
            }
        });
        let replies: Vec<_> = (0..1000).map(|_| gateway.get("object", "Range: bytes=100-199\r\n")).collect();
        is_read.store(true, Ordering::Relaxed);
        for reply in replies {
            let len = if reply.status == 206 { 100 } else { 1000 };
            assert!(matches!(reply.status, 200 | 206) && reply.body == vec![reply.body[0]; len], "{reply:?}");
        }
    });
}

#[test]
fn a_store_that_is_gone_is_502_until_it_is_back() {
    let store = Store::start();
    let gateway = store.gateway(PART);
    assert_eq!(gateway.put("object", b"stays").status, 204);
    store.set(Mode::Gone);
    assert_eq!(gateway.put("small", b"x").status, 502);
    assert_eq!(gateway.put("large", &pattern(12 * MIB)).status, 502);
    assert_eq!(gateway.get("object", "").status, 502);
    store.set(Mode::Usual);
    assert_eq!(gateway.get("object", "").body, b"stays");
    assert_eq!(gateway.put("large", &pattern(12 * MIB)).status, 204);
}

#[test]
fn a_client_that_disconnects_or_stalls_leaves_no_upload() {
    let store = Store::start();
    let gateway = store.gateway("--part 5MiB --stall 4");
    let head = "PUT /object HTTP/1.1\r\nHost: here\r\nContent-Length: 20000000\r\n\r\n";
    let request = [head.as_bytes(), &pattern(12 * MIB)].concat();
    for gone in [true, false] {
        let mut client = gateway.connect();
        client.write_all(&request).unwrap();
        store.wait_until(|store| store.uploads() == 1);
        if gone {
            drop(client);
        } else {
            let mut answer = [0; 12];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 408");
        }
        store.wait_until(|store| store.uploads() == 0);
    }
    assert_eq!(gateway.get("object", "").status, 404);
}

/// A client that is still sending would get a reset instead of the response, over either version.
#[test]
fn a_refusal_arrives_although_the_body_does_not() {
    let store = Store::start();
    let gateway = store.gateway(PART);
    let body = pattern(16 * MIB);
    let put = "PUT /object HTTP/1.1\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 16777216\r\n";
    for _ in 0..5 {
        assert_eq!(gateway.ask_when_sent(put, &body).status, 400);
    }
    store.set(Mode::Full);
    assert_eq!(gateway.curl_http2(&["-X", "PUT"], &body).unwrap_or("507".into()), "507");
    store.set(Mode::Usual);
    for (method, status) in [("POST", "405"), ("PUT", "400"), ("GET", "404")] {
        let field = if method == "PUT" { "Content-Range: bytes 0-4/5" } else { "Nothing: special" };
        let got = gateway.curl_http2(&["-X", method, "-H", field], &body);
        assert_eq!(got.unwrap_or(status.into()), status, "{method}");
    }
}

#[test]
fn a_part_for_which_there_is_no_room_is_503() {
    let store = Store::start();
    let gateway = store.gateway("--part 5MiB --capacity 5MiB --patience 1 --stall 20");
    let mut other = gateway.connect();
    other.write_all(b"PUT /other HTTP/1.1\r\nHost: here\r\nContent-Length: 5242880\r\n\r\nhalf").unwrap();
    gateway.wait_until(|gateway| gateway.put("object", b"x").status == 503); // once `half` has arrived
    assert_eq!(gateway.put("object", b"x").field("retry-after"), Some("1"));
    drop(other);
    gateway.wait_until(|gateway| gateway.put("object", b"x").status == 204);
    // Short bodies take no more than themselves.
    let mut short = gateway.connect();
    let head = "PUT /short HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n";
    short.write_all(head.as_bytes()).unwrap();
    short.read_exact(&mut [0; 25]).unwrap();
    short.write_all(b"half").unwrap();
    assert_eq!(gateway.put("object", b"x").status, 204);
    let large = format!("PUT /large HTTP/1.1\r\nContent-Length: {}\r\n", 60_000 * MIB);
    assert_eq!(gateway.ask(&large, b"").status, 413);
}

/// A client that announces what it does not send changes no object.
#[test]
fn lengths_that_are_lies_store_nothing() {
    let directory = TempDir::new().unwrap();
    let gateway = Gateway::start(&format!("file://{}", directory.path().display()), PART, &[]);
    assert_eq!(gateway.put("object", b"stays").status, 204);
    for (length, status) in [
        ("18446744073709551616", 400),
        ("18446744073709551615", 431), // hyper's own limit
        ("18446744073709551613", 413),
        ("9223372036854775808", 413),
        ("-1", 400),
        ("+5", 400),
        ("5x", 400),
        ("1, 2", 400),
    ] {
        let head = format!("PUT /object HTTP/1.1\r\nContent-Length: {length}\r\n");
        assert_eq!(gateway.ask(&head, b"12345").status, status, "{length}");
    }
    for head in ["Content-Length: 6", "Transfer-Encoding: chunked"] {
        let mut client = gateway.connect();
        let body = if head.starts_with('C') { "12345" } else { "5\r\n12345\r\n" };
        let request = format!("PUT /object HTTP/1.1\r\nHost: here\r\n{head}\r\n\r\n{body}");
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    }
    assert_eq!(gateway.get("object", "").body, b"stays");
    for options in
        ["--part 0B", "--capacity 0B", "--parallel 0", "--max-connections 0", "--max-connections 65536"]
    {
        let error = Gateway::refusal("file:///tmp", options);
        assert!(error.contains("--") || error.starts_with("gateway: "), "{options}: {error}");
    }
}

/// Each holds one of `--max-connections` until then.
#[test]
fn connections_without_progress_are_closed() {
    let store = TempDir::new().unwrap();
    let url = format!("file://{}", store.path().display());
    let gateway = Gateway::start(&url, "--stall 1", &[]);
    let sockets = gateway.sockets();
    assert_eq!(gateway.put("large", &pattern(64 * MIB)).status, 204);
    // HTTP/2: its preface, and settings with a window of `window` bytes for each response.
    let http2 = |window: u8| {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0", &[window][..]].concat()
    };
    // A GET of /large, with the fields as the static table of HPACK has them, or as literals.
    let get = b"\0\0\x10\x01\x05\0\0\0\x01\x82\x86\x04\x06/large\x01\x04here";
    let peers: [&[u8]; 7] = [
        b"",
        b"PRI * HTTP",
        b"GET /large HTTP/1.1\r\nHost: he",
        b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n",
        &http2(255),
        &[&http2(0), &get[..]].concat(),
        &[&http2(255), &get[..]].concat(),
    ];
    let mut peers = peers.map(|bytes| {
        let mut peer = gateway.connect();
        peer.write_all(bytes).unwrap();
        peer
    });
    assert_eq!(gateway.get("none", "").status, 404); // so all of them are accepted
    gateway.wait_until(|gateway| gateway.sockets() == sockets);
    for peer in &mut peers {
        let mut got = Vec::new();
        let _ = peer.read_to_end(&mut got); // it may be a reset
        assert!(got.len() < 64 * MIB, "{} bytes", got.len());
    }
}

/// As on a file server that is gone: a thread waits for open(2), which nothing interrupts.
#[test]
fn a_file_that_cannot_be_opened_does_not_delay_the_end() {
    let directory = TempDir::new().unwrap();
    assert!(Command::new("mkfifo").arg(directory.path().join("fifo")).status().unwrap().success());
    let mut gateway = Gateway::start(&format!("file://{}", directory.path().display()), "--patience 1", &[]);
    assert_eq!(gateway.get("fifo", "").status, 504);
    gateway.terminate();
    assert!(gateway.wait().success());
}

#[test]
fn requests_in_progress_are_answered_after_sigterm() {
    let directory = TempDir::new().unwrap();
    let mut gateway = Gateway::start(&format!("file://{}", directory.path().display()), PART, &[]);
    let mut client = gateway.connect();
    let head = "PUT /object HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    let mut begun = [0; 25];
    client.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"01234").unwrap();
    gateway.terminate();
    gateway.wait_until(|gateway| !gateway.accepts());
    client.write_all(b"56789").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(gateway.wait().success());
    assert_eq!(fs::read(directory.path().join("object")).unwrap(), b"0123456789");
}

#[test]
fn what_cannot_be_a_store_is_an_error_in_one_line() {
    for (url, options) in [
        ("ftp://x", ""),
        ("file:///proc/none", ""),
        ("file:///tmp", "--part 9GiB --capacity 1MiB"),
        ("s3://", ""),
    ] {
        let line = Gateway::refusal(url, options);
        assert!(line.starts_with("gateway: ") && line.lines().count() == 1, "{line}");
        // Each cause once.
        let causes: Vec<_> = line.trim_end().split(": ").collect();
        assert_ne!(causes.last(), causes.iter().rev().nth(2), "{line}");
    }
    let path = Gateway::refusal("/var/objects", "");
    assert!(path.contains("write it as file:///directory"), "{path}");
}
