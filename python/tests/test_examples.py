"""The examples, run as a person would, and beside the Rust `transfer` where there is a cargo to build it."""

import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys

import pytest

import ropewalk

HERE = pathlib.Path(__file__).parent.parent
PYTHON = [sys.executable, str(HERE / "examples" / "transfer.py")]


def rust_transfer():
    """The Rust `transfer` of this checkout. Cargo builds it and says where it is, for one left by an older build speaks another
    protocol."""
    build = ["cargo", "build", "--quiet", "--release", "--example", "transfer", "--message-format", "json"]
    built = subprocess.run(build, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    artifacts = (json.loads(line) for line in built.splitlines())
    return [next(found for artifact in artifacts if (found := artifact.get("executable")))]


WAYS = {"python": PYTHON} | ({"rust": rust_transfer()} if shutil.which("cargo") else {})


class Receiver:
    def __init__(self, command, *options):
        program = [*command, "recv", "--listen", "127.0.0.1:0", *map(str, options)]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = re.search(r"listening on (\S+)", self.process.stderr.readline())[1]

    def end(self):
        out, error = self.process.communicate(timeout=240)
        return self.process.returncode, out, error


def send(command, file, address):
    return subprocess.run([*command, "send", str(file), "--to", address], capture_output=True, text=True, timeout=240)


def summary(text):
    """How many bytes were transferred, and their checksum."""
    return re.findall(r"^(\d+) bytes \w+ \S+, xxh3 ([0-9a-f]{16})$", text, re.MULTILINE)


@pytest.mark.parametrize("sender", WAYS)
@pytest.mark.parametrize("receiver", WAYS)
@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_a_file_is_transferred(sender, receiver, size, tmp_path):
    pytest.importorskip("xxhash")
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    target.write_bytes(b"replaced by a whole one")
    receiving = Receiver(WAYS[receiver], "--output", target, "--expect", size)
    sent = send(WAYS[sender], source, receiving.address)
    code, out, error = receiving.end()
    assert (sent.returncode, code) == (0, 0), (sent, error)
    assert target.read_bytes() == source.read_bytes()
    assert summary(sent.stdout) == summary(out) and len(summary(out)) == 1


@pytest.mark.parametrize("sender", WAYS)
@pytest.mark.parametrize("option", ["--expect", "--limit"])
def test_more_than_allowed_is_refused_and_the_file_kept(sender, option, tmp_path):
    pytest.importorskip("xxhash")
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(30_000_000))
    target.write_bytes(b"kept")
    receiving = Receiver(PYTHON, "--output", target, option, 1000)
    sent = send(WAYS[sender], source, receiving.address)
    code, _, error = receiving.end()
    assert code == 1 and f"check {option}" in error or f"raise {option}" in error
    assert sent.returncode == 1 and "its own message says why" in sent.stderr
    assert target.read_bytes() == b"kept" and sorted(os.listdir(tmp_path)) == ["source", "target"]


@pytest.mark.parametrize("how", ["short", "reset"])
def test_less_than_expected_is_refused_and_the_file_kept(how, tmp_path):
    pytest.importorskip("xxhash")
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    receiving = Receiver(PYTHON, "--output", target, "--expect", 1000)
    host, port = receiving.address.split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(bytes(999))
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    code, _, error = receiving.end()
    assert code == 1 and "have it send all of them again" in error
    assert target.read_bytes() == b"kept"


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
