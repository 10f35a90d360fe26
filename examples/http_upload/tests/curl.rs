//! The server as its users meet it, through `curl`, over HTTP/1.1 and HTTP/2.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

use support::{MIB, Server, hash, pattern, text};
use tempfile::TempDir;

/// Says why a test does nothing, where there is no `curl`.
fn installed() -> bool {
    let found = Command::new("curl").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: curl is not installed; conformance.rs asks the same on a raw socket");
    }
    found
}

struct Curl {
    server: Server,
    files: TempDir,
    version: &'static str,
}

impl Curl {
    fn with(options: &str, version: &'static str) -> Curl {
        Curl { server: Server::start(options), files: TempDir::new().unwrap(), version }
    }

    fn run(&self, args: &[&str], name: &str) -> Output {
        self.run_with(Stdio::null(), args, name)
    }

    fn run_with(&self, stdin: impl Into<Stdio>, args: &[&str], name: &str) -> Output {
        let url = format!("http://{}/{name}", self.server.address);
        let always =
            ["-s", self.version, "--noproxy", "*", "--max-time", "60", "-w", "%{stderr}%{http_code}"];
        Command::new("curl").stdin(stdin).args(always).args(args).arg(url).output().unwrap()
    }

    fn file(&self, content: &[u8]) -> String {
        let file = self.files.path().join("upload");
        fs::write(&file, content).unwrap();
        file.to_str().unwrap().to_owned()
    }
}

fn status(output: &Output) -> String {
    text(&output.stderr)
}

#[test]
fn uploads_of_all_sizes_come_back() {
    if !installed() {
        return;
    }
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let curl = Curl::with("64MiB 256MiB", version);
        for len in [0, 1, 100_000, 64 * MIB] {
            let content = pattern(len);
            let file = curl.file(&content);
            let sized = curl.run(&["-T", &file], "file");
            let streamed = curl.run_with(File::open(&file).unwrap(), &["-T", "-"], "file");
            for put in [sized, streamed] {
                assert!(["200", "201"].contains(&&*status(&put)), "{version} {len}: {put:?}");
                assert_eq!(text(&put.stdout).trim(), hash(&content));
                let got = curl.run(&[], "file");
                assert!(status(&got) == "200" && got.stdout == content, "{version} {len}");
            }
        }
        let head = curl.run(&["-I"], "file");
        assert!(text(&head.stdout).to_lowercase().contains("content-length: 67108864"), "{version}");
        assert_eq!(status(&curl.run(&["-X", "DELETE"], "file")), "204");
        assert_eq!(status(&curl.run(&[], "file")), "404");
    }
}

#[test]
fn ranges_conditions_and_limits() {
    if !installed() {
        return;
    }
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let curl = Curl::with("1MiB 2MiB --patience 1", version);
        let content = pattern(MIB);
        let file = curl.file(&content);
        curl.run(&["-T", &file], "file");
        for (range, part) in [("100-199", 100..200), ("-7", MIB - 7..MIB), ("1048575-", MIB - 1..MIB)] {
            let got = curl.run(&["-r", range], "file");
            assert!(status(&got) == "206" && got.stdout == content[part], "{version} {range}");
        }
        assert_eq!(status(&curl.run(&["-r", "1048576-"], "file")), "416");
        let several = curl.run(&["-r", "0-0,-1"], "file");
        assert!(
            status(&several) == "206" && text(&several.stdout).contains("Content-Range: bytes 0-0/1048576")
        );
        // `-C` with `-T` sends a Content-Range: the tail must not replace the object.
        let resumed = curl.run(&["-C", "5", "-T", &file], "file");
        assert_eq!(status(&resumed), "400", "{version}");
        assert!(curl.run(&[], "file").stdout == content);
        let etags = curl.files.path().join("etag");
        let etag = etags.to_str().unwrap();
        assert_eq!(status(&curl.run(&["--etag-save", etag], "file")), "200");
        assert_eq!(status(&curl.run(&["--etag-compare", etag], "file")), "304", "{version}");
        // Trailers over HTTP/1.1 that HTTP/2 has no place for: the object is served all the same.
        let put = "PUT /trailers HTTP/1.1\r\nTransfer-Encoding: chunked\r\n";
        curl.server.ask(put, b"2\r\nok\r\n0\r\nConnection: close\r\nSum: 1\r\n\r\n");
        let got = curl.run(&["-H", "TE: trailers"], "trailers");
        assert_eq!((&*status(&got), &*text(&got.stdout)), ("200", "ok"), "{version}");
        assert_eq!(status(&curl.run(&["-X", "DELETE"], "trailers")), "204", "{version}");
        let large = curl.file(&pattern(MIB + 1));
        assert_eq!(status(&curl.run(&["-T", &large], "large")), "413", "{version}");
        let full = curl.run_with(File::open(&large).unwrap(), &["-T", "-"], "large");
        assert_eq!(status(&full), "413", "{version}");
    }
}

/// Over HTTP/2 a stream that is reset loses the response: curl reports error 92.
#[test]
fn a_refusal_arrives_although_the_body_does_not() {
    if !installed() {
        return;
    }
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let curl = Curl::with("1MiB", version);
        let file = curl.file(&pattern(8 * MIB));
        for (method, name, status_wanted) in [
            ("PUT", "file", "413"),
            ("PUT", "metrics", "405"),
            ("PUT", "%00", "400"),
            ("POST", "file", "405"),
            ("BREW", "file", "501"),
            ("DELETE", "file", "404"),
            ("GET", "file", "404"),
        ] {
            let refused = curl.run(&["-X", method, "-H", "Expect:", "-T", &file], name);
            assert_eq!(status(&refused), status_wanted, "{version} {method} {name}: {refused:?}");
        }
    }
}
