"""The examples, run as a person would, and beside the Rust `transfer` where there is a cargo to build it."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys

import pytest

import ropewalk

HERE = pathlib.Path(__file__).parent.parent
PYTHON = [sys.executable, str(HERE / "examples" / "transfer.py")]


def rust_transfer():
    """The Rust `transfer` of this checkout. Cargo builds it and says where it is, for one left by an older build speaks
    another protocol."""
    build = ["cargo", "build", "--quiet", "--release", "--example", "transfer", "--message-format", "json"]
    built = subprocess.run(build, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    artifacts = (json.loads(line) for line in built.splitlines())
    return [next(found for artifact in artifacts if (found := artifact.get("executable")))]


WAYS = {"python": PYTHON} | ({"rust": rust_transfer()} if shutil.which("cargo") else {})


def heed_signals():
    """Under nohup(1), and in the background of a shell, some are ignored, by children too."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Receiver:
    def __init__(self, command, *options):
        program = [*command, "recv", "--listen", "127.0.0.1:0", *map(str, options)]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        preexec_fn=heed_signals)
        self.address = re.search(r"listening on (\S+)", self.process.stderr.readline())[1]

    def connect(self):
        host, port = self.address.split(":")
        return socket.create_connection((host, int(port)), timeout=240)

    def end(self):
        out, error = self.process.communicate(timeout=240)
        return self.process.returncode, out, error

    def fails(self, why):
        code, out, error = self.end()
        assert (code, out) == (1, "") and why in error and error.count("\n") == 1, error


def start(command, file, address, *options, **streams):
    program = [*command, "send", str(file), "--to", address, *map(str, options)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams)


def send(command, file, address, *options):
    sender = start(command, file, address, *options, text=True)
    out, error = sender.communicate(timeout=240)
    return sender.returncode, out, error


def summary(text):
    """How many bytes were transferred, and their checksum."""
    return re.findall(r"^(\d+) bytes \w+ \S+, xxh3 ([0-9a-f]{16})$", text, re.MULTILINE)


def wire(*pieces):
    """A payload in these pieces, as `examples/transfer/main.rs` specifies it."""
    return b"ropewalk" + b"".join(struct.pack(">I", len(piece)) + piece for piece in (*pieces, b""))


@pytest.fixture
def target(tmp_path):
    """A file in a directory of its own that a receiver is to replace."""
    pytest.importorskip("xxhash")
    target = tmp_path / "received" / "target"
    target.parent.mkdir()
    target.write_bytes(b"kept")
    return target


def is_kept(target):
    return target.read_bytes() == b"kept" and os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize("mode", [[], ["--raw"]], ids=["framed", "raw"])
@pytest.mark.parametrize("sender", WAYS)
@pytest.mark.parametrize("receiver", WAYS)
@pytest.mark.parametrize("size", [0, 1, 9_000_001])
def test_a_file_is_transferred(sender, receiver, size, mode, tmp_path, target):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    receiving = Receiver(WAYS[receiver], "--output", target, "--expect", size, *mode)
    sent = send(WAYS[sender], source, receiving.address, *mode)
    received = receiving.end()
    assert (sent[0], received[0]) == (0, 0), (sent, received)
    assert target.read_bytes() == source.read_bytes()
    assert summary(sent[1]) == summary(received[1]) and summary(sent[1])[0][0] == str(size)


@pytest.mark.parametrize("mode", [[], ["--raw"]], ids=["framed", "raw"])
@pytest.mark.parametrize("sender", WAYS)
@pytest.mark.parametrize("option", [["--expect", 1000], ["--expect", 30_000_000, "--limit", 1000]], ids=["expect", "limit"])
def test_more_than_allowed_is_refused_and_the_file_kept(sender, option, mode, tmp_path, target):
    source = tmp_path / "source"
    source.write_bytes(bytes(30_000_000))
    receiving = Receiver(PYTHON, "--output", target, *option, *mode)
    sent = send(WAYS[sender], source, receiving.address, *mode)
    receiving.fails("the 1000 bytes expected" if len(option) == 2 else "the limit of 1000 bytes")
    assert sent[0] == 1 and "its own message says why" in sent[2]
    assert is_kept(target)


@pytest.mark.parametrize("how", ["short", "reset"])
def test_less_than_expected_is_refused_and_the_file_kept(how, target):
    receiving = Receiver(PYTHON, "--output", target, "--expect", 1000, "--raw")
    with receiving.connect() as sock:
        sock.sendall(bytes(999))
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    receiving.fails("have it send all of them again")
    assert is_kept(target)


def test_a_stream_that_is_cut_anywhere_replaces_no_file(target):
    stream = wire(b"one", b"two")
    for length in range(len(stream)):
        receiving = Receiver(PYTHON, "--output", target)
        with receiving.connect() as sock:
            sock.sendall(stream[:length])
        receiving.fails("ended the stream without an end marker")
        assert is_kept(target), length


@pytest.mark.parametrize("sender", WAYS)
@pytest.mark.parametrize("receiver", WAYS)
def test_a_sender_that_is_killed_replaces_no_file(sender, receiver, target):
    receiving = Receiver(WAYS[receiver], "--output", target)
    # Its input does not end, so that it is killed before the end of the payload.
    sending = start(WAYS[sender], "-", receiving.address, stdin=subprocess.PIPE)
    with sending:
        sending.stdin.write(bytes(6 << 20))  # more than a pipe holds, so that some of it has been read
        sending.kill()
    receiving.fails("have it send all of them again")
    assert is_kept(target)


@pytest.mark.parametrize("stream", [b"GET / HTTP/1.1\r\n\r\n", bytes(100)], ids=["http", "bytes alone"])
def test_a_sender_of_another_protocol_is_refused(stream, target):
    receiving = Receiver(PYTHON, "--output", target)
    with receiving.connect() as sock:
        sock.sendall(stream)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    receiving.fails("does not send as `transfer send` does")
    assert is_kept(target)


def test_a_sender_that_says_nothing_is_given_up(target):
    receiving = Receiver(PYTHON, "--output", target, "--idle", 1)
    with receiving.connect() as sock:
        sock.sendall(wire(b"all")[:-1])
        receiving.fails("sent nothing for 1 s after 3 bytes")
    assert is_kept(target)


@pytest.mark.parametrize("pieces", [[], [b"x"], [bytes(100_000), b"y", bytes(5 << 20)]])
def test_the_answer_comes_when_the_file_is_there(pieces, target):
    receiving = Receiver(PYTHON, "--output", target)
    with receiving.connect() as sock:
        sock.sendall(wire(*pieces))
        with sock.makefile("rb") as answer:
            assert answer.read(8) == struct.pack(">Q", len(b"".join(pieces)))
            assert target.read_bytes() == b"".join(pieces)
            assert answer.read() == b""
    assert receiving.end()[0] == 0


def test_a_sender_that_does_not_wait_for_the_answer_has_its_payload_stored(target):
    receiving = Receiver(PYTHON, "--output", target)
    with receiving.connect() as sock:
        sock.sendall(wire(b"all"))
    code, out, _ = receiving.end()
    assert code == 0 and summary(out)[0][0] == "3" and target.read_bytes() == b"all"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_receiver_that_is_interrupted_leaves_the_file_and_resets(number, target):
    receiving = Receiver(PYTHON, "--output", target)
    with receiving.connect() as sock:
        sock.sendall(wire(b"all")[:-1])
        receiving.process.send_signal(number)
        receiving.fails(f"interrupted by {number.name}")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert is_kept(target)


@pytest.mark.parametrize("sender", WAYS)
def test_a_sender_learns_of_a_full_disk(sender, tmp_path):
    pytest.importorskip("xxhash")
    source = tmp_path / "source"
    source.write_bytes(bytes(100_000))
    receiving = Receiver(PYTHON, "--output", "/dev/full")
    sent = send(WAYS[sender], source, receiving.address)
    receiving.fails("No space left on device")
    assert sent[0] == 1 and "its own message says why" in sent[2]


@pytest.mark.parametrize("answer", [b"", b"\0" * 7, struct.pack(">Q", 999)], ids=["none", "cut", "another length"])
def test_a_sender_without_its_answer_fails(answer, tmp_path, peer):
    pytest.importorskip("xxhash")
    source = tmp_path / "source"
    source.write_bytes(bytes(1000))

    def serve(sock):
        with sock.makefile("rb") as stream:
            assert stream.read(len(wire(bytes(1000)))) == wire(bytes(1000))
        sock.sendall(answer)

    code, out, error = send(PYTHON, source, "%s:%d" % peer(serve))
    why = "has stored 999 of 1000" if len(answer) == 8 else "its own message says why"
    assert (code, out) == (1, "") and why in error, error


def test_a_receiver_that_says_nothing_is_given_up(tmp_path, peer):
    pytest.importorskip("xxhash")
    source = tmp_path / "source"
    source.write_bytes(b"all")
    code, _, error = send(PYTHON, source, "%s:%d" % peer(lambda sock: sock.makefile("rb").read()), "--idle", 1)
    assert code == 1 and "did nothing for 1 s after 3 bytes" in error


def test_standard_input_and_output(target):
    pytest.importorskip("xxhash")
    receiving = Receiver(PYTHON, "--output", "-")
    sending = start(PYTHON, "-", receiving.address, stdin=subprocess.PIPE)
    assert sending.communicate(b"through both", timeout=240)[0].startswith(b"12 bytes to ")
    code, out, error = receiving.end()
    assert (code, out) == (0, "through both") and summary(error)[0][0] == "12"


def test_a_raw_receiver_is_told_how_much_to_expect():
    pytest.importorskip("xxhash")
    program = [*PYTHON, "recv", "--listen", "127.0.0.1:0", "--raw"]
    refused = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2 and "--raw needs --expect" in refused.stderr


@pytest.mark.parametrize("line", [
    "transfer.py recv --listen 127.0.0.1:65536", "transfer.py recv --listen 127.0.0.1:-1",
    "transfer.py send - --to 127.0.0.1:65537", "transfer.py recv --listen 127.0.0.1:0 --limit -1",
    "transfer.py recv --listen 127.0.0.1:0 --expect -1", "asyncore_2003.py 0", "asyncore_2003.py -- -1",
])
def test_numbers_that_mean_nothing(line):
    pytest.importorskip("xxhash")
    script, *options = line.split()
    program = [sys.executable, str(HERE / "examples" / script), *options]
    refused = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2 and "error: argument" in refused.stderr, refused.stderr


def test_the_scene_of_2003():
    program = [sys.executable, str(HERE / "examples" / "asyncore_2003.py"), "1", "100000", "3000000"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=True)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 12 and {row[1] for row in rows} == {"slices", "buffer", "known", "ropewalk"}


def test_every_public_name_is_documented():
    import ropewalk.asyncio

    for module in (ropewalk, ropewalk.asyncio):
        for name in module.__all__:
            made = getattr(module, name)
            assert made.__doc__, name
            for member, value in vars(made).items() if isinstance(made, type) else ():
                if not member.startswith("_") and callable(value) and made.__module__.startswith("ropewalk"):
                    assert value.__doc__ or hasattr(made.__base__, member), f"{name}.{member}"
