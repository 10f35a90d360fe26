"""One payload of any size to or from any peer, by ropes: what the Rust example `transfer` does, on the same wire.

    transfer.py recv --listen 127.0.0.1:7000 [--output FILE] [--expect BYTES] [--limit BYTES]
    transfer.py send FILE --to 127.0.0.1:7000

A payload ends with the stream. What was received is written to a file whole or not at all, and the connection is
reset until it is, so that the sender learns of it.
"""

import argparse
import os
import socket
import struct
import sys
import tempfile

import ropewalk
import xxhash

# Seconds that a peer that has all bytes may take to close the connection.
PATIENCE = 1.0


def address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def shown(pair):
    return f"[{pair[0]}]:{pair[1]}" if ":" in pair[0] else f"{pair[0]}:{pair[1]}"


def linger(sock, on):
    """Makes closing a reset, or not."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))


def checksum(view):
    return f"xxh3 {xxhash.xxh3_64_intdigest(view):016x}"


def recv(args):
    most = min((most for most in (args.limit, args.expect) if most is not None), default=None)
    family = socket.AF_INET6 if ":" in args.listen[0] else socket.AF_INET
    with socket.create_server(args.listen, family=family) as listener:
        print(f"listening on {shown(listener.getsockname())}", file=sys.stderr, flush=True)
        sock, peer = listener.accept()
    with sock:
        linger(sock, True)
        try:
            view = ropewalk.recv_all(sock, limit=most)
        except OSError as error:
            raise SystemExit(refusal(error, shown(peer), args)) from error
        if args.expect is not None and len(view) < args.expect:
            raise SystemExit(f"transfer: {shown(peer)} sent only {len(view)} of {args.expect} bytes; "
                             "have it send all of them again")
        if args.output is not None:
            write(view, args.output)
        linger(sock, False)
    print(f"{len(view)} bytes from {shown(peer)}, {checksum(view)}")


def refusal(error, peer, args):
    held = len(error.rope)
    if isinstance(error, ropewalk.LimitExceeded) and args.expect == held:
        return f"transfer: {peer} sends more than the {held} bytes expected; check --expect"
    if isinstance(error, ropewalk.LimitExceeded):
        return f"transfer: {peer} sends more than the limit of {held} bytes; raise --limit to take it"
    if isinstance(error, ConnectionResetError):
        return f"transfer: {peer} reset the connection after {held} bytes; have it send all of them again"
    return f"transfer: cannot receive from {peer} after {held} bytes: {error}"


def write(view, path):
    """Replaces the file by a whole one; a device is written to."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as device:
            device.write(view)
        return
    mode = os.stat(path).st_mode & 0o7777 if os.path.exists(path) else 0o666 & ~umask()
    descriptor, beside = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(view)
            os.fchmod(file.fileno(), mode)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def send(args):
    hasher, rope, sent = xxhash.xxh3_64(), ropewalk.Rope(), 0
    with open(args.file, "rb", buffering=0) as file, socket.create_connection(args.to) as sock:
        try:
            while rope.recv_from(file):
                sent += len(rope)
                for segment in rope.segments():
                    hasher.update(segment)
                ropewalk.send_all(sock, rope)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(PATIENCE)
            while sock.recv(4096):
                pass
        except TimeoutError:
            pass  # one that leaves the connection open is believed to have it
        except (BrokenPipeError, ConnectionResetError) as error:
            raise SystemExit(f"transfer: {shown(args.to)} closed the connection after {sent - len(rope)} bytes "
                             "were sent; its own message says why") from error
    print(f"{sent} bytes to {shown(args.to)}, xxh3 {hasher.intdigest():016x}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    receiving = commands.add_parser("recv", help="one payload from any peer")
    receiving.add_argument("--listen", type=address, required=True, metavar="ADDR")
    receiving.add_argument("--output", metavar="FILE")
    receiving.add_argument("--expect", type=int, metavar="BYTES")
    receiving.add_argument("--limit", type=int, metavar="BYTES")
    receiving.set_defaults(run=recv)
    sending = commands.add_parser("send", help="a file to any peer")
    sending.add_argument("file")
    sending.add_argument("--to", type=address, required=True, metavar="ADDR")
    sending.set_defaults(run=send)
    args = parser.parse_args()
    try:
        args.run(args)
    except (OSError, MemoryError) as error:
        raise SystemExit(f"transfer: {error}") from error


if __name__ == "__main__":
    main()
