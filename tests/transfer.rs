//! The example `transfer` as its users run it: against itself, against other tools, and against peers
//! that misbehave. Each process ends by itself, or after a minute by timeout(1).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use socket2::SockRef;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

#[test]
fn the_comparison_is_verified_and_says_what_it_cost() {
    let done = transfer(&["--size", "4MiB", "--rounds", "2", "--json"]).finish();
    assert_eq!(done.code, 0, "{}", done.stderr);
    let figures: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&figures["bytes"], &figures["verified"]), (&(4 * MIB).into(), &true.into()));
    let rounds = figures["rounds"].as_array().unwrap();
    let variants: Vec<_> = rounds.iter().map(|round| round["variant"].as_str().unwrap()).collect();
    assert_eq!(variants, ["ropewalk", "list+join", "read_to_end"].repeat(2));
    for round in rounds {
        for figure in ["ms", "cpu_ms", "page_faults", "syscalls", "copied_bytes", "peak_ratio"] {
            assert!(round[figure].is_number(), "{figure} in {round}");
        }
        // Whatever holds the payload is seen, also pages of a memory file that nobody has mapped yet.
        let copies = if round["variant"] == "list+join" { 2.0 } else { 1.0 };
        assert!(round["peak_ratio"].as_f64().unwrap() >= copies, "{round}");
    }
    let (ropewalk, list) = (&rounds[3], &rounds[4]);
    assert_eq!((&ropewalk["copied_bytes"], &list["copied_bytes"]), (&0.into(), &(4 * MIB).into()));
    // Warm, there is at most what one read makes ready beyond what the round before it did, 1 MiB, and
    // something for the heap.
    assert!(ropewalk["page_faults"].as_u64().unwrap() < 256 + 64, "of 1024 pages: {ropewalk}");
}

#[test]
fn the_table_has_a_row_for_every_round() {
    let done = transfer(&["--size", "100000", "--rounds", "2"]).finish();
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "no progress bar without a terminal");
    assert_eq!(done.stdout.matches("same").count(), 6, "{}", done.stdout);
}

#[test]
fn more_than_memory_holds_is_refused() {
    transfer(&["--size", "16EiB"]).finish().assert_failed("choose a smaller --size");
    transfer(&["--size", "1PiB"]).finish().assert_failed("choose a smaller --size");
}

#[test]
fn a_file_arrives_as_it_was_sent() {
    for len in [0, 1, 5 * MIB + 3] {
        let files = Files::new(len);
        let receiver = Receiver::start(&["--output", &files.output()]);
        let sent = transfer(&["send", &files.input(), "--to", &receiver.address]).finish();
        let received = receiver.finish();
        assert_eq!((sent.code, received.code), (0, 0), "{} {}", sent.stderr, received.stderr);
        assert_eq!(checksum(&sent.stdout), checksum(&received.stdout));
        files.assert_same();
    }
}

#[test]
fn netcat_and_socat_send() {
    for peer in [["nc", "-N HOST PORT < FILE"], ["socat", "-u OPEN:FILE TCP:HOST:PORT"]] {
        let [tool, arguments] = peer;
        if !installed(tool) {
            continue;
        }
        let files = Files::new(3 * MIB + 1);
        let receiver = Receiver::start(&["--output", &files.output()]);
        let (host, port) = receiver.address.split_once(':').unwrap();
        let arguments = arguments.replace("HOST", host).replace("PORT", port).replace("FILE", &files.input());
        let status = bounded("sh").args(["-c", &format!("{tool} {arguments}")]).status().unwrap();
        assert!(status.success(), "{tool}");
        assert_eq!(receiver.finish().code, 0, "{tool}");
        files.assert_same();
    }
}

#[test]
fn socat_receives() {
    if !installed("socat") {
        return;
    }
    let files = Files::new(3 * MIB + 1);
    let create = format!("CREATE:{}", files.output());
    let mut socat = bounded("socat")
        .args(["-d", "-d", "-u", "TCP-LISTEN:0,bind=127.0.0.1", &create])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(socat.stderr.take().unwrap());
    let mut lines = log.lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("listening on")).unwrap();
    let address = line.rsplit(' ').next().unwrap();
    let sent = transfer(&["send", &files.input(), "--to", address]).finish();
    assert_eq!(sent.code, 0, "{}", sent.stderr);
    lines.for_each(drop);
    assert!(socat.wait().unwrap().success());
    files.assert_same();
}

#[test]
fn python_sends_single_bytes() {
    if !installed("python3") {
        return;
    }
    let files = Files::new(20_000);
    let script = "
for byte in open(sys.argv[2], 'rb').read():
    peer.send(bytes([byte]))";
    let receiver = Receiver::start(&["--output", &files.output()]);
    python(&receiver.address, script, &files.input());
    assert_eq!(receiver.finish().code, 0);
    files.assert_same();
}

#[test]
fn python_sends_300_megabytes() {
    if !installed("python3") {
        return;
    }
    let files = Files::new(1000);
    let script = "peer.sendall(open(sys.argv[2], 'rb').read() * 300_000)";
    let receiver = Receiver::start(&["--expect", "300000000", "--output", &files.output()]);
    python(&receiver.address, script, &files.input());
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}", received.stderr);
    let piece = fs::read(files.input()).unwrap();
    let whole = fs::read(files.output()).unwrap();
    assert_eq!(whole.len(), 300_000_000);
    assert!(whole.chunks(1000).all(|chunk| chunk == piece));
}

#[test]
fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let files = Files::new(10);
    transfer(&["send", &files.input(), "--to", &address]).finish().assert_failed("Connection refused");
}

#[test]
fn nothing_to_send() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    transfer(&["send", "/absent", "--to", &address]).finish().assert_failed("cannot read /absent");
    transfer(&["send", "/proc", "--to", &address]).finish().assert_failed("Is a directory");
}

#[test]
fn a_sender_resets_the_connection() {
    let files = Files::new(0);
    let receiver = Receiver::start(&["--output", &files.output()]);
    let mut peer = TcpStream::connect(&receiver.address).unwrap();
    peer.write_all(&[1; 1000]).unwrap();
    reset(peer);
    receiver.finish().assert_failed("reset the connection");
    files.assert_no_output();
}

#[test]
fn a_receiver_resets_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let files = Files::new(32 * MIB);
    let sender = transfer(&["send", &files.input(), "--to", &address]);
    let (mut peer, _) = listener.accept().unwrap();
    peer.read_exact(&mut [0; 1000]).unwrap();
    reset(peer);
    sender.finish().assert_failed("closed the connection");
}

#[test]
fn fewer_bytes_than_expected() {
    let files = Files::new(0);
    fs::write(files.output(), "kept").unwrap();
    let receiver = Receiver::start(&["--output", &files.output(), "--expect", "1001"]);
    TcpStream::connect(&receiver.address).unwrap().write_all(&[1; 1000]).unwrap();
    receiver.finish().assert_failed("only 1000 of 1001 bytes");
    assert_eq!(fs::read(files.output()).unwrap(), b"kept", "the file that was there");
}

#[test]
fn more_bytes_than_expected_or_allowed() {
    for (option, message) in [("--expect", "more than the 999 bytes expected"), ("--limit", "limit of 999")] {
        let files = Files::new(0);
        let receiver = Receiver::start(&["--output", &files.output(), option, "999"]);
        let peer = TcpStream::connect(&receiver.address).unwrap();
        (&peer).write_all(&[1; 1000]).unwrap();
        receiver.finish().assert_failed(message);
        files.assert_no_output();
    }
}

#[test]
fn as_many_bytes_as_expected_and_allowed() {
    let receiver = Receiver::start(&["--expect", "1000", "--limit", "1000"]);
    TcpStream::connect(&receiver.address).unwrap().write_all(&[1; 1000]).unwrap();
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}", received.stderr);
    assert!(received.stdout.starts_with("1000 bytes from 127.0.0.1:"), "{}", received.stdout);
}

#[test]
fn a_full_disk() {
    let receiver = Receiver::start(&["--output", "/dev/full"]);
    TcpStream::connect(&receiver.address).unwrap().write_all(&[1; 1000]).unwrap();
    receiver.finish().assert_failed("No space left on device");
}

#[test]
fn no_place_for_the_output_is_known_before_anything_arrives() {
    let receiver = transfer(&["recv", "--listen", "127.0.0.1:0", "--output", "/absent/file"]);
    receiver.finish().assert_failed("cannot write to /absent/file");
}

#[test]
fn an_address_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    transfer(&["recv", "--listen", &address]).finish().assert_failed("Address already in use");
}

/// An input of `len` bytes and a place for an output, gone at the end.
struct Files(TempDir);

impl Files {
    fn new(len: usize) -> Files {
        let files = Files(TempDir::new().unwrap());
        let pattern = (0..len as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[0]);
        fs::write(files.input(), pattern.collect::<Vec<u8>>()).unwrap();
        files
    }

    fn input(&self) -> String {
        self.0.path().join("input").to_str().unwrap().to_owned()
    }

    fn output(&self) -> String {
        self.0.path().join("output").to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn assert_same(&self) {
        assert!(fs::read(self.input()).unwrap() == fs::read(self.output()).unwrap());
    }

    /// Nothing but the input is there, under whatever name.
    #[track_caller]
    fn assert_no_output(&self) {
        let names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["input"]);
    }
}

/// The example, running.
struct Running(Child);

/// What it said, and how it ended.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

fn transfer(arguments: &[&str]) -> Running {
    let test = std::env::current_exe().unwrap();
    let example: PathBuf = test.ancestors().nth(2).unwrap().join("examples/transfer");
    assert!(example.exists(), "cargo build --examples makes {}", example.display());
    let command = &mut bounded(example.to_str().unwrap());
    Running(command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", program]).stdin(Stdio::null());
    command
}

impl Running {
    fn finish(self) -> Done {
        let output = self.0.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Done {
    #[track_caller]
    fn assert_failed(&self, why: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""), "{}", self.stderr);
        assert!(self.stderr.starts_with("transfer: ") && self.stderr.contains(why), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
    }
}

/// `transfer recv` on a free port.
struct Receiver {
    running: Running,
    address: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Receiver {
    fn start(arguments: &[&str]) -> Receiver {
        let mut running = transfer(&[&["recv", "--listen", "127.0.0.1:0"], arguments].concat());
        let mut stderr = BufReader::new(running.0.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Receiver { running, address, stderr }
    }

    fn finish(mut self) -> Done {
        let mut done = self.running.finish();
        self.stderr.read_to_string(&mut done.stderr).unwrap();
        done
    }
}

/// The checksum in what `send` and `recv` print.
fn checksum(line: &str) -> &str {
    line.trim().rsplit_once("xxh3 ").unwrap().1
}

/// Closes with RST.
fn reset(peer: TcpStream) {
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Whether a tool is there; says so where it is not.
fn installed(tool: &str) -> bool {
    let found = Command::new("which").arg(tool).stdout(Stdio::null()).status().unwrap().success();
    if !found {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    found
}

/// Runs a script that has a `peer` socket to `address` and a file's name in `sys.argv[2]`.
#[track_caller]
fn python(address: &str, script: &str, file: &str) {
    let start = "import socket, sys
host, port = sys.argv[1].split(':')
peer = socket.create_connection((host, int(port)))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n";
    let status = bounded("python3").args(["-c", &format!("{start}{script}"), address, file]).status();
    assert!(status.unwrap().success());
}
