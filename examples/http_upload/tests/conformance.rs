//! What RFC 9110 says of the methods and fields that the server knows, on a raw socket. No client
//! corrects a request or hides a response here.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use support::{MIB, Reply, Server, etag, finish_sending, hash, pattern, request, text};

const TEN: &[u8] = b"0123456789";

#[test]
fn put_creates_and_replaces() {
    let server = Server::start("");
    let created = server.put("file", TEN);
    assert_eq!((created.status, created.field("etag")), (201, Some(&*etag(TEN))));
    let replaced = server.put("file", b"other");
    assert_eq!((replaced.status, replaced.field("etag")), (200, Some(&*etag(b"other"))));
    let got = server.get("file", "");
    assert_eq!((got.status, &*got.body), (200, &b"other"[..]));
    assert_eq!(got.field("etag"), Some(&*etag(b"other")));
    assert_eq!(got.field("content-length"), Some("5"));
    assert_eq!(got.field("accept-ranges"), Some("bytes"));
    assert!(got.field("last-modified").unwrap().ends_with("GMT"));
}

#[test]
fn content_of_all_sizes_and_framings() {
    let server = Server::start("");
    for len in [0, 1, 100_000, 5 * MIB + 3] {
        let content = pattern(len);
        server.put("sized", &content);
        let chunks: Vec<u8> = content
            .chunks(70_000)
            .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
            .chain(*b"0\r\n\r\n")
            .collect();
        let reply = server.ask("PUT /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", &chunks);
        assert_eq!((reply.status / 100, reply.text().trim()), (2, &*hash(&content)));
        for name in ["sized", "chunked"] {
            let got = server.get(name, "");
            assert!(got.status == 200 && got.body == content, "{len} {name}: {got:?}");
        }
    }
}

#[test]
fn methods() {
    let server = Server::start("");
    server.put("file", TEN);
    let head = server.ask("HEAD /file HTTP/1.1\r\n", b"");
    assert_eq!((head.status, head.field("content-length"), head.body.len()), (200, Some("10"), 0));
    let options = server.ask("OPTIONS /file HTTP/1.1\r\n", b"");
    assert_eq!(options.status, 204);
    let all = server.ask("OPTIONS * HTTP/1.1\r\n", b"");
    assert_eq!((all.status, all.field("allow")), (204, options.field("allow")));
    for method in ["BREW", "get", "Get", "put"] {
        assert_eq!(server.ask(&format!("{method} /file HTTP/1.1\r\n"), b"").status, 501, "{method}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(server.ask(&format!("{method} * HTTP/1.1\r\n"), b"").status, 400, "{method} *");
    }
    for method in ["POST", "PATCH", "TRACE"] {
        let refused = server.ask(&format!("{method} /file HTTP/1.1\r\n"), b"");
        assert_eq!(refused.status, 405, "{method}");
        let allowed: Vec<_> = refused.field("allow").unwrap().split(',').map(str::trim).collect();
        for allow in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            assert!(allowed.contains(&allow), "{allow} in {allowed:?}");
        }
        assert!(options.field("allow").unwrap().contains("DELETE"));
    }
    let metrics = server.ask("PUT /metrics HTTP/1.1\r\nContent-Length: 0\r\n", b"");
    assert_eq!((metrics.status, metrics.field("allow")), (405, Some("GET,HEAD")));
    assert_eq!(server.ask("DELETE /file HTTP/1.1\r\n", b"").status, 204);
    for method in ["GET", "HEAD", "DELETE"] {
        assert_eq!(server.ask(&format!("{method} /file HTTP/1.1\r\n"), b"").status, 404, "{method}");
    }
}

/// RFC 9110, section 4.2.3: targets that are equivalent name one object.
#[test]
fn a_name_is_the_same_however_it_is_encoded() {
    let server = Server::start("");
    server.put("n\u{fc}/a%20file", TEN); // as curl sends it
    for name in ["n%C3%BC/a%20file", "n%c3%bc/a%20file", "%6E\u{fc}/%61%20file", "n\u{fc}/a%20file?query"] {
        assert_eq!(server.get(name, "").body, TEN, "{name}");
    }
    for name in ["N%C3%BC/a%20file", "n%FC/a%20file", "n%C3%BC/a%2520file"] {
        assert_ne!(server.get(name, "").status, 200, "{name}");
    }
    for name in ["../file", "a/../../file", "a/%2e%2E/file", ".", "a/./b", "%00", "%FF", "%C3"] {
        assert_eq!(server.try_put(name, TEN).status, 400, "{name}");
    }
    for name in ["%", "%zz", "...", ".file", "a//b", ""] {
        server.put(name, name.as_bytes());
        assert_eq!(server.get(name, "").text(), name);
    }
    assert_eq!(server.try_put(&"x".repeat(70_000), TEN).status, 431);
}

/// The name that is not an object's is that of the metrics, however it is encoded.
#[test]
fn metrics_are_reserved_however_they_are_encoded() {
    let server = Server::start("");
    for name in ["metrics", "%6Detrics", "%6d%65%74%72%69%63%73", "m%65trics?query"] {
        assert_eq!(server.try_put(name, TEN).status, 405, "{name}");
        assert_eq!(server.ask(&format!("DELETE /{name} HTTP/1.1\r\n"), b"").status, 405, "{name}");
        assert!(server.get(name, "").text().ends_with("# EOF\n"), "{name}");
    }
    for name in ["Metrics", "metrics/", "metrics/x", "/metrics", "%2Fmetrics", "metrics%20", "%256Detrics"] {
        assert_eq!(server.get(name, "").status, 404, "{name}");
        server.put(name, TEN);
        assert_eq!(server.get(name, "").body, TEN, "{name}");
        server.ask(&format!("DELETE /{name} HTTP/1.1\r\n"), b"");
    }
}

/// RFC 9112, section 3.2.
#[test]
fn a_request_names_one_host() {
    let server = Server::start("");
    server.put("file", TEN);
    for (head, status) in [
        ("GET /file HTTP/1.1\r\n", 400),
        ("GET /file HTTP/1.1\r\nHost: here\r\nHost: here\r\n", 400),
        ("GET /file HTTP/1.1\r\nHost: here and there\r\n", 400),
        ("GET /file HTTP/1.1\r\nHost: user@here\r\n", 400),
        ("PUT /other HTTP/1.1\r\nContent-Length: 0\r\n", 400),
        ("GET /other HTTP/1.1\r\nHost: here\r\n", 404),
        ("GET /file HTTP/1.1\r\nHost: here:80\r\n", 200),
        ("GET /file HTTP/1.1\r\nHost:\r\n", 200),
        ("GET http://here/file HTTP/1.1\r\nHost: here\r\n", 200),
        ("GET /file HTTP/1.0\r\n", 200),
    ] {
        let mut peer = server.connect();
        peer.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(Reply::read(&mut peer).status, status, "{head}");
    }
}

/// Section 14.2 and 14.1.2, with the examples of the latter; `None` is the whole.
#[test]
fn single_ranges() {
    let server = Server::start("");
    let content = pattern(10_000);
    server.put("file", &content);
    for (range, part) in [
        ("bytes=0-499", Some(0..500)),
        ("bytes=500-999", Some(500..1000)),
        ("bytes=-500", Some(9500..10_000)),
        ("bytes=9500-", Some(9500..10_000)),
        ("bytes=0-0", Some(0..1)),
        ("bytes=-1", Some(9999..10_000)),
        ("bytes=9999-", Some(9999..10_000)),
        ("bytes=1-99999999", Some(1..10_000)),
        ("bytes=-99999999", Some(0..10_000)),
        ("bytes=2-18446744073709551615", Some(2..10_000)),
        ("bytes=2-18446744073709551616", Some(2..10_000)),
        ("Bytes=7-8", Some(7..9)),
        ("bytes=5-9,20000-", Some(5..10)),
        ("bytes=+2-+4", None),
        ("bytes=4-2", None),
        ("bytes=x-y", None),
        ("bytes=-", None),
        ("bytes=1", None),
        ("bytes=", None),
        ("lines=1-2", None),
        ("1-2", None),
    ] {
        let got = server.get("file", &format!("Range: {range}\r\n"));
        let Some(part) = part else {
            assert!(got.status == 200 && got.body == content, "{range}: {got:?}");
            continue;
        };
        assert_eq!(got.status, 206, "{range}: {got:?}");
        let expected = format!("bytes {}-{}/10000", part.start, part.end - 1);
        assert_eq!(got.field("content-range"), Some(&*expected), "{range}");
        assert_eq!(got.field("content-length"), Some(&*part.len().to_string()), "{range}");
        assert_eq!(got.field("etag"), Some(&*etag(&content)));
        assert!(got.body == content[part], "{range}");
    }
    for range in
        ["bytes=10000-", "bytes=10000-10001", "bytes=-0", "bytes=18446744073709551616-", "bytes=20000-,-0"]
    {
        let refused = server.get("file", &format!("Range: {range}\r\n"));
        assert_eq!((refused.status, refused.field("content-range")), (416, Some("bytes */10000")), "{range}");
    }
    let twice = server.get("file", "Range: bytes=0-1\r\nRange: bytes=4-5\r\n");
    assert_eq!(twice.status, 200, "not a list field");
}

#[test]
fn ranges_of_an_empty_object() {
    let server = Server::start("");
    server.put("empty", b"");
    for (range, status) in [("0-", 416), ("0-0", 416), ("-0", 416), ("-5", 200)] {
        let got = server.get("empty", &format!("Range: bytes={range}\r\n"));
        assert_eq!((got.status, got.field("content-range").is_some()), (status, status == 416), "{range}");
    }
}

#[test]
fn head_and_put_have_no_ranges() {
    let server = Server::start("");
    server.put("file", TEN);
    let head = server.ask("HEAD /file HTTP/1.1\r\nRange: bytes=2-4\r\n", b"");
    assert_eq!(
        (head.status, head.field("content-length"), head.field("content-range")),
        (200, Some("10"), None)
    );
    let beyond = server.ask("HEAD /file HTTP/1.1\r\nRange: bytes=20-\r\n", b"");
    assert_eq!(beyond.status, 200);
    let part = "PUT /file HTTP/1.1\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n";
    assert_eq!(server.ask(part, b"56789").status, 400);
    assert_eq!(server.get("file", "").body, TEN, "the object stays");
}

/// Section 14.6.
#[test]
fn several_ranges_are_parts() {
    let server = Server::start("");
    let content = pattern(10_000);
    let put = "PUT /file HTTP/1.1\r\nContent-Type: text/weird\r\nContent-Length: 10000\r\n";
    assert_eq!(server.ask(put, &content).status, 201);
    let got = server.get("file", "Range: bytes= 0-999, 4500-5499,20000-,, -1000\r\n");
    assert_eq!((got.status, got.field("content-range")), (206, None));
    let boundary =
        got.field("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    assert_eq!(got.field("content-length"), Some(&*got.body.len().to_string()));
    let mut rest = &got.body[..];
    for part in [0..1000, 4500..5500, 9000..10_000] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: text/weird\r\nContent-Range: bytes {}-{}/10000\r\n\r\n",
            part.start,
            part.end - 1
        );
        rest =
            rest.strip_prefix(head.as_bytes()).unwrap_or_else(|| panic!("{part:?} {:?}", text(&rest[..99])));
        rest = rest.strip_prefix(&content[part]).unwrap();
    }
    assert_eq!(text(rest), format!("\r\n--{boundary}--\r\n"));

    for range in ["0-,0-".to_owned(), "0-0,".repeat(65), "0-9999,0-9999,0-9999".into()] {
        let got = server.get("file", &format!("Range: bytes={range}\r\n"));
        assert!(got.status == 200 && got.body == content, "more than the whole: {got:?}");
    }
}

/// Sections 13.1.1 to 13.1.4, in the order of 13.2.2.
#[test]
fn preconditions() {
    let server = Server::start("");
    server.put("file", TEN);
    let (tag, modified) = (etag(TEN), server.get("file", "").field("last-modified").unwrap().to_owned());
    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEVER: &str = "Thu, 31 Dec 2099 23:59:59 GMT";
    for (method, name, fields, status) in [
        ("GET", "file", format!("If-Match: {tag}"), 200),
        ("GET", "file", "If-Match: *".into(), 200),
        ("GET", "file", format!("If-Match: \"x\", {tag}"), 200),
        ("GET", "file", "If-Match: \"x\"".into(), 412),
        ("GET", "file", format!("If-Match: W/{tag}"), 412), // strongly
        ("GET", "absent", "If-Match: *".into(), 404),
        ("GET", "file", format!("If-None-Match: {tag}"), 304),
        ("GET", "file", format!("If-None-Match: W/{tag}"), 304), // weakly
        ("GET", "file", format!("If-None-Match: \"x\", {tag}"), 304),
        ("GET", "file", "If-None-Match: *".into(), 304),
        ("GET", "file", "If-None-Match: \"x\"".into(), 200),
        // Tags of others: obs-text, a comma, and what is no tag. None hides ours.
        ("GET", "file", format!("If-Match: \"\u{fc}\", {tag}"), 200),
        ("GET", "file", format!("If-None-Match: \"\u{fc}\",W/{tag}"), 304),
        ("GET", "file", format!("If-None-Match: \"\u{fc}\"\r\nIf-None-Match: {tag}"), 304),
        ("GET", "file", format!("If-None-Match: \"\u{fc}, {}", &tag[1..]), 200),
        ("GET", "file", format!("If-None-Match: \"x,y\",, \t{tag},"), 304),
        ("GET", "file", format!("If-None-Match: \"a b\", {tag}"), 304),
        ("GET", "file", format!("If-None-Match: w/{tag}"), 200), // case-sensitive
        ("GET", "file", format!("If-Match: {tag}x, x{tag}, {}", tag.trim_matches('"')), 412),
        ("GET", "file", "If-Match: ".into(), 412),
        ("GET", "file", "If-None-Match: *\r\nIf-None-Match: *".into(), 304),
        ("PUT", "file", format!("If-None-Match: \"\u{fc}\", {tag}"), 412),
        ("HEAD", "file", format!("If-None-Match: {tag}"), 304),
        ("GET", "file", format!("If-Modified-Since: {modified}"), 304),
        ("GET", "file", format!("If-Modified-Since: {NEVER}"), 304),
        ("GET", "file", format!("If-Modified-Since: {OLD}"), 200),
        ("GET", "file", "If-Modified-Since: yesterday".into(), 200),
        // RFC 9110, section 5.6.7: three formats, compared as dates.
        ("GET", "file", "If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT".into(), 200),
        ("GET", "file", "If-Modified-Since: Sun Nov  6 08:49:37 1994".into(), 200),
        ("GET", "file", "If-Modified-Since: Friday, 31-Dec-60 23:59:59 GMT".into(), 304),
        ("GET", "file", "If-Modified-Since: Thu Dec 31 23:59:59 2099".into(), 304),
        ("GET", "file", "If-Unmodified-Since: Sunday, 06-Nov-94 08:49:37 GMT".into(), 412),
        ("GET", "file", "If-Unmodified-Since: Sun Nov  6 08:49:37 1994".into(), 412),
        ("GET", "file", "If-Unmodified-Since: yesterday".into(), 200),
        ("GET", "file", format!("If-Unmodified-Since: {OLD}\r\nIf-Unmodified-Since: {OLD}"), 200), // no list
        ("GET", "file", format!("If-Modified-Since: {NEVER}\r\nIf-Modified-Since: {NEVER}"), 200),
        ("GET", "file", format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {modified}"), 200),
        ("GET", "file", format!("If-Unmodified-Since: {modified}"), 200),
        ("GET", "file", format!("If-Unmodified-Since: {OLD}"), 412),
        ("GET", "file", format!("If-Match: {tag}\r\nIf-Unmodified-Since: {OLD}"), 200),
        ("GET", "file", format!("If-Match: {tag}\r\nIf-None-Match: {tag}"), 304),
        ("GET", "file", format!("If-None-Match: {tag}\r\nRange: bytes=0-1"), 304),
        ("GET", "file", format!("If-Match: {tag}\r\nRange: bytes=0-1"), 206),
        ("PUT", "file", "If-Match: \"x\"".into(), 412),
        ("PUT", "absent", "If-Match: *".into(), 412),
        ("PUT", "absent", format!("If-Match: {tag}"), 412),
        ("PUT", "file", "If-None-Match: *".into(), 412),
        ("PUT", "file", format!("If-Unmodified-Since: {OLD}"), 412),
        ("PUT", "file", format!("If-Modified-Since: {NEVER}"), 200), // not of PUT
        ("PUT", "file", format!("If-Match: {tag}"), 200),
        ("PUT", "new", "If-None-Match: *".into(), 201),
        ("DELETE", "file", "If-Match: \"x\"".into(), 412),
        ("DELETE", "file", "If-None-Match: *".into(), 412),
        ("DELETE", "absent", "If-Match: *".into(), 404),
        ("DELETE", "file", format!("If-Match: {tag}"), 204),
    ] {
        let body = if method == "PUT" { TEN } else { b"" };
        let head = format!("{method} /{name} HTTP/1.1\r\n{fields}\r\nContent-Length: {}\r\n", body.len());
        let reply = server.ask(&head, body);
        assert_eq!(reply.status, status, "{head}{reply:?}");
        if status == 304 {
            assert_eq!((reply.field("etag"), reply.body.len()), (Some(&*tag), 0), "{head}");
            assert!([None, Some("10")].contains(&reply.field("content-length")), "{head}{reply:?}"); // section 8.6
        }
    }
}

/// Section 13.1.5.
#[test]
fn if_range() {
    let server = Server::start("");
    server.put("file", TEN);
    let (tag, modified) = (etag(TEN), server.get("file", "").field("last-modified").unwrap().to_owned());
    thread::sleep(Duration::from_millis(1100)); // until the date is a strong validator
    let ask = |condition: &str| {
        server.get("file", &format!("Range: bytes=2-4\r\nIf-Range: {condition}\r\n")).status
    };
    for (condition, status) in [
        (tag.as_str(), 206),
        (&format!("W/{tag}"), 200),
        ("\"other\"", 200),
        (&modified, 206),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
        ("Thu, 31 Dec 2099 23:59:59 GMT", 200),
        ("nonsense", 200),
        ("\"\u{fc}\"", 200),
        ("\"a b\"", 200),
        (&format!("\"x\", {tag}"), 200), // no list
        (&format!("{tag}\r\nIf-Range: {tag}"), 200),
    ] {
        assert_eq!(ask(condition), status, "{condition}");
    }
    // Two versions in one second have the same date: neither is told by it.
    let date = loop {
        server.put("file", b"one version");
        server.put("file", b"another version");
        let first = server.get("file", "").field("last-modified").unwrap().to_owned();
        server.put("file", TEN);
        let second = server.get("file", "").field("last-modified").unwrap().to_owned();
        if first == second {
            break first;
        }
    };
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(ask(&date), 200);
}

#[test]
fn one_of_many_that_create_an_object_succeeds() {
    let server = Server::start("");
    let replies: Vec<_> = thread::scope(|scope| {
        let put = |number: usize| {
            let body = pattern(100_000 + number);
            let head =
                format!("PUT /once HTTP/1.1\r\nIf-None-Match: *\r\nContent-Length: {}\r\n", body.len());
            server.ask(&head, &body).status
        };
        let clients: Vec<_> = (0..16).map(|number| scope.spawn(move || put(number))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(replies.iter().filter(|&&status| status == 201).count(), 1, "{replies:?}");
    assert_eq!(replies.iter().filter(|&&status| status == 412).count(), 15, "{replies:?}");
}

/// Section 10.1.1: the body is asked for only if it is wanted.
#[test]
fn expectations() {
    let server = Server::start("1000000");
    let mut peer = server.connect();
    let head =
        |len: usize| format!("PUT /file HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {len}\r\n");
    peer.write_all(&request(&head(10), b"")).unwrap();
    let mut interim = [0; 25];
    peer.read_exact(&mut interim).unwrap();
    assert_eq!(text(&interim), "HTTP/1.1 100 Continue\r\n\r\n");
    peer.write_all(TEN).unwrap();
    assert_eq!(Reply::read(&mut peer).status, 201);
    // Section 10.1.1: to HTTP/1.0 it means nothing, and what has come is not asked for.
    let old = head(10).replace("HTTP/1.1", "HTTP/1.0");
    let reply = server.ask(&old, TEN);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(server.ask(&head(1_000_001), b"").status, 413);
    assert_eq!(
        server.ask(&head(10).replace("Content", "Content-Range: bytes 0-9/10\r\nContent"), b"").status,
        400
    );
    assert_eq!(
        server.ask("PUT /file HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 0\r\n", b"").status,
        417
    );
}

#[test]
fn too_much_is_refused_whether_it_is_announced_or_not() {
    let server = Server::start("1000000");
    server.put("just", &pattern(1_000_000));
    // The client has sent all of it before it reads: the refusal is not lost in a reset.
    assert_eq!(server.try_put("large", &pattern(3_000_000)).status, 413);
    let chunked = [b"2dc6c0\r\n", &pattern(3_000_000)[..], b"\r\n0\r\n\r\n"].concat();
    assert_eq!(server.ask("PUT /large HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", &chunked).status, 413);
    for announced in ["18446744073709551613", "9223372036854775808", "4294967296"] {
        let head = format!("PUT /large HTTP/1.1\r\nContent-Length: {announced}\r\n");
        assert_eq!(server.ask(&head, b"").status, 413, "{announced}");
    }
    for nonsense in ["18446744073709551616", "-1", "1, 2", "0x10"] {
        let head = format!("PUT /large HTTP/1.1\r\nContent-Length: {nonsense}\r\n");
        assert_eq!(server.ask(&head, b"").status, 400, "{nonsense}");
    }
    assert_eq!(server.get("large", "").status, 404);
}

/// RFC 9112, sections 6.1, 6.3 and 7.1, and 11.2: what two parsers might read in two ways is refused, or ends the connection.
#[test]
fn no_request_hides_in_another() {
    let server = Server::start("");
    let hidden = "GET /hidden HTTP/1.1\r\nHost: here\r\n\r\n";
    for (fields, body) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "01234"),
        ("Content-Length: 5, 6\r\n", "01234"),
        ("Content-Length: +5\r\n", "01234"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "-5\r\n01234\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "10000000000000005\r\n01234\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5\r\n01234X\r\n0\r\n\r\n"),
    ] {
        let mut peer = server.connect();
        let request = format!("PUT /hides HTTP/1.1\r\nHost: here\r\n{fields}\r\n{body}{hidden}");
        peer.write_all(request.as_bytes()).unwrap();
        finish_sending(&peer);
        let mut answers = String::new();
        peer.read_to_string(&mut answers).unwrap();
        assert!(answers.starts_with("HTTP/1.1 400"), "{fields}{body}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{fields}{body}: {answers}");
    }
    assert_eq!(server.get("hides", "").status, 404);
    // The transfer coding is what counts, and chunk extensions do not.
    let both = "PUT /both HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n";
    server.ask(both, b"a;name=\"value\"\r\n0123456789\r\n0;last\r\n\r\n");
    assert_eq!(server.get("both", "").body, TEN);
}

/// RFC 9112, section 6.1: compressed bytes are not the content.
#[test]
fn transfer_codings_that_are_not_decoded_are_refused() {
    let server = Server::start("");
    for coding in ["gzip, chunked", "gzip\r\nTransfer-Encoding: chunked", "chunked, chunked"] {
        let put = format!("PUT /coded HTTP/1.1\r\nTransfer-Encoding: {coding}\r\n");
        let refused = server.ask(&put, b"a\r\n0123456789\r\n0\r\n\r\n");
        assert_eq!(refused.status, 501, "{coding}: {refused:?}");
        assert_eq!(server.get("coded", "").status, 404, "{coding}");
    }
    let put = "PUT /coded HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n";
    assert_eq!(server.ask(put, b"a\r\n0123456789\r\n0\r\n\r\n").status, 201);
}

/// RFC 9112, section 7.1.2, and RFC 9110, section 6.5.1: to a client that says that it takes them.
#[test]
fn trailers_are_kept() {
    let server = Server::start("");
    let put = "PUT /file HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: Checksum\r\n";
    assert_eq!(server.ask(put, b"a\r\n0123456789\r\n0\r\nChecksum: 42\r\n\r\n").status, 201);
    let got = server.get("file", "TE: trailers\r\n");
    assert_eq!((got.field("trailer"), got.field("transfer-encoding")), (Some("checksum"), Some("chunked")));
    assert_eq!(got.text(), "A\r\n0123456789\r\n0\r\nchecksum: 42\r\n\r\n");
    // Fields that trailers may not have are dropped.
    let framing = "Connection: close\r\nContent-Length: 3\r\nSet-Cookie: x\r\n";
    server.ask(put, format!("1\r\n0\r\n0\r\n{framing}Checksum: 1\r\n\r\n").as_bytes());
    let got = server.get("file", "TE: trailers\r\n");
    assert_eq!(
        (got.field("trailer"), &*got.text()),
        (Some("checksum"), "1\r\n0\r\n0\r\nchecksum: 1\r\n\r\n")
    );
    server.ask(put, format!("1\r\n0\r\n0\r\n{framing}\r\n").as_bytes());
    assert_eq!(server.get("file", "TE: trailers\r\n").field("content-length"), Some("1"));
    assert_eq!(server.ask(put, b"a\r\n0123456789\r\n0\r\nChecksum: 42\r\n\r\n").status, 200);
    let without = server.get("file", "");
    assert_eq!((without.field("content-length"), &*without.body), (Some("10"), TEN));
}

#[test]
fn what_the_client_says_of_its_content_is_kept() {
    let server = Server::start("");
    let put =
        "PUT /file HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Language: de\r\nContent-Length: 10\r\n";
    server.ask(put, TEN);
    let got = server.get("file", "");
    assert_eq!((got.field("content-type"), got.field("content-language")), (Some("text/plain"), Some("de")));
    let coded = "Content-Encoding: gzip\r\nContent-Encoding: br\r\nContent-Length: 10\r\n";
    server.ask(&format!("PUT /coded HTTP/1.1\r\n{coded}"), TEN);
    let head = server.get("coded", "").head.to_lowercase();
    let codings: Vec<_> = head.lines().filter_map(|line| line.strip_prefix("content-encoding: ")).collect();
    assert_eq!(codings, ["gzip", "br"], "decoded in the wrong order or by half otherwise");
    server.put("bare", TEN);
    assert_eq!(server.get("bare", "").field("content-type"), Some("application/octet-stream"));
}

#[test]
fn requests_may_follow_each_other_on_one_connection() {
    let server = Server::start("");
    let mut peer = server.connect();
    let put = "PUT /a HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\nhello";
    let get = "GET /a HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    peer.write_all(format!("{put}{get}").as_bytes()).unwrap();
    let mut answers = String::new();
    peer.read_to_string(&mut answers).unwrap();
    assert!(answers.contains(&hash(b"hello")) && answers.ends_with("\r\n\r\nhello"), "{answers}");
}

#[test]
fn a_client_may_close_its_side_when_it_has_asked() {
    let server = Server::start("");
    let mut peer = server.connect();
    peer.write_all(b"PUT /a HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    finish_sending(&peer);
    assert_eq!(Reply::read(&mut peer).text().trim(), hash(b"hello"));
}

/// RFC 9112, sections 6.3 and 9.5: what ends before its framing says so is no content, and the peer is told.
#[test]
fn a_body_that_ends_early_is_refused() {
    let server = Server::start("");
    server.put("file", TEN);
    for (framing, part) in [
        ("Content-Length: 10", "56789"),
        ("Transfer-Encoding: chunked", "5\r\n56789\r\n"),
        ("Transfer-Encoding: chunked", "5\r\n56"),
        ("Transfer-Encoding: chunked", "5\r\n56789\r\n0\r\n"),
        ("Transfer-Encoding: chunked", "5\r\n56789\r\n0\r\nChecksum: 4"),
    ] {
        let mut peer = server.connect();
        peer.write_all(&request(&format!("PUT /file HTTP/1.1\r\n{framing}\r\n"), part.as_bytes())).unwrap();
        finish_sending(&peer);
        let reply = Reply::read(&mut peer);
        assert_eq!(reply.status, 400, "{framing} {part}: {reply:?}");
    }
    assert_eq!(server.get("file", "").body, TEN, "the object stays");
    server.wait_until(|server| server.figure("pool_in_use_bytes") <= 4096);
}

#[test]
fn pipelined_requests_are_answered_in_order_until_one_closes() {
    let server = Server::start("");
    let chunked = "PUT /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;x=\"y\"\r\nabc\r\n0000\r\nSum: 1\r\n\r\n";
    let requests = [
        "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "\r\n", // RFC 9112, section 2.2
        chunked,
        "HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /b HTTP/1.1\r\nHost: a\r\nRange: bytes=1-\r\n\r\n",
        "DELETE /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz",
        "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Keep-Alive, CLOSE\r\n\r\n",
        "DELETE /b HTTP/1.1\r\nHost: a\r\n\r\n", // behind the end of the connection
    ];
    for at_once in [true, false] {
        let mut peer = server.connect();
        let bytes = requests.concat();
        for piece in bytes.as_bytes().chunks(if at_once { bytes.len() } else { 7 }) {
            // The connection may have ended before the last request is sent.
            let _ = peer.write_all(piece);
        }
        let mut answers = String::new();
        peer.read_to_string(&mut answers).unwrap();
        let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        let created = if at_once { "201" } else { "200" };
        assert_eq!(statuses, ["201", created, "200", "206", "204", "404"], "{answers}");
        assert!(answers.contains("\r\n\r\nbcHTTP/1.1 204"), "{answers}");
        assert_eq!(server.get("b", "").body, b"abc");
    }
}

#[test]
fn metrics_count_what_was_served() {
    let server = Server::start("");
    server.put("file", &pattern(100_000));
    server.get("absent", "");
    assert_eq!(server.figure("received_bytes_total"), 100_000);
    assert_eq!(server.figure("requests_total{method=\"GET\",status=\"404\"}"), 1);
    assert_eq!(server.figure("requests_total{method=\"PUT\",status=\"201\"}"), 1);
    assert!(server.figure("pool_in_use_bytes") >= 100_000);
    server.wait_until(|server| server.figure("connections") == 1); // the one that asks
    let reply = server.get("metrics", "");
    assert!(
        reply.text().ends_with("# EOF\n") && reply.field("content-type").unwrap().contains("openmetrics")
    );
    server.ask("DELETE /file HTTP/1.1\r\n", b"");
    assert_eq!(server.figure("pool_in_use_bytes"), 0);
}

#[test]
fn what_is_larger_than_memory_goes_to_the_disk_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&format!("64MiB 4MiB --spill {}", directory.path().display()));
    let content = pattern(40 * MIB + 3);
    server.put("large", &content);
    assert!(server.figure("pool_in_use_bytes") <= 4 << 20);
    assert!(server.figure("pool_spilled_bytes") >= 36 << 20);
    assert!(server.get("large", "").body == content);
    let part = server.get("large", "Range: bytes=20000000-20000099\r\n");
    assert_eq!(part.body, content[20_000_000..20_000_100]);
    assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none(), "the file has a name");
    server.ask("DELETE /large HTTP/1.1\r\n", b"");
    server.wait_until(|server| server.figure("pool_spilled_bytes") == 0);
}
