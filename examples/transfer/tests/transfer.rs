//! The example `transfer` as its users run it: against itself, against other tools, and against peers
//! that misbehave. Each process ends by itself, or after a minute by timeout(1).

#[path = "../../../tests/support/process.rs"]
mod process;

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::SockRef;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// What a receiver may have in memory beside the payload: code, stacks, the heap.
const OVERHEAD: u64 = 12 << 20;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

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
        // Counts all memory that holds the payload, also pages of a memfd that are not mapped yet.
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
    transfer(&["--size", "4TiB"]).finish().assert_failed("choose a smaller --size");
    let done = transfer(&["--size", "16EiB"]).finish();
    assert!(done.code == 2 && done.stderr.contains("1 B to 4.0 TiB are possible"), "{}", done.stderr);
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
        let expect = (3 * MIB + 1).to_string();
        let receiver = Receiver::start(&["--raw", "--expect", &expect, "--output", &files.output()]);
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
    let sent = transfer(&["send", "--raw", &files.input(), "--to", address]).finish();
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
    let receiver = Receiver::start(&["--raw", "--expect", "20000", "--output", &files.output()]);
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
    let receiver = Receiver::start(&["--raw", "--expect", "300000000", "--output", &files.output()]);
    python(&receiver.address, script, &files.input());
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}", received.stderr);
    let piece = fs::read(files.input()).unwrap();
    let whole = fs::read(files.output()).unwrap();
    assert_eq!(whole.len(), 300_000_000);
    assert!(whole.chunks(1000).all(|chunk| chunk == piece));
}

#[test]
fn no_listener() {
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
    peer.write_all(&piece(&[1; 1000])).unwrap();
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
    let receiver = Receiver::start(&["--output", &files.output(), "--expect", "1001", "--raw"]);
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
        (&peer).write_all(&piece(&[1; 1000])).unwrap();
        receiver.finish().assert_failed(message);
        files.assert_no_output();
    }
}

#[test]
fn as_many_bytes_as_expected_and_allowed() {
    let receiver = Receiver::start(&["--expect", "1000", "--limit", "1000"]);
    let mut peer = connect(&receiver);
    peer.write_all(&whole(&[1; 1000])).unwrap();
    assert_eq!(answer(&mut peer), 1000);
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}", received.stderr);
    assert!(received.stdout.starts_with("1000 bytes from 127.0.0.1:"), "{}", received.stdout);
}

#[test]
fn a_full_disk() {
    let receiver = Receiver::start(&["--output", "/dev/full"]);
    TcpStream::connect(&receiver.address).unwrap().write_all(&whole(&[1; 1000])).unwrap();
    receiver.finish().assert_failed("No space left on device");
}

#[test]
fn a_sender_learns_of_a_full_disk() {
    let files = Files::new(100_000);
    let receiver = Receiver::start(&["--output", "/dev/full"]);
    let sender = transfer(&["send", &files.input(), "--to", &receiver.address]);
    receiver.finish().assert_failed("No space left on device");
    sender.finish().assert_failed("its own message says why");
}

#[test]
fn a_refused_sender_sees_a_reset() {
    for options in [["--expect", "999"], ["--limit", "999"], ["--expect", "1001"]] {
        let receiver = Receiver::start(&options);
        let mut peer = connect(&receiver);
        peer.write_all(&whole(&[1; 1000])).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(receiver.finish().code, 1);
    }
}

#[test]
fn the_answer_comes_when_the_file_is_there() {
    for payload in [&[][..], &[1; 100_000]] {
        let files = Files::new(0);
        let receiver = Receiver::start(&["--output", &files.output()]);
        let mut peer = connect(&receiver);
        peer.write_all(&whole(payload)).unwrap();
        assert_eq!(answer(&mut peer), payload.len() as u64);
        assert!(fs::read(files.output()).unwrap() == payload);
        assert_eq!(receiver.finish().code, 0);
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_replaces_no_file() {
    let files = Files::new(0);
    fs::write(files.output(), "kept").unwrap();
    let stream = [&piece(b"one")[..], &piece(b"two")[MAGIC.len()..], &END].concat();
    for len in 0..stream.len() {
        let receiver = Receiver::start(&["--output", &files.output()]);
        let mut peer = connect(&receiver);
        peer.write_all(&stream[..len]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        receiver.finish().assert_failed("without an end marker");
        assert_eq!(fs::read(files.output()).unwrap(), b"kept", "after {len} bytes");
    }
    files.assert_names(&["input", "output"]);
}

#[test]
fn a_sender_that_is_killed_replaces_no_file() {
    for sent in [0, 1, 5 * MIB] {
        let files = Files::new(0);
        fs::write(files.output(), "kept").unwrap();
        let receiver = Receiver::start(&["--output", &files.output()]);
        let mut sender = transfer_with(&["send", "-", "--to", &receiver.address], Stdio::piped());
        // Its input does not end, so that it is killed before the end of the payload.
        let mut input = sender.0.stdin.take().unwrap();
        input.write_all(&vec![1; sent]).unwrap();
        wait_for(|| receiver.has_peer() && (sent == 0 || receiver.received() >= sent as u64));
        signal(sender.id(), Signal::SIGKILL);
        drop(sender.0.wait());
        let received = receiver.finish();
        assert_eq!((received.code, received.stdout.as_str()), (1, ""), "{}", received.stderr);
        assert_eq!(fs::read(files.output()).unwrap(), b"kept", "after {sent} bytes");
        files.assert_names(&["input", "output"]);
    }
}

#[test]
fn a_directory_is_no_payload() {
    let files = Files::new(0);
    fs::write(files.output(), "kept").unwrap();
    let receiver = Receiver::start(&["--output", &files.output()]);
    transfer(&["send", "/proc", "--to", &receiver.address]).finish().assert_failed("Is a directory");
    let received = receiver.finish();
    assert_eq!((received.code, received.stdout.as_str()), (1, ""), "{}", received.stderr);
    assert_eq!(fs::read(files.output()).unwrap(), b"kept");
}

#[test]
fn a_receiver_that_is_interrupted_leaves_nothing_behind() {
    for (kind, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let files = Files::new(0);
        fs::write(files.output(), "kept").unwrap();
        let receiver = Receiver::start(&["--output", &files.output()]);
        let mut peer = connect(&receiver);
        peer.write_all(&piece(&[1; 1000])).unwrap();
        wait_for(|| receiver.has_read_from(&peer));
        signal(receiver.id(), kind);
        let received = receiver.finish();
        assert_eq!((received.code, received.stdout.as_str()), (code, ""), "{}", received.stderr);
        assert_eq!(fs::read(files.output()).unwrap(), b"kept");
        files.assert_names(&["input", "output"]);
    }
}

#[test]
fn a_receiver_that_is_interrupted_while_it_writes_leaves_nothing_behind() {
    let payload = vec![1; 64 * MIB];
    for kind in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let files = Files::new(0);
        fs::write(files.output(), "kept").unwrap();
        let receiver = Receiver::start(&["--output", &files.output()]);
        let mut peer = connect(&receiver);
        peer.write_all(&whole(&payload)).unwrap();
        wait_for(|| files.are_written(receiver.id()));
        signal(receiver.id(), kind);
        receiver.finish();
        // Where it was too late, the file is whole.
        let left = fs::read(files.output()).unwrap();
        assert!(left == b"kept" || left == payload, "{} bytes", left.len());
        files.assert_names(&["input", "output"]);
    }
}

#[test]
fn a_signal_that_is_ignored_does_not_interrupt() {
    let payload = vec![1; 64 * MIB];
    let files = Files::new(0);
    let mut command = bounded("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" recv --listen 127.0.0.1:0 --output \"$1\""]);
    command.args([env!("CARGO_BIN_EXE_transfer"), &files.output()]);
    let receiver =
        Receiver::of(Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()));
    let mut peer = connect(&receiver);
    peer.write_all(&whole(&payload)).unwrap();
    wait_for(|| files.names().len() > 1);
    signal(receiver.id(), Signal::SIGHUP);
    assert_eq!(answer(&mut peer), payload.len() as u64);
    assert_eq!(receiver.finish().code, 0);
    assert!(fs::read(files.output()).unwrap() == payload);
}

#[test]
fn standard_input_and_output() {
    let receiver = Receiver::start(&["--output", "-"]);
    let mut sender = transfer_with(&["send", "-", "--to", &receiver.address], Stdio::piped());
    let mut input = sender.0.stdin.take().unwrap();
    input.write_all(b"from a pipe").unwrap();
    thread::sleep(Duration::from_millis(50));
    input.write_all(b" in two pieces").unwrap();
    drop(input);
    let (sent, received) = (sender.finish(), receiver.finish());
    assert_eq!((sent.code, received.code), (0, 0), "{} {}", sent.stderr, received.stderr);
    assert_eq!(received.stdout, "from a pipe in two pieces");
    assert_eq!(checksum(&received.stderr), checksum(&sent.stdout));
}

#[test]
fn standard_error_is_closed() {
    let receiver = Receiver::start(&["--output", "-"]);
    drop(receiver.stderr);
    let mut sender = transfer_with(&["send", "-", "--to", &receiver.address], Stdio::piped());
    sender.0.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    let (sent, received) = (sender.finish(), receiver.running.finish());
    assert_eq!((sent.code, received.code, received.stdout.as_str()), (0, 0, "from a pipe"));
}

#[test]
fn standard_output_is_closed() {
    let mut receiver = Receiver::start(&["--output", "-"]);
    drop(receiver.running.0.stdout.take());
    let mut sender = transfer_with(&["send", "-", "--to", &receiver.address], Stdio::piped());
    sender.0.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    sender.finish().assert_failed("its own message says why");
    receiver.finish().assert_failed("Broken pipe");
}

#[test]
fn peers_that_do_nothing_are_given_up() {
    let files = Files::new(32 * MIB);
    for sent in [&b""[..], &MAGIC[..4], &piece(b"half of it")[..16]] {
        let receiver = Receiver::start(&["--idle", "1", "--output", &files.output()]);
        let mut peer = connect(&receiver);
        peer.write_all(sent).unwrap();
        receiver.finish().assert_failed("sent nothing for 1 s");
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let small = Files::new(1);
    for input in [files.input(), small.input()] {
        let sender = transfer(&["send", "--idle", "1", &input, "--to", &address]);
        let _peer = listener.accept().unwrap();
        sender.finish().assert_failed("did nothing for 1 s");
    }
}

#[test]
fn a_receiver_that_does_not_say_that_it_stored_all_has_not() {
    let files = Files::new(1000);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for (answer, why) in [
        (&b""[..], "closed the connection after 1000 bytes"),
        (&[0; 7], "closed the connection after 1000 bytes"),
        (&999u64.to_be_bytes(), "has stored 999 of 1000 bytes"),
    ] {
        let sender = transfer(&["send", &files.input(), "--to", &address]);
        let (mut peer, _) = listener.accept().unwrap();
        let mut stream = vec![0; MAGIC.len() + 4 + 1000 + 4];
        peer.read_exact(&mut stream).unwrap();
        assert!(stream == whole(&fs::read(files.input()).unwrap()));
        peer.write_all(answer).unwrap();
        drop(peer);
        sender.finish().assert_failed(why);
    }
}

#[test]
fn bytes_alone_are_taken_only_where_their_number_is_known() {
    let receiver = Receiver::start(&[]);
    TcpStream::connect(&receiver.address).unwrap().write_all(&[1; 1000]).unwrap();
    receiver.finish().assert_failed("use --raw and --expect");
    let refused = transfer(&["recv", "--listen", "127.0.0.1:0", "--raw"]).finish();
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--expect"), "{}", refused.stderr);
}

#[test]
fn a_receiver_that_is_killed_has_not_taken_the_payload() {
    let receiver = Receiver::start(&[]);
    let mut peer = connect(&receiver);
    peer.write_all(&piece(&[1; 1000])).unwrap();
    wait_for(|| receiver.has_read_from(&peer));
    receiver.kill();
    peer.shutdown(Shutdown::Write)
        .or_else(|error| if is_reset(&error) { Ok(()) } else { Err(error) })
        .unwrap();
    assert!(is_reset(&peer.read(&mut [0]).unwrap_err()));
}

#[test]
fn a_peer_that_takes_its_time_is_waited_for_and_costs_little() {
    let receiver = Receiver::start(&["--expect", "300"]);
    let mut peer = connect(&receiver);
    thread::sleep(Duration::from_millis(500)); // it sends nothing at all ...
    peer.write_all(&piece(&[1; 300])[..12]).unwrap();
    for _ in 0..300 {
        peer.write_all(&[1]).unwrap(); // ... and then a byte now and then
        thread::sleep(Duration::from_millis(5));
    }
    let (memory, ticks) = (process::memory(receiver.id()), process::cpu_ticks(receiver.id()));
    assert!(memory < OVERHEAD, "{memory} bytes for 300");
    assert!(ticks < 20, "it is busy with waiting: {ticks} ticks");
    peer.write_all(&END).unwrap();
    assert_eq!(answer(&mut peer), 300);
    assert_eq!(receiver.finish().code, 0);
}

#[test]
fn memory_is_bounded_by_the_limit() {
    const LIMIT: usize = 24 * MIB;
    let receiver = Receiver::start(&["--limit", "24MiB"]);
    let mut peer = connect(&receiver);
    let mut most = 0;
    peer.write_all(MAGIC).unwrap();
    peer.write_all(&u32::MAX.to_be_bytes()).unwrap(); // which is announced takes no memory
    for _ in 0..LIMIT / MIB {
        peer.write_all(&[1; MIB]).unwrap();
        most = most.max(process::memory(receiver.id()));
    }
    wait_for(|| receiver.has_read_from(&peer));
    let full = process::memory(receiver.id());
    assert!(full >= LIMIT as u64, "{full} bytes: the payload is not seen");
    assert!(full.max(most) < LIMIT as u64 + OVERHEAD, "{} bytes", full.max(most));
    // A sender of more is refused at once, however much it is.
    let refused = loop {
        if let Err(error) = peer.write_all(&[1; MIB]) {
            break error;
        }
    };
    assert!(is_reset(&refused), "{refused}");
    receiver.finish().assert_failed("more than the limit of 25165824 bytes");
}

#[test]
fn ten_thousand_connections_of_which_one_is_taken() {
    let receiver = Receiver::start(&["--expect", "5"]);
    let mut first = connect(&receiver);
    let others = (0..10_000).filter_map(|_| TcpStream::connect(&receiver.address).ok());
    let mut before_it_was_accepted: Vec<_> = others.collect();
    for other in &mut before_it_was_accepted {
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        let refused = other.read(&mut [0]).unwrap_err();
        assert!(is_reset(&refused), "{refused}");
    }
    let memory = process::memory(receiver.id());
    assert!(memory < OVERHEAD, "{memory} bytes");
    first.write_all(&whole(b"first")).unwrap();
    drop(first);
    let received = receiver.finish();
    assert_eq!(received.code, 0, "{}", received.stderr);
}

#[test]
fn no_place_for_the_output_is_known_before_anything_arrives() {
    let receiver = transfer(&["recv", "--listen", "127.0.0.1:0", "--output", "/absent/file"]);
    receiver.finish().assert_failed("cannot write to /absent/file");
}

#[test]
fn a_name_that_no_file_can_have_is_known_before_anything_arrives() {
    let files = Files::new(0);
    for (name, why) in [("new/".to_owned(), "No such file"), ("x".repeat(300), "File name too long")] {
        let output = format!("{}/{name}", files.directory());
        let receiver = transfer(&["recv", "--listen", "127.0.0.1:0", "--output", &output]);
        receiver.finish().assert_failed(why);
        files.assert_no_output();
    }
}

#[test]
fn more_than_a_file_may_have_is_an_error_and_leaves_nothing_behind() {
    let files = Files::new(0);
    fs::write(files.output(), "kept").unwrap();
    let mut command = bounded("sh");
    command
        .args(["-c", "ulimit -f 100; exec \"$0\" recv --listen 127.0.0.1:0 --output \"$1\""])
        .args([env!("CARGO_BIN_EXE_transfer"), &files.output()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let receiver = Receiver::of(Running(command.spawn().unwrap()));
    let mut peer = connect(&receiver);
    peer.write_all(&whole(&vec![1; MIB])).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    receiver.finish().assert_failed("File too large");
    assert_eq!(fs::read(files.output()).unwrap(), b"kept");
    files.assert_names(&["input", "output"]);
}

#[test]
fn a_receiver_that_is_killed_while_it_writes_leaves_nothing_behind() {
    let (files, payload) = (Files::new(0), vec![1; 64 * MIB]);
    let unnamed = File::options().write(true).custom_flags(libc::O_TMPFILE).open(files.directory());
    if unnamed.is_err() {
        eprintln!("SKIPPED: the file system knows no files without a name");
        return;
    }
    fs::write(files.output(), "kept").unwrap();
    let receiver = Receiver::start(&["--output", &files.output()]);
    let mut peer = connect(&receiver);
    peer.write_all(&whole(&payload)).unwrap();
    wait_for(|| files.are_written(receiver.id()));
    receiver.kill();
    let output = fs::read(files.output()).unwrap();
    assert!(output == b"kept" || output == payload, "{} bytes", output.len());
    files.assert_names(&["input", "output"]);
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

    fn directory(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// Whether the process has begun to write an output, or has written it.
    fn are_written(&self, process: u32) -> bool {
        let is_open = fs::read_dir(format!("/proc/{process}/fd")).is_ok_and(|mut open| {
            open.any(|fd| fd.is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&self.0))))
        });
        is_open || fs::metadata(self.output()).unwrap().len() > 4
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
        self.assert_names(&["input"]);
    }

    #[track_caller]
    fn assert_names(&self, expected: &[&str]) {
        let mut names = self.names();
        names.sort();
        assert_eq!(names, expected);
    }

    fn names(&self) -> Vec<OsString> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect()
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
    transfer_with(arguments, Stdio::null())
}

fn transfer_with(arguments: &[&str], stdin: Stdio) -> Running {
    let mut command = bounded(env!("CARGO_BIN_EXE_transfer"));
    command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

fn bounded(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", program]).stdin(Stdio::null());
    command
}

impl Running {
    /// The process itself, which is a child of timeout(1).
    fn id(&self) -> u32 {
        let parent = self.0.id();
        let children = || fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        wait_for(|| !children().is_empty());
        children().trim().parse().unwrap()
    }

    fn finish(self) -> Done {
        let output = self.0.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        // As a shell tells it: 128 and the signal that ended it.
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap();
        Done { code, stdout: text(output.stdout), stderr: text(output.stderr) }
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
        Receiver::of(transfer(&[&["recv", "--listen", "127.0.0.1:0"], arguments].concat()))
    }

    fn of(mut running: Running) -> Receiver {
        let mut stderr = BufReader::new(running.0.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect(&line).to_owned();
        Receiver { running, address, stderr }
    }

    fn id(&self) -> u32 {
        self.running.id()
    }

    /// Whether a connection was accepted: the listener is closed then.
    fn has_peer(&self) -> bool {
        let listener = format!("0100007F:{:04X} 00000000:0000 0A", self.port());
        !fs::read_to_string("/proc/net/tcp").unwrap().contains(&listener)
    }

    fn port(&self) -> u16 {
        self.address.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Bytes in its memory: those of the payload, and some more.
    fn received(&self) -> u64 {
        process::memory(self.id())
    }

    /// Whether nothing that `peer` has sent is still under way.
    fn has_read_from(&self, peer: &TcpStream) -> bool {
        let (here, there) = (peer.local_addr().unwrap().port(), peer.peer_addr().unwrap().port());
        let queues = |from: u16, to: u16| {
            let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
            let line = sockets.lines().skip(1).find_map(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let ends = fields[1].ends_with(&format!(":{from:04X}"))
                    && fields[2].ends_with(&format!(":{to:04X}"));
                ends.then(|| fields[4].to_owned())
            });
            line.is_some_and(|queues| queues == "00000000:00000000")
        };
        queues(here, there) && queues(there, here)
    }

    fn kill(self) {
        signal(self.id(), Signal::SIGKILL);
        self.running.0.wait_with_output().unwrap();
    }

    fn finish(mut self) -> Done {
        let mut done = self.running.finish();
        self.stderr.read_to_string(&mut done.stderr).unwrap();
        done
    }
}

fn signal(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.try_into().unwrap()), signal).unwrap();
}

/// The first bytes of a stream, and the last.
const MAGIC: &[u8; 8] = b"ropewalk";
const END: [u8; 4] = [0; 4];

/// A stream that begins with this piece.
fn piece(bytes: &[u8]) -> Vec<u8> {
    [MAGIC, &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A complete stream; a length of no bytes is its end already.
fn whole(payload: &[u8]) -> Vec<u8> {
    [piece(payload), if payload.is_empty() { Vec::new() } else { END.to_vec() }].concat()
}

/// How many bytes the receiver says that it has stored, before it closes the connection.
#[track_caller]
fn answer(peer: &mut TcpStream) -> u64 {
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).unwrap();
    u64::from_be_bytes(answer.try_into().unwrap())
}

/// The checksum in what `send` and `recv` print.
fn checksum(line: &str) -> &str {
    line.trim().rsplit_once("xxh3 ").unwrap().1
}

/// A peer of the receiver that waits 20 seconds at most.
fn connect(receiver: &Receiver) -> TcpStream {
    let peer = TcpStream::connect(&receiver.address).unwrap();
    peer.set_nodelay(true).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.set_write_timeout(Some(PATIENCE)).unwrap();
    peer
}

#[track_caller]
fn wait_for(mut what: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < PATIENCE, "it did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected)
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

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_transfer");
    numbers::assert_refused(
        program,
        &["recv", "--listen", "127.0.0.1:0"],
        &["--idle"],
        &["--expect", "--limit"],
    );
}
