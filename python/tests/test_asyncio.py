"""Streams, on asyncio and on uvloop, plain and through TLS, against asyncio's own peers."""

import array
import asyncio
import gc
import os
import socket
import struct
import threading
import warnings

import pytest

import ropewalk
import ropewalk.asyncio


async def serve(handler, tls, module=asyncio, **options):
    """A server of asyncio's own; returns it and its address."""
    server = await module.start_server(handler, "127.0.0.1", 0, **tls[0], **options)
    return server, server.sockets[0].getsockname()[1]


async def connect(port, tls, **options):
    return await ropewalk.asyncio.open_connection("127.0.0.1", port, **tls[1], **options)


def sends(*pieces, pause=0):
    async def handler(reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause is not None:
                await asyncio.sleep(pause)
        writer.close()

    return handler


def with_peer(run, tls, handler, use, **options):
    """Runs `use(reader, writer)` against asyncio's own server."""

    async def main():
        server, port = await serve(handler, tls)
        reader, writer = await connect(port, tls, **options)
        try:
            return await use(reader, writer)
        finally:
            writer.close()
            server.close()

    return run(main())


def test_all_of_it_as_one_view(run, tls, data, pool):
    async def use(reader, writer):
        view = await reader.read_view()
        assert reader.at_eof() and await reader.read_view() == b"" and await reader.read() == b""
        return view

    view = with_peer(run, tls, sends(data), use, pool=pool)
    assert isinstance(view, ropewalk.View) and view == data
    del view


def test_the_names_people_know(run, tls, pool):
    async def use(reader, writer):
        assert await reader.readexactly(5) == b"exact"
        assert await reader.readuntil(b"\r\n") == b"until\r\n"
        assert await reader.readline() == b"line\n"
        assert await reader.read_view(4) == b"view"
        assert 1 <= len(await reader.read(2)) <= 2
        assert await reader.read(0) == b"" and await reader.readexactly(0) == b""
        rest = await reader.read()
        assert rest.endswith(b"rest") and isinstance(rest, bytes)
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(1)
        assert await reader.readline() == b""

    with_peer(run, tls, sends(b"exactuntil\r\nline\nviewrest of the rest"), use, pool=pool)


def test_lines_are_iterated(run, tls):
    async def use(reader, writer):
        return [line async for line in reader]

    assert with_peer(run, tls, sends(b"one\ntw", b"o\nthree"), use) == [b"one\n", b"two\n", b"three"]


def test_one_byte_at_a_time(run, tls, pool):
    message = bytes(range(256)) + b"\r\n" + b"body" * 50

    async def use(reader, writer):
        assert await reader.readuntil(b"\r\n") == bytes(range(12)) + bytes(range(12, 256)) + b"\r\n"
        assert await reader.read_view(200) == b"body" * 50

    pieces = [message[index : index + 1] for index in range(len(message))]
    with_peer(run, tls, sends(*pieces, pause=None), use, pool=pool)


def test_what_ends_before_is_told_with_what_there_was(run, tls):
    async def use(reader, writer):
        with pytest.raises(asyncio.IncompleteReadError) as incomplete:
            await reader.readexactly(100)
        assert incomplete.value.partial == b"not enough" and incomplete.value.expected == 100

    with_peer(run, tls, sends(b"not enough"), use)

    async def use(reader, writer):
        with pytest.raises(asyncio.IncompleteReadError) as incomplete:
            await reader.readuntil(b"\n")
        assert incomplete.value.partial == b"no line"
        assert await reader.read_view(5) == b""

    with_peer(run, tls, sends(b"no line"), use)


def test_separators_may_be_several_and_lie_across_pieces(run, tls):
    async def use(reader, writer):
        assert await reader.readuntil((b";;", b"\n")) == b"one\n"
        assert await reader.readuntil((b"\n", b";;")) == b"two;;"
        for wrong in (b"", (), (b"x", b"")):
            with pytest.raises(ValueError):
                await reader.readuntil(wrong)
        with pytest.raises(ValueError):
            await reader.readexactly(-1)

    with_peer(run, tls, sends(b"one", b"\ntwo;", b";three", pause=0.01), use)


@pytest.mark.parametrize("first", ["read_view", "readexactly"])
def test_a_limit_is_hard_and_loses_nothing(run, tls, pool, first):
    async def use(reader, writer):
        one_more = getattr(reader, first)
        for read in (lambda: one_more(1001), reader.read_view, reader.read, lambda: reader.readexactly(5000)):
            with pytest.raises(ropewalk.LimitExceeded) as refused:
                await read()
            assert refused.value.limit == 1000
        with pytest.raises(asyncio.LimitOverrunError) as overrun:
            await reader.readuntil(b"\n")
        assert isinstance(overrun.value, ropewalk.LimitExceeded) and overrun.value.consumed >= 1000
        got = b""
        while len(got) < 5000:
            got += await reader.readexactly(500)
        assert got == b"x" * 5000
        assert await reader.read_view() == b"end"

    with_peer(run, tls, sends(b"x" * 5000, b"end"), use, limit=1000, pool=pool)


def test_a_payload_of_exactly_the_limit_is_taken(run, tls, pool):
    async def use(reader, writer):
        assert len(await reader.read_view()) == 1000

    with_peer(run, tls, sends(b"x" * 1000), use, limit=1000, pool=pool)


def test_who_does_not_read_holds_little(run, tls, pool):
    sent = 0

    async def handler(reader, writer):
        nonlocal sent
        for _ in range(300):
            writer.write(bytes(100_000))
            await writer.drain()
            sent += 100_000
        writer.close()

    async def use(reader, writer):
        await asyncio.sleep(0.5)
        assert sent < 25_000_000, "the peer is held up"
        assert pool.stats().in_use < 3 << 20
        total = 0
        while data := await reader.read(1 << 16):
            total += len(data)
        assert total == 30_000_000

    with_peer(run, tls, handler, use, pool=pool)


def test_a_full_pool_makes_readers_wait(run, tls):
    """Ten payloads of a megabyte each through a pool of four: those who find no room wait for it."""
    pool, payload = ropewalk.Pool(capacity=4 << 20), os.urandom(1_000_000)

    async def main():
        server, port = await serve(sends(payload), tls)

        async def receive():
            reader, writer = await connect(port, tls, pool=pool)
            try:
                assert await reader.read_view() == payload
                return True
            except ropewalk.PoolFull:
                return False
            finally:
                writer.close()

        served = await asyncio.gather(*(receive() for _ in range(10)))
        server.close()
        # Those that had all of the pool together, and would have waited for each other, were told.
        assert sum(served) >= 3

    run(main())
    gc.collect()
    assert pool.stats().in_use == 0 and pool.stats().waiting == 0


def test_who_waits_gets_the_room_that_others_give_back(run, tls):
    pool = ropewalk.Pool(capacity=2 << 20)

    held = ropewalk.Rope(pool)
    held.reserve(2 << 20)

    async def use(reader, writer):
        waiting = asyncio.ensure_future(reader.read_view())
        await asyncio.sleep(0.1)
        assert not waiting.done() and pool.stats().waiting == 1
        held.clear()
        assert await waiting == b"y" * 500_000

    with_peer(run, tls, sends(b"y" * 500_000), use, pool=pool)


def test_a_payload_that_no_waiting_makes_room_for_is_refused(run, tls):
    pool = ropewalk.Pool(capacity=1 << 20)

    async def use(reader, writer):
        with pytest.raises(ropewalk.PoolFull) as refused:
            await reader.read_view()
        assert refused.value.capacity == 1 << 20
        total = 0
        while data := await reader.read(100_000):
            total += len(data)
        assert total == 3_000_000

    with_peer(run, tls, sends(b"z" * 3_000_000), use, pool=pool)


def test_loops_of_several_threads_share_a_pool():
    pool, payload, served, failed = ropewalk.Pool(capacity=4 << 20), os.urandom(1_000_000), [], []

    async def receive(port):
        reader, writer = await connect(port, ({}, {}), pool=pool)
        try:
            served.append(await reader.read_view() == payload)
        except ropewalk.PoolFull:
            pass  # those who wait hold all of it
        finally:
            writer.close()

    async def main():
        server, port = await serve(sends(payload), ({}, {}))
        for _ in range(3):
            await asyncio.gather(*(receive(port) for _ in range(5)))
        server.close()

    def loop():
        try:
            asyncio.run(asyncio.wait_for(main(), 120))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and served and all(served)
    gc.collect()
    assert pool.stats().in_use == 0 and pool.stats().waiting == 0


def test_another_threads_readers_may_begin_to_wait_while_waiters_are_counted(pool):
    waiting = set()

    class Reader:
        @property
        def _rope(self):
            waiting.add(Reader())
            return b""

    waiting.add(Reader())
    assert not ropewalk.asyncio._holds_all(waiting, pool)


def test_waiting_for_room_is_cancelled_without_a_trace(run, tls):
    pool = ropewalk.Pool(capacity=1 << 20)

    held = ropewalk.Rope(pool)
    held.reserve(1 << 20)

    async def use(reader, writer):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read_view(), 0.2)
        assert pool.stats().waiting == 0
        held.clear()
        assert await reader.read_view() == b"v" * 100_000

    with_peer(run, tls, sends(b"v" * 100_000), use, pool=pool)


READS = {
    "read_view": lambda reader: reader.read_view(100_000),
    "readexactly": lambda reader: reader.readexactly(100_000),
    "readuntil": lambda reader: reader.readuntil(b"|"),
    "read": lambda reader: reader.read(100_000),
    "readline": lambda reader: reader.readline(),
}


@pytest.mark.parametrize("read", READS)
def test_cancelled_at_every_await_nothing_is_lost(run, tls, read, pool):
    """Cancels each read once more of the loop has run, until it was run to its end; compares the whole stream."""
    stream = b"".join(b"%06d%s" % (index, b"|\n"[index % 2 :][:1]) for index in range(20_000))

    async def handler(reader, writer):
        for start in range(0, len(stream), 3_000):
            writer.write(stream[start : start + 3_000])
            await asyncio.sleep(0.002 if start < 30_000 else 0)
        await writer.drain()
        writer.close()

    async def use(reader, writer):
        got, patience = bytearray(), 0
        while not reader.at_eof():
            task = asyncio.ensure_future(READS[read](reader))
            for _ in range(patience % 7):
                await asyncio.sleep(0)
            task.cancel()
            try:
                got += await task
            except asyncio.CancelledError:
                patience += 1
                if patience > 300:
                    got += await reader.read(50_000)
            except asyncio.IncompleteReadError as incomplete:
                got += incomplete.partial
        assert got == stream and patience > 0

    with_peer(run, tls, handler, use, pool=pool)


def test_connecting_is_cancelled_at_every_turn(run, tls, pool):
    """Each connection ends for the server too, and no descriptor is left."""

    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    async def main():
        served = []

        async def handler(reader, writer):
            served.append(await reader.read())
            writer.close()

        server, port = await serve(handler, tls, ropewalk.asyncio, pool=pool)
        before, connected, turns = descriptors(), 0, 0
        while connected < 5:
            task = asyncio.ensure_future(connect(port, tls, pool=pool))
            for _ in range(turns):
                await asyncio.sleep(0 if turns < 50 else 0.001)
            task.cancel()
            try:
                _, writer = await task
            except asyncio.CancelledError:
                turns += 1
            else:
                connected += 1
                writer.close()
                del writer
        for _ in range(500):
            if descriptors() <= before and len(served) >= connected:
                break
            await asyncio.sleep(0.01)
        assert descriptors() <= before and turns > 0 and set(served) == {b""}
        server.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        run(main())


def test_draining_is_cancelled_at_every_turn(run, tls, data):
    async def main():
        got = bytearray()

        async def handler(reader, writer):
            while len(got) < len(data):
                got.extend(await reader.read(50_000))
                await asyncio.sleep(0)
            writer.write(b"all")
            writer.close()

        server, port = await serve(handler, tls)
        reader, writer = await connect(port, tls)
        turns, rope = 0, ropewalk.Rope()
        for start in range(0, len(data), 100_000):
            rope.push(data[start : start + 100_000])
            writer.write(rope)
            rope.clear()
            draining = asyncio.ensure_future(writer.drain())
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            draining.cancel()
            turns += 1
        await writer.drain()
        assert await reader.readexactly(3) == b"all" and got == data
        writer.close()
        server.close()

    run(main())


def test_a_second_reader_is_refused(run, tls):
    async def use(reader, writer):
        first = asyncio.ensure_future(reader.readexactly(8))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="already waiting"):
            await reader.read_view(9)
        assert await first == b"fourmore"

    with_peer(run, tls, sends(b"four", b"more", pause=0.2), use)


def test_a_reset_is_told_once_what_had_arrived_is_read(run, pool):
    async def handler(reader, writer):
        writer.write(b"arrived")
        await asyncio.sleep(0.1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def use(reader, writer):
        with pytest.raises(ConnectionResetError):
            await reader.read_view()
        assert await reader.readexactly(7) == b"arrived"
        assert isinstance(reader.exception(), ConnectionResetError)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionResetError):
            writer.write(bytes(1 << 20))
            await writer.drain()

    with_peer(run, ({}, {}), handler, use, pool=pool)


# Writing.


def collects(into):
    async def handler(reader, writer):
        into.extend(await reader.read())
        writer.close()

    return handler


def echo_server(module):
    async def handler(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    return handler


def test_ropes_views_and_buffers_are_written(run, data, pool):
    got, rope = bytearray(), ropewalk.Rope(pool)
    for start in range(0, len(data), 700):
        rope.push(data[start : start + 700])

    async def use(reader, writer):
        writer.write(b"begin ")
        writer.write(rope)
        writer.write(bytearray(b" then "))
        writer.write(rope[:1000].finalize())
        writer.writelines([b" and", memoryview(b" "), rope[1000:2000]])
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        assert len(rope) == len(data), "a rope that was written is left as it is"
        await reader.read()

    with_peer(run, ({}, {}), collects(got), use)
    assert got == b"begin " + data + b" then " + data[:1000] + b" and " + data[1000:2000] + data
    rope.clear()


def test_any_contiguous_buffer_is_written_as_its_bytes(run, tls):
    """Whether or not something waits to be sent before it."""
    items, got = array.array("I", range(1_000_000)), bytearray()
    table = memoryview(items).cast("B").cast("I", (1000, 1000))

    async def use(reader, writer):
        for data in (items, memoryview(items), table, memoryview(items)[:10], memoryview(b"")):
            writer.write(data)
        await writer.drain()
        assert await reader.readexactly(3) == b"all"

    async def handler(reader, writer):
        await asyncio.sleep(0.1)
        got.extend(await reader.readexactly(3 * len(bytes(items)) + 40))
        writer.write(b"all")
        writer.close()

    with_peer(run, tls, handler, use)
    assert got == 3 * bytes(items) + bytes(items[:10])


def test_what_is_no_contiguous_buffer_is_not_written(run, tls, data):
    got = bytearray()

    async def handler(reader, writer):
        await asyncio.sleep(0.1)
        got.extend(await reader.readexactly(len(data) + 4))
        writer.write(b"all")
        writer.close()

    async def use(reader, writer):
        rope = ropewalk.Rope()
        rope.push(data)
        for waiting in (rope, b"last"):
            for wrong in (None, 5, "text", [1, 2], memoryview(b"0123")[::2]):
                with pytest.raises((TypeError, BufferError)):
                    writer.write(wrong)
            writer.write(waiting)
        assert await reader.readexactly(3) == b"all"

    with_peer(run, tls, handler, use)
    assert got == data + b"last"


def test_what_was_written_before_close_is_sent(run, tls, data):
    async def main():
        got, ended = bytearray(), asyncio.Event()

        async def handler(reader, writer):
            while more := await reader.read(1 << 20):
                got.extend(more)
                await asyncio.sleep(0)
            writer.close()
            ended.set()

        server, port = await serve(handler, tls)
        reader, writer = await connect(port, tls)
        rope = ropewalk.Rope()
        rope.push(data)
        writer.write(rope)
        writer.close()
        assert writer.is_closing()
        await ended.wait()
        await writer.wait_closed()
        assert got == data
        server.close()

    run(main())


def test_drain_waits_until_the_rope_is_with_the_transport(run, tls, data):
    async def main():
        go = asyncio.Event()

        async def handler(reader, writer):
            await go.wait()
            assert await reader.readexactly(4 * len(data)) == 4 * data
            writer.close()

        server, port = await serve(handler, tls)
        reader, writer = await connect(port, tls)
        rope = ropewalk.Rope()
        for _ in range(4):
            rope.push(data)
        writer.write(rope)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.2)
        go.set()
        await writer.drain()
        assert await reader.read_view() == b""
        writer.close()
        server.close()

    run(main())


def test_our_server_and_our_client(run, tls, data, pool):
    async def main():
        async def handler(reader, writer):
            view = await reader.read_view(len(data))
            writer.write(view)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server, port = await serve(handler, tls, ropewalk.asyncio, pool=pool)

        async def client():
            reader, writer = await connect(port, tls, pool=pool)
            writer.write(data)
            assert await reader.read_view() == data
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client() for _ in range(5)))
        server.close()
        await server.wait_closed()

    run(main())


def test_a_handler_that_fails_closes_its_connection(run):
    async def main():
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))

        async def handler(reader, writer):
            raise ZeroDivisionError

        server, port = await serve(handler, ({}, {}), ropewalk.asyncio)
        reader, writer = await connect(port, ({}, {}))
        assert await reader.read() == b""
        writer.close()
        server.close()
        assert isinstance(reports[0]["exception"], ZeroDivisionError)

    run(main())


def test_a_plain_function_is_called_for_each_connection(run):
    async def main():
        made = asyncio.get_running_loop().create_future()
        server, port = await serve(lambda reader, writer: made.set_result(writer), ({}, {}), ropewalk.asyncio)
        reader, writer = await connect(port, ({}, {}))
        (await made).write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        (await made).close()
        writer.close()
        server.close()

    run(main())


def test_a_connection_on_which_nothing_arrives_holds_no_page(run, tls, pool):
    """Nor does one whose end has arrived. TLS reads what is no data, session tickets."""

    async def main():
        readers = []
        server, port = await serve(lambda reader, writer: readers.append(reader), tls, ropewalk.asyncio, pool=pool)
        connections = [await connect(port, tls, pool=pool) for _ in range(5)]
        await asyncio.sleep(0.2)
        assert pool.stats().in_use == 0
        for _, writer in connections:
            writer.write(b"x" * 64)
        assert [await reader.readexactly(64) for reader in readers] == [b"x" * 64] * 5
        assert pool.stats().in_use == 0
        for _, writer in connections:
            writer.write_eof() if writer.can_write_eof() else writer.close()
        assert [await reader.read() for reader in readers] == [b""] * 5
        await asyncio.sleep(0.1)
        assert pool.stats().in_use == 0
        for reader in readers:
            if reader._transport is not None:
                reader._transport.close()
        for _, writer in connections:
            writer.close()
        server.close()

    run(main())


def test_who_stops_waiting_for_the_end_stops_nobody_else(run, tls, data):
    async def main():
        go = asyncio.Event()

        async def handler(reader, writer):
            await go.wait()
            await reader.read()
            writer.close()

        server, port = await serve(handler, tls)
        _, writer = await connect(port, tls)
        rope = ropewalk.Rope()
        for _ in range(4):
            rope.push(data)
        writer.write(rope)
        writer.close()
        waiting = asyncio.ensure_future(writer.wait_closed())
        for _ in range(2):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 0.05)
        go.set()
        await writer.wait_closed()
        await waiting
        server.close()

    run(main())


def test_starting_tls_on_a_connection(run, contexts, data):
    async def main():
        async def handler(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go\n")
            await writer.start_tls(contexts[0])
            writer.write(await reader.readexactly(len(data)))
            await writer.drain()
            writer.close()

        server, port = await serve(handler, ({}, {}))
        reader, writer = await connect(port, ({}, {}))
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(contexts[1], server_hostname="localhost")
        writer.write(data)
        assert await reader.read_view(len(data)) == data
        writer.close()
        server.close()

    run(main())


def test_unix_sockets(run, tmp_path):
    async def main():
        path = str(tmp_path / "socket")

        async def handler(reader, writer):
            writer.write(await reader.readexactly(4))
            writer.close()

        server = await ropewalk.asyncio.start_unix_server(handler, path)
        reader, writer = await ropewalk.asyncio.open_unix_connection(path)
        writer.write(b"echo")
        assert await reader.read_view() == b"echo"
        writer.close()
        server.close()

    run(main())


def test_nothing_is_left_of_connections(run, tls, pool):
    """No reference cycle keeps a reader, a view or a page once a connection is closed and forgotten."""

    async def main():
        before = asyncio.all_tasks()
        server, port = await serve(echo_server(asyncio), tls)
        for _ in range(20):
            reader, writer = await connect(port, tls, pool=pool)
            writer.write(b"x" * 1000)
            assert await reader.read_view(1000) == b"x" * 1000
            writer.close()
        del reader, writer
        while asyncio.all_tasks() - before:  # the server's, until each has seen the end
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        server.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main())
    gc.collect()
    assert not [made for made in gc.get_objects() if isinstance(made, ropewalk.asyncio.StreamReader)]


def test_readers_can_be_fed(run):
    async def main():
        reader = ropewalk.asyncio.StreamReader()
        reader.feed_data(b"fed")
        reader.feed_eof()
        assert await reader.read_view() == b"fed" and isinstance(reader, asyncio.StreamReader)

    run(main())


def test_payloads_that_grow_beside_each_other_are_not_copied(run, pool):
    payload, count = os.urandom(4 << 20), 8

    async def main():
        async def handler(reader, writer):
            for start in range(0, len(payload), 100_000):
                writer.write(payload[start : start + 100_000])
                await writer.drain()
            writer.close()

        server, port = await serve(handler, ({}, {}))

        async def receive():
            reader, writer = await connect(port, ({}, {}), pool=pool)
            view = await reader.read_view()
            writer.close()
            assert view == payload
            return view

        views = await asyncio.gather(*(receive() for _ in range(count)))
        server.close()
        assert sum(view.copied_bytes for view in views) < count * len(payload) // 100

    run(main())
