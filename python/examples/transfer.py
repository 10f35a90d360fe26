"""One payload of any size over TCP, by ropes: what the Rust example `transfer` does, on the same wire.

    transfer.py recv --listen 127.0.0.1:7000 [--output FILE] [--expect BYTES] [--limit BYTES]
    transfer.py send FILE --to 127.0.0.1:7000

`examples/transfer/main.rs` specifies the wire: a magic, pieces behind their lengths, an end marker, and the receiver's
answer once the payload is stored. A payload is written to a file whole or not at all. Until it is, closing the
connection is a reset, and a sender that gets no answer fails. With `--raw`, for peers such as `nc`, the stream is the
payload alone, and only `--expect` tells a whole payload from one whose sender died.
"""

import argparse
import os
import select
import signal
import socket
import struct
import sys
import tempfile

import ropewalk
import xxhash

# The first bytes of a stream; the length of a piece, of which 0 ends the payload; the answer, how many bytes are stored.
MAGIC = b"ropewalk"
LENGTH = struct.Struct(">I")
ANSWER = struct.Struct(">Q")

# Most bytes that are sent as one piece; pieces of any length are received.
PIECE_MAX = 4 << 20

# Seconds that a raw peer that has all bytes may take to close the connection.
PATIENCE = 1.0


class Peer:
    """A non-blocking socket whose other end may do nothing for `idle` seconds."""

    def __init__(self, sock, idle):
        sock.setblocking(False)
        self.sock, self.idle = sock, idle

    def recv_into(self, rope, most=None):
        return when_ready(self.sock, select.POLLIN, self.idle, rope.recv_from, self.sock, most)

    def recv_exactly(self, size):
        """A few bytes of the protocol, as `bytes`."""
        got = b""
        while len(got) < size:
            more = when_ready(self.sock, select.POLLIN, self.idle, self.sock.recv, size - len(got))
            if not more:
                raise EOFError
            got += more
        return got

    def send_all(self, rope):
        while rope:
            when_ready(self.sock, select.POLLOUT, self.idle, rope.send_to, self.sock)

    def send_bytes(self, data):
        rope = ropewalk.Rope()
        rope.push(data)
        self.send_all(rope)


def when_ready(file, events, idle, call, *args):
    """Makes a call that does not block, as soon as it does not have to. `idle` is in seconds, None is no limit."""
    while True:
        try:
            return call(*args)
        except BlockingIOError:
            poll = select.poll()
            poll.register(file, events)
            if not poll.poll(None if idle is None else idle * 1000):
                raise TimeoutError from None


def recv(args):
    """Receives one payload."""
    output = None if args.output is None else Output(args.output)
    sock, peer = accept(args.listen)
    with sock:
        linger(sock, True)
        rope = ropewalk.Rope(limit=min((most for most in (args.limit, args.expect) if most is not None), default=None))
        connection = Peer(sock, args.idle)
        try:
            recv_payload(connection, rope, args.raw)
        except (OSError, MemoryError, EOFError, ValueError) as error:
            raise SystemExit(refusal(error, len(rope), peer, args)) from error
        if args.expect is not None and len(rope) < args.expect:
            raise SystemExit(f"transfer: {peer} sent only {len(rope)} of {args.expect} bytes; "
                             "have it send all of them again")
        view = rope.finalize()
        if output is not None:
            output.write(view)
        linger(sock, False)
        if not args.raw:
            answer(connection, peer, len(view))
    summary = f"{len(view)} bytes from {peer}, xxh3 {xxhash.xxh3_64_intdigest(view):016x}"
    print(summary, file=sys.stderr if args.output == "-" else sys.stdout)


def accept(address):
    """A connection, and the address of its other end."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.create_server(address, family=family) as listener:
        print(f"listening on {shown(listener.getsockname())}", file=sys.stderr, flush=True)
        sock, peer = listener.accept()
    return sock, shown(peer)


def recv_payload(connection, rope, raw):
    """Receives a payload until it is complete."""
    if raw:
        while connection.recv_into(rope):
            pass
        return
    if connection.recv_exactly(len(MAGIC)) != MAGIC:
        raise ValueError
    while lacks := LENGTH.unpack(connection.recv_exactly(LENGTH.size))[0]:
        while lacks:
            count = connection.recv_into(rope, lacks)
            if not count:
                raise EOFError
            lacks -= count


def answer(connection, peer, stored):
    try:
        connection.send_bytes(ANSWER.pack(stored))
    except OSError:
        print(f"{peer} closed the connection before it was told that its payload is stored", file=sys.stderr)


def refusal(error, held, peer, args):
    """Why nothing was received, and what to do."""
    again = f"after {held} bytes; have it send all of them again"
    if isinstance(error, ropewalk.LimitExceeded) and args.expect == held:
        return f"transfer: {peer} sends more than the {held} bytes expected; check --expect"
    if isinstance(error, ropewalk.LimitExceeded):
        return f"transfer: {peer} sends more than the limit of {held} bytes; raise --limit to take it"
    if isinstance(error, ConnectionResetError):
        return f"transfer: {peer} reset the connection {again}"
    if isinstance(error, EOFError):
        return f"transfer: {peer} ended the stream without an end marker {again}"
    if isinstance(error, TimeoutError):
        return f"transfer: {peer} sent nothing for {args.idle} s {again}"
    if isinstance(error, ValueError):
        return (f"transfer: {peer} does not send as `transfer send` does; if it sends the bytes alone, "
                "use --raw and --expect")
    if isinstance(error, MemoryError):
        return f"transfer: no memory for more than {held} bytes: {error}; have it sent in parts"
    return f"transfer: cannot receive from {peer} after {held} bytes: {error}"


class Output:
    """A file, which is replaced by a whole one; a device or `-`, standard output, which are written to."""

    def __init__(self, path):
        """Finds out, before anything is received, whether there is a way to write there."""
        self.path, self.device = os.path.realpath(path), None
        if path == "-":
            self.device = os.dup(1)
        elif os.path.exists(self.path) and not os.path.isfile(self.path):
            self.device = os.open(self.path, os.O_WRONLY)
        else:
            tempfile.TemporaryFile(dir=os.path.dirname(self.path)).close()

    def write(self, view):
        if self.device is None:
            replace(self.path, view)
            return
        rope = ropewalk.Rope()
        rope.push(view)
        while rope:
            when_ready(self.device, select.POLLOUT, None, rope.send_to, self.device)


def replace(path, view):
    mode = os.stat(path).st_mode & 0o7777 if os.path.exists(path) else 0o666 & ~umask()
    descriptor, beside = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(view)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def send(args):
    """Sends a file as it is read, so that it may be a pipe, and of any size."""
    with open(0 if args.file == "-" else args.file, "rb", buffering=0) as file, \
            socket.create_connection(args.to, timeout=args.idle) as sock:
        connection, rope, hasher, sent = Peer(sock, args.idle), ropewalk.Rope(), xxhash.xxh3_64(), 0
        try:
            if not args.raw:
                connection.send_bytes(MAGIC)
            while length := when_ready(file, select.POLLIN, None, rope.recv_from, file, PIECE_MAX):
                for segment in rope.segments():
                    hasher.update(segment)
                if not args.raw:
                    rope.push_front(LENGTH.pack(length))
                connection.send_all(rope)
                sent += length
            stored = finish(connection, sent, args.raw)
        except (BrokenPipeError, ConnectionResetError, EOFError) as error:
            raise SystemExit(f"transfer: {shown(args.to)} closed the connection after {sent} bytes were sent; "
                             "its own message says why") from error
        except TimeoutError as error:
            raise SystemExit(f"transfer: {shown(args.to)} did nothing for {args.idle} s after {sent} bytes were sent; "
                             "raise --idle to wait longer") from error
    if stored != sent:
        raise SystemExit(f"transfer: {shown(args.to)} has stored {stored} of {sent} bytes; send them again")
    print(f"{sent} bytes to {shown(args.to)}, xxh3 {hasher.intdigest():016x}")


def finish(connection, sent, raw):
    """Ends the payload; returns how many bytes of it the receiver says it has stored. A raw peer cannot say."""
    if raw:
        close(connection)
        return sent
    connection.send_bytes(LENGTH.pack(0))
    return ANSWER.unpack(connection.recv_exactly(ANSWER.size))[0]


def close(connection):
    """Ends a raw stream and waits for the peer to do so, since one that resets it has not taken all."""
    connection.sock.shutdown(socket.SHUT_WR)
    connection.sock.settimeout(PATIENCE)
    try:
        while connection.sock.recv(4096):
            pass
    except TimeoutError:
        pass  # a peer that leaves the connection open is believed to have all


def linger(sock, on):
    """Makes closing a reset, or not."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))


def address(text):
    host, _, port = text.rpartition(":")
    if int(port) not in range(1 << 16):  # connect(2) would get the lower 16 bits of it
        raise ValueError(text)
    return host.strip("[]"), int(port)


def shown(pair):
    return f"[{pair[0]}]:{pair[1]}" if ":" in pair[0] else f"{pair[0]}:{pair[1]}"


def seconds(text):
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def size(text):
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--raw", action="store_true", help="the bytes alone, for peers such as nc")
    common.add_argument("--idle", type=seconds, default=60, metavar="SECONDS",
                        help="give up when the peer does nothing for so long")
    commands = parser.add_subparsers(required=True)
    receiving = commands.add_parser("recv", parents=[common], help="one payload from any peer")
    receiving.add_argument("--listen", type=address, required=True, metavar="ADDR")
    receiving.add_argument("--output", metavar="FILE", help="`-` is standard output")
    receiving.add_argument("--expect", type=size, metavar="BYTES", help="fewer or more are an error")
    receiving.add_argument("--limit", type=size, metavar="BYTES", help="more are an error")
    receiving.set_defaults(run=recv)
    sending = commands.add_parser("send", parents=[common], help="a file to any peer")
    sending.add_argument("file", help="`-` is standard input")
    sending.add_argument("--to", type=address, required=True, metavar="ADDR")
    sending.set_defaults(run=send)
    args = parser.parse_args()
    if args.run is recv and args.raw and args.expect is None:
        parser.error("recv --raw needs --expect: such a stream has no end marker")
    return args


def end_by(number, _frame):
    raise SystemExit(f"transfer: interrupted by {signal.Signals(number).name}")


def main():
    args = arguments()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # so that no temporary file stays behind
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end_by)
    try:
        args.run(args)
    except (OSError, MemoryError) as error:
        raise SystemExit(f"transfer: {error}") from error


if __name__ == "__main__":
    main()
