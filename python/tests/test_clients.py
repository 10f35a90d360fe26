"""Clients as they are found in public, written anew from their description, run with one import changed."""

import asyncio
import ssl
import struct

import pytest

import ropewalk.asyncio

STREAMS = {"asyncio": asyncio, "ropewalk": ropewalk.asyncio}
SIZE = 2_000_000


@pytest.fixture(params=STREAMS)
def streams(request):
    return STREAMS[request.param]


def test_the_client_of_cpython_issue_133112(run, tls, streams):
    """Sends a message of many megabytes, receives as much, and closes, again and again."""
    message = b"a" * SIZE

    async def serve(reader, writer):
        await reader.readexactly(SIZE)
        writer.write(message)
        await writer.drain()
        writer.close()

    async def client(port):
        reader, writer = await streams.open_connection("127.0.0.1", port, **tls[1])
        writer.write(message)
        await writer.drain()
        data = await reader.readexactly(SIZE)
        assert len(data) == SIZE
        writer.close()
        try:
            await writer.wait_closed()
        except ssl.SSLError:
            pass

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, **tls[0])
        for _ in range(3):
            await client(server.sockets[0].getsockname()[1])
        server.close()

    run(main())


def test_the_echo_of_frames_of_the_high_bandwidth_benchmark(run, streams):
    """Frames with their length in front, of a size that the receiver does not know, echoed by a server and back."""
    header = struct.Struct("!Q")

    async def read_frame(reader):
        length, = header.unpack(await reader.readexactly(header.size))
        return await reader.readexactly(length)

    async def serve(reader, writer):
        try:
            while True:
                frame = await read_frame(reader)
                writer.write(header.pack(len(frame)))
                writer.write(frame)
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    async def main():
        server = await streams.start_server(serve, "127.0.0.1", 0)
        reader, writer = await streams.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        frame = b"x" * SIZE
        for _ in range(5):
            writer.writelines([header.pack(len(frame)), frame])
            await writer.drain()
            assert await read_frame(reader) == frame
        writer.close()
        server.close()

    run(main())


def test_an_http_client_of_lines(run, streams):
    """A response's lines until an empty one, and a body up to the end of the stream."""

    async def serve(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-Length: %d\r\n\r\n" % len(request) + b"body" * 1000)
        writer.close()

    async def main():
        server = await streams.start_server(serve, "127.0.0.1", 0)
        reader, writer = await streams.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        headers = []
        while line := (await reader.readline()).strip():
            headers.append(line)
        assert headers[0] == b"HTTP/1.1 200 OK"
        assert await reader.read() == b"body" * 1000
        writer.close()
        server.close()

    run(main())
