"""What asyncio's own streams do, ropewalk's do: each test runs with both."""

import asyncio
import gc
import socket
import struct
import sys
import warnings

import pytest

import ropewalk
import ropewalk.asyncio

STREAMS = {"asyncio": asyncio, "ropewalk": ropewalk.asyncio}


@pytest.fixture(params=STREAMS)
def streams(request):
    return STREAMS[request.param]


@pytest.fixture
def connected(run, tls, streams):
    """Runs `use(reader, writer)` against `serve(reader, writer)`, both of the same streams."""

    def connected(serve, use, **options):
        async def main():
            served = asyncio.get_running_loop().create_future()

            async def handler(reader, writer):
                try:
                    served.set_result(await serve(reader, writer))
                except BaseException as error:
                    served.set_exception(error)
                finally:
                    writer.close()

            server = await streams.start_server(handler, "127.0.0.1", 0, **tls[0])
            port = server.sockets[0].getsockname()[1]
            reader, writer = await streams.open_connection("127.0.0.1", port, **tls[1], **options)
            used = await use(reader, writer)
            writer.close()
            server.close()
            return used, await served

        return run(main())

    return connected


def sends(*pieces):
    async def serve(reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return serve


def test_what_is_read(connected):
    async def use(reader, writer):
        assert not reader.at_eof() and reader.exception() is None
        assert await reader.readuntil() == b"one\n" and await reader.readuntil(b"\r\n") == b"two\r\n"
        assert await reader.readuntil(b"separator") == b"three separator"
        assert await reader.readline() == b"\n" and await reader.readexactly(4) == b"four"
        assert await reader.read(0) == b"" and await reader.readexactly(0) == b""
        for wrong in (lambda: reader.readexactly(-1), lambda: reader.readuntil(b"")):
            with pytest.raises(ValueError):
                await wrong()
        assert await reader.read(1) == b"f"
        assert await reader.read() == b"ive"
        assert reader.at_eof() and await reader.read() == await reader.read(5) == await reader.readline() == b""
        with pytest.raises(asyncio.IncompleteReadError) as ended:
            await reader.readexactly(3)
        assert (ended.value.partial, ended.value.expected) == (b"", 3)
        with pytest.raises(asyncio.IncompleteReadError) as ended:
            await reader.readuntil(b"\n")
        assert (ended.value.partial, ended.value.expected) == (b"", None)

    connected(sends(b"one\ntwo\r", b"\nthree sep", b"arator\nfourf", b"ive"), use)


def test_what_ends_early_is_in_the_error_and_gone(connected):
    async def use(reader, writer):
        with pytest.raises(asyncio.IncompleteReadError) as ended:
            await reader.readexactly(100)
        assert (ended.value.partial, ended.value.expected) == (b"not enough", 100)
        assert await reader.read() == b"" and reader.at_eof()
        assert isinstance(ended.value, EOFError)

    connected(sends(b"not ", b"enough"), use)


def test_a_last_line_needs_no_end(connected):
    async def use(reader, writer):
        return [line async for line in reader]

    assert connected(sends(b"one\ntw", b"o\n\nthree"), use)[0] == [b"one\n", b"two\n", b"\n", b"three"]


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"--end--"])
def test_what_an_overrun_says_can_be_consumed_ends_before_the_separator(connected, separator):
    """As programs go on that skip what is too long."""
    lines = [b"x" * 300, b"short", b"y" * 63, b"z" * 64, b"a" * 65, b"-" * 100, b"\r" * 100, b"last"]

    async def use(reader, writer):
        got, skipped = [], b""
        while len(got) < len(lines):
            try:
                got.append(skipped + await reader.readuntil(separator))
                skipped = b""
            except asyncio.LimitOverrunError as overrun:
                assert overrun.consumed > 0
                skipped += await reader.readexactly(overrun.consumed)
        return got

    stream = separator.join(lines) + separator
    got, _ = connected(sends(*[stream[start : start + 40] for start in range(0, len(stream), 40)]), use, limit=64)
    assert got == [line + separator for line in lines]


def test_one_reader_at_a_time(connected):
    async def use(reader, writer):
        first = asyncio.ensure_future(reader.readexactly(4))
        await asyncio.sleep(0)
        for other in (reader.read(1), reader.readline(), reader.readexactly(1)):
            with pytest.raises(RuntimeError, match="already waiting"):
                await other
        writer.write(b"go")
        assert await first == b"gone"

    async def serve(reader, writer):
        await reader.readexactly(2)
        writer.write(b"gone")

    connected(serve, use)


def test_the_end_of_what_is_written(connected, tls):
    async def serve(reader, writer):
        got = await (reader.readexactly(200_000) if tls[0] else reader.read())
        writer.write(got[-3:])
        await writer.drain()
        return len(got)

    async def use(reader, writer):
        writer.writelines([b"x" * 100_000, bytearray(b"y" * 99_997), memoryview(b"end")])
        if tls[0]:
            assert not writer.can_write_eof()
            with pytest.raises(NotImplementedError):
                writer.write_eof()
        else:
            assert writer.can_write_eof()
            writer.write_eof()
            with pytest.raises(RuntimeError):
                writer.write(b"more")
        assert await reader.read() == b"end"

    assert connected(serve, use)[1] == 200_000


def test_tls_has_no_half_close_whatever_waits_to_be_sent(run, contexts, streams):
    async def main():
        go = asyncio.Event()

        async def serve(reader, writer):
            await go.wait()
            assert len(await reader.readexactly(20_000_000)) == 20_000_000
            writer.write(b"all")
            writer.close()

        server = await streams.start_server(serve, "127.0.0.1", 0, ssl=contexts[0])
        reader, writer = await streams.open_connection(
            "127.0.0.1", server.sockets[0].getsockname()[1], ssl=contexts[1], server_hostname="localhost")
        writer.write(bytes(20_000_000))
        with pytest.raises(NotImplementedError):
            writer.write_eof()
        go.set()
        assert await reader.readexactly(3) == b"all"
        writer.close()
        server.close()

    run(main())


def test_what_a_writer_tells(connected, tls):
    async def use(reader, writer):
        assert writer.transport.get_extra_info("socket") is not None and not writer.is_closing()
        assert writer.get_extra_info("peername")[0] == writer.get_extra_info("sockname")[0] == "127.0.0.1"
        assert writer.get_extra_info("nothing") is None and writer.get_extra_info("nothing", 5) == 5
        assert (writer.get_extra_info("ssl_object") is not None) == bool(tls[0])
        writer.write(b"")
        writer.close()
        assert writer.is_closing()
        writer.close()
        await writer.wait_closed()
        assert writer.is_closing()

    async def serve(reader, writer):
        return await reader.read()

    assert connected(serve, use)[1] == b""


def test_a_reset_is_in_every_call(run, streams):
    async def main():
        async def serve(reader, writer):
            await reader.readexactly(5)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        server = await streams.start_server(serve, "127.0.0.1", 0)
        reader, writer = await streams.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(b"hello")
        for read in (reader.read(), reader.readexactly(1), reader.readline(), reader.read(1), writer.drain()):
            with pytest.raises(ConnectionResetError):
                await read
        assert isinstance(reader.exception(), ConnectionResetError)
        writer.close()
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()
        server.close()

    run(main())


def test_a_connection_that_is_forgotten_is_closed(run, tls, streams):
    async def main():
        ended = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            try:
                ended.set_result(await reader.read())
            except ConnectionResetError:
                ended.set_result(b"reset")
            writer.close()

        server = await streams.start_server(serve, "127.0.0.1", 0, **tls[0])
        reader, writer = await streams.open_connection("127.0.0.1", server.sockets[0].getsockname()[1], **tls[1])
        with pytest.warns(ResourceWarning, match="unclosed"):
            del reader, writer
            gc.collect()
        assert await ended in (b"", b"reset")
        server.close()

    run(main())


def test_readers_that_are_fed(run, streams):
    async def main():
        reader = streams.StreamReader(limit=8)
        waiting = asyncio.ensure_future(reader.readexactly(6))
        await asyncio.sleep(0)
        for piece in (b"fed", b"", bytearray(b"more, \n")):
            reader.feed_data(piece)
        assert await waiting == b"fedmor" and not reader.at_eof()
        assert await reader.readline() == b"e, \n"
        reader.feed_data(b"the end")
        reader.feed_eof()
        assert not reader.at_eof() and await reader.read() == b"the end" and reader.at_eof()
        failed = streams.StreamReader()
        waiting = asyncio.ensure_future(failed.readline())
        await asyncio.sleep(0)
        failed.set_exception(ZeroDivisionError())
        for read in (waiting, failed.read()):
            with pytest.raises(ZeroDivisionError):
                await read
        assert isinstance(failed.exception(), ZeroDivisionError)

    run(main())


def test_a_protocol_that_feeds_a_reader_is_held_up(run, streams):
    """asyncio.StreamReaderProtocol, and programs that have their own."""

    class Transport(asyncio.Transport):
        reading = True

        def pause_reading(self):
            self.reading = False

        def resume_reading(self):
            self.reading = True

    async def main():
        reader, transport = streams.StreamReader(limit=1000), Transport()
        protocol = asyncio.StreamReaderProtocol(reader)
        protocol.connection_made(transport)
        for _ in range(25):
            protocol.data_received(b"x" * 100)
        assert not transport.reading
        assert await reader.readexactly(2000) == b"x" * 2000
        assert transport.reading
        protocol.eof_received()
        assert await reader.read() == b"x" * 500

    run(main())


@pytest.mark.parametrize("side", ["client", "server"])
def test_what_arrived_in_plain_is_not_taken_for_encrypted(run, contexts, side):
    """Whoever is between the two may put plain bytes in front of the handshake."""

    async def main():
        seen = asyncio.get_running_loop().create_future()

        async def upgrade(reader, writer, context, **options):
            while not reader.at_eof() and len(reader._rope) < 8:
                await asyncio.sleep(0.01)
            assert await reader.readline() == b"go\n"
            with pytest.raises(RuntimeError, match="5 bytes arrived before TLS"):
                await writer.start_tls(context, **options)
            assert await reader.readexactly(5) == b"plain"
            writer.close()

        async def inject(reader, writer):
            writer.write(b"go\nplain")
            await reader.read()
            writer.close()

        async def serve(reader, writer):
            try:
                await (inject(reader, writer) if side == "client" else upgrade(reader, writer, contexts[0]))
                seen.set_result(None)
            except BaseException as error:
                seen.set_exception(error)

        server = await ropewalk.asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await ropewalk.asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        if side == "client":
            await upgrade(reader, writer, contexts[1], server_hostname="localhost")
        else:
            await inject(reader, writer)
        await seen
        server.close()

    run(main())


def test_what_is_no_pool_and_no_limit_is_told_at_once(run, tmp_path):
    async def main():
        for wrong, why in (({"pool": 0}, TypeError), ({"pool": ""}, TypeError), ({"pool": "pool"}, TypeError),
                           ({"limit": -1}, ValueError), ({"limit": 1.5}, TypeError), ({"limit": 1 << 70}, OverflowError)):
            for call in (
                lambda **options: ropewalk.asyncio.open_connection("127.0.0.1", 1, **options),
                lambda **options: ropewalk.asyncio.open_unix_connection(str(tmp_path / "none"), **options),
                lambda **options: ropewalk.asyncio.start_server(print, "127.0.0.1", 0, **options),
                lambda **options: ropewalk.asyncio.start_unix_server(print, str(tmp_path / "socket"), **options),
            ):
                with pytest.raises(why):
                    await call(**wrong)
            with pytest.raises(why):
                ropewalk.asyncio.StreamReader(**wrong)

    run(main())


def test_an_overrun_has_the_numbers(run):
    import pickle

    async def main():
        reader = ropewalk.asyncio.StreamReader(limit=10)
        reader.feed_data(b"x" * 30)
        with pytest.raises(ropewalk.asyncio.LimitOverrunError, match="10 bytes") as overrun:
            await reader.readline()
        copy = pickle.loads(pickle.dumps(overrun.value))
        for error in (overrun.value, copy):
            assert (error.limit, error.held, error.consumed) == (10, 30, 30) and isinstance(error, OSError)
            assert isinstance(error, ropewalk.LimitExceeded) and "10 bytes" in str(error)
        for read in (reader.read_view(), reader.read(), reader.readexactly(31), reader.read_view(31)):
            with pytest.raises(ropewalk.LimitExceeded) as refused:
                await read
            assert (refused.value.limit, refused.value.held) == (10, 30)
        assert await reader.readexactly(30) == b"x" * 30

    run(main())


def test_a_view_after_an_error(run, pool):
    """Whatever ended the stream, what had arrived is read first, and the error told then."""

    async def main():
        reader = ropewalk.asyncio.StreamReader(pool)
        reader.feed_data(b"arrived")
        reader.set_exception(ConnectionResetError("reset"))
        for read in (reader.read_view, reader.read, lambda: reader.read_view(8), lambda: reader.readuntil(b"\n")):
            with pytest.raises(ConnectionResetError):
                await read()
        assert await reader.read_view(3) == b"arr" and await reader.read(10) == b"ived"
        with pytest.raises(ConnectionResetError):
            await reader.read_view(1)
        assert await reader.read_view(0) == b""
        for wrong in (None, "1", 1.5):
            for read in (reader.read_view, reader.readexactly, reader.read):
                with pytest.raises((TypeError, ConnectionResetError)):
                    await read(wrong)

    run(main())


def test_what_is_written_behind_the_end_is_no_loss(run, tls, streams):
    """Behind close it may be sent, as long as what was written before is not; behind write_eof it is refused."""
    async def main():
        go, got = asyncio.Event(), []

        async def handler(reader, writer):
            await go.wait()
            got.append(await reader.read())
            writer.close()

        server = await streams.start_server(handler, "127.0.0.1", 0, **tls[0])
        port = server.sockets[0].getsockname()[1]
        for size in (5, 20_000_000):
            for end in ("close", "write_eof"):
                _, writer = await streams.open_connection("127.0.0.1", port, **tls[1])
                if end == "write_eof" and tls[0]:
                    writer.close()
                    continue
                writer.write(b"x" * size)
                getattr(writer, end)()
                for more in (b"more", bytes(200_000), bytearray(b"more"), memoryview(b"more")):
                    if end == "close":
                        writer.write(more)
                        if streams is ropewalk.asyncio:
                            writer.writelines([more, more])  # fails behind the end of asyncio's own, in 3.13
                    else:
                        with pytest.raises(RuntimeError, match="write_eof"):
                            writer.write(more)
                if end == "close" and not tls[0]:
                    writer.write_eof()
                getattr(writer, end)()
                go.set()
                writer.close()
                assert writer.is_closing()
                await writer.wait_closed()
                while not got:
                    await asyncio.sleep(0.01)
                data = got.pop()
                assert data[:size] == b"x" * size and (end == "close" or len(data) == size)
                go.clear()
        server.close()

    run(main())


def test_a_line_beyond_the_limit_is_a_value_error(connected):
    async def use(reader, writer):
        with pytest.raises(ValueError):
            await reader.readline()

    connected(sends(b"x" * 200), use, limit=64)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio's own takes one separator")
def test_separators_in_a_tuple(connected):
    async def use(reader, writer):
        assert await reader.readuntil((b"\r\n", b"\n")) == b"one\n"
        assert await reader.readuntil((b"\n", b"\r\n")) == b"two\r\n"
        assert await reader.readuntil((b"--end--", b"e", b"zz")) == b"thre"
        assert await reader.readuntil((b"--end--", b"end")) == b"e --end"
        assert await reader.readuntil((b"--xyz--", memoryview(b"--abc--"))) == b"----abc--"
        for wrong in ((), (b"",), (b"x", b"")):
            with pytest.raises(ValueError):
                await reader.readuntil(wrong)
        for wrong in ("x", (b"x", "x"), 5, None, [5]):
            with pytest.raises(TypeError):
                await reader.readuntil(wrong)
        with pytest.raises(asyncio.IncompleteReadError) as ended:
            await reader.readuntil((b"abcd", b"xyz"))
        assert (ended.value.partial, ended.value.expected) == (b"abcxy", None)

    connected(sends(b"one\ntwo\r", b"\nthree --", b"end--", b"--a", b"bc--ab", b"cxy"), use)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of 3.12")
def test_handlers_that_begin_at_once(run, tls, streams):
    if run.loop == "uvloop":
        pytest.skip("uvloop's tasks cannot be eager")

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def handler(reader, writer):
            writer.write(b"hello")
            writer.close()

        server = await streams.start_server(handler, "127.0.0.1", 0, **tls[0])
        port = server.sockets[0].getsockname()[1]
        for _ in range(3):
            reader, writer = await streams.open_connection("127.0.0.1", port, **tls[1])
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="a server's clients are of 3.13")
@pytest.mark.parametrize("end", ["close_clients", "abort_clients"])
def test_a_server_ends_its_clients(run, tls, streams, end):
    if run.loop == "uvloop":
        pytest.skip("uvloop's servers have no such method")

    async def main():
        served = asyncio.Queue()

        async def handler(reader, writer):
            writer.write(b"hello")
            try:
                served.put_nowait(await reader.read())
            except Exception as error:
                served.put_nowait(error)

        server = await streams.start_server(handler, "127.0.0.1", 0, **tls[0])
        port = server.sockets[0].getsockname()[1]
        reader, writer = await streams.open_connection("127.0.0.1", port, **tls[1])
        assert await reader.readexactly(5) == b"hello"
        server.close()
        getattr(server, end)()
        assert await served.get() == b""
        try:
            assert await reader.read() == b""
        except ConnectionError:
            assert end == "abort_clients"
        writer.close()
        await server.wait_closed()

    run(main())


async def held_up(streams, port, tls):
    """A connection whose reader waits for room in a full pool, and what fills it."""
    pool = ropewalk.Pool(capacity=1 << 20)
    held = ropewalk.Rope(pool)
    held.reserve(1 << 20)
    reader, writer = await ropewalk.asyncio.open_connection("127.0.0.1", port, pool=pool, **tls[1])
    waiting = asyncio.ensure_future(reader.readexactly(100))
    while not pool.stats().waiting:
        await asyncio.sleep(0.01)
    return held, reader, writer, waiting


@pytest.mark.parametrize("end", ["abort", "feed_eof", "set_exception", "feed_data"])
def test_who_waits_for_room_is_told_of_the_end(run, tls, end):
    async def main():
        server = await asyncio.start_server(sends(b"x" * 100), "127.0.0.1", 0, **tls[0])
        port = server.sockets[0].getsockname()[1]
        held, reader, writer, waiting = await held_up(ropewalk.asyncio, port, tls)
        {"abort": writer.transport.abort, "feed_eof": reader.feed_eof, "feed_data": lambda: reader.feed_data(b"y" * 100),
         "set_exception": lambda: reader.set_exception(ZeroDivisionError())}[end]()
        if end == "feed_data":
            assert (await waiting).endswith(b"y")
        else:
            with pytest.raises(ZeroDivisionError if end == "set_exception" else asyncio.IncompleteReadError):
                await waiting
        assert held.find(b"x") is None
        writer.close()
        server.close()

    run(main())


def test_one_reader_at_a_time_waits_for_room(run, tls):
    async def main():
        server = await asyncio.start_server(sends(b"x" * 100), "127.0.0.1", 0, **tls[0])
        port = server.sockets[0].getsockname()[1]
        held, reader, writer, waiting = await held_up(ropewalk.asyncio, port, tls)
        with pytest.raises(RuntimeError, match="already waiting"):
            await reader.readexactly(100)
        held.clear()
        assert await waiting == b"x" * 100
        writer.close()
        server.close()

    run(main())


def test_a_rope_of_many_pieces_waits_for_its_peer(run, tls):
    """Some versions of asyncio's transports do not say that they are full behind `writelines`."""
    async def main():
        go, size = asyncio.Event(), 50_000_000

        async def handler(reader, writer):
            await go.wait()
            assert await reader.readexactly(size) == b"x" * size
            writer.close()

        server = await asyncio.start_server(handler, "127.0.0.1", 0, **tls[0])
        port = server.sockets[0].getsockname()[1]
        reader, writer = await ropewalk.asyncio.open_connection("127.0.0.1", port, **tls[1])
        rope = ropewalk.Rope()
        for _ in range(size // 1000):
            rope.push(b"x" * 1000)
        writer.write(rope)
        assert writer.transport.get_write_buffer_size() < size // 2
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.2)
        go.set()
        await writer.drain()
        assert await reader.read() == b""
        writer.close()
        server.close()

    run(main())
