"""Forks, multiprocessing, shutdown, subinterpreters and threads: no signal, no leak."""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
import textwrap
import threading

import pytest

import ropewalk

# A function for the programs that `python` runs.
REFUSED = """
import resource

def refused(call, spare):
    "What `call` raises where the process may grow by `spare` bytes only."
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, before[1]))
    try:
        call()
    except MemoryError as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    raise AssertionError("there was memory")
"""


def python(code, *args, **environment):
    """Runs a program of its own, which has to end well and to say nothing on standard error."""
    program = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), *args]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


INHERITED = """
    import os, ropewalk, socket, sys
    pool = ropewalk.Pool(capacity=16 << 20)
    rope = ropewalk.Rope(pool)
    rope.extend(bytes(range(256)) * 4096)
    cursor, part, view = rope.cursor(5), rope[:1000], rope[:].finalize()
    kept, room = memoryview(view), pool.wait_for_room()
    one, other = socket.socketpair()
    one.sendall(b"x")

    def child():
        calls = [
            lambda: rope.recv_from(other), lambda: rope.send_to(one), lambda: bytes(rope), lambda: len(rope),
            lambda: rope.finalize(), lambda: rope.find(b"x"), lambda: rope.push(b"x"), lambda: rope.extend(b"x"),
            lambda: rope.segments(), lambda: rope.get_buffer(), lambda: rope.read(1), lambda: rope.clear(),
            lambda: rope[:5], lambda: rope == b"x", lambda: rope.split_to(1), lambda: rope.reserve(1),
            lambda: cursor.send(one), lambda: cursor.position, lambda: part.advance(1), lambda: repr(rope),
            lambda: view[0], lambda: view[:5], lambda: bytes(view), lambda: memoryview(view), lambda: view == b"x",
            lambda: hash(view), lambda: ropewalk.View(view), lambda: pool.stats(), lambda: pool.trim(),
            lambda: ropewalk.Rope(pool), lambda: room.ready(), lambda: repr(pool), lambda: ropewalk.Rope().push(view),
        ]
        for index, call in enumerate(calls):
            try:
                call()
            except OSError as error:
                assert "forked" in str(error), error
            else:
                raise AssertionError(f"call {index} touched what was inherited")
        assert bytes(kept[:4]) == bytes(range(4)), "what was exported before can be read"
        fresh = ropewalk.Rope()
        fresh.extend(b"made in the child")
        try:
            rope.append(fresh)
        except OSError:
            pass
        assert fresh.finalize() == b"made in the child"
"""


def test_a_child_gets_exceptions(tmp_path):
    python(INHERITED + """
    assert bytes(kept[:4]) == bytes(range(4))
    if (pid := os.fork()) == 0:
        try:
            child()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        rope = cursor = part = view = kept = room = None
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert bytes(rope[:4]) == bytes(range(4)) == view[:4] and len(rope) == 1 << 20
    """)


def test_multiprocessing_by_fork():
    python(INHERITED + """
    import multiprocessing, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0, process.exitcode
    assert rope.finalize() == bytes(range(256)) * 4096
    """)


def test_views_are_sent_to_spawned_processes_by_pickle():
    rope = ropewalk.Rope()
    rope.extend(b"payload" * 1000)
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert workers.apply(len, (rope.finalize(),)) == 7000


@pytest.mark.parametrize("keep", ["view", "rope", "cursor", "room", "cycle", "thread"])
def test_whatever_is_left_at_shutdown(keep):
    python("""
        import ropewalk, socket, sys, threading
        rope = ropewalk.Rope()
        rope.extend(bytes(1 << 20))
        rope.push(bytearray(100))
        class Last:
            def __del__(self):
                self.kept and memoryview(self.kept[:1].finalize() if hasattr(self.kept, "finalize") else self.kept)
        last = Last()
        kept = {"view": lambda: memoryview(rope[:].finalize()), "rope": lambda: rope, "cursor": rope.cursor,
                "room": rope.get_buffer, "cycle": lambda: [rope], "thread": lambda: rope}[sys.argv[1]]()
        if sys.argv[1] == "cycle":
            kept.append(kept)
        last.kept = rope if sys.argv[1] in ("rope", "cycle") else None
        sys.modules["kept"] = kept
        if sys.argv[1] == "thread":
            one, other = socket.socketpair()
            threading.Thread(target=ropewalk.Rope().recv_from, args=(other,), daemon=True).start()
    """, keep)


# What daemon threads do while the interpreter ends. `wake` is called while modules are torn down, when no other thread
# may attach any more.
WAITS = {
    "a socket": """
        one, other = socket.socketpair()
        wake = lambda send=one.send: send(b"x")
    """,
    "a TLS socket": """
        one, other = socket.socketpair()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority = __import__("trustme").CA()
        authority.issue_cert("localhost").configure_cert(server)
        authority.configure_trust(client)
        accepted = []
        accept = threading.Thread(target=lambda: accepted.append(server.wrap_socket(one, server_side=True)))
        accept.start()
        other = client.wrap_socket(other, server_hostname="localhost")
        accept.join()
        wake = lambda send=accepted[0].send: send(b"x")
    """,
    "a file that never ends": """
        other = open("/dev/zero", "rb", buffering=0)
        wake = lambda: None
    """,
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_daemon_thread_that_receives_while_the_interpreter_ends(wait):
    if "TLS" in wait:
        pytest.importorskip("trustme")
    python("import ropewalk, socket, ssl, sys, threading, time" + textwrap.dedent(WAITS[wait]) + textwrap.dedent("""
        class Last:
            def __init__(self):
                self.rope, self.wake, self.sleep = rope, wake, time.sleep

            def __del__(self):
                self.wake()
                self.sleep(0.2)
                len(self.rope)  # waits for no thread that is gone

        def work():
            while rope.recv_from(other):
                if len(rope) > 8 << 20:
                    rope.clear()

        rope = ropewalk.Rope()
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        sys.modules["last"] = Last()
    """))


IN_A_SUBINTERPRETER = """
try:
    import ropewalk
except ImportError:
    print("refused")
else:
    rope = ropewalk.Rope()
    rope.extend(bytes(100_000))
    rope.push(bytearray(10))
    kept = memoryview(rope[:].finalize()), rope.cursor()
    try:
        rope.split_to(1 << 40)
    except IndexError:
        print("used")
"""


@pytest.mark.parametrize("gil", ["its own", "shared"])
@pytest.mark.parametrize("first", ["main", "sub"])
def test_a_subinterpreter_gets_an_exception_unless_it_shares_the_gil(first, gil):
    """As all of CPython 3.11 do: those share the module of the first to import it."""
    out = python("""
        import sys
        try:
            import _interpreters as interpreters
            shared = {"config": "legacy"}
        except ImportError:
            import _xxsubinterpreters as interpreters
            shared = {"isolated": False}
        first, gil, program = sys.argv[1:]
        if first == "main":
            import ropewalk
        for _ in range(3):
            interpreter = interpreters.create(**(shared if gil == "shared" else {}))
            interpreters.run_string(interpreter, program)
            interpreters.destroy(interpreter)
        try:
            import ropewalk
        except ImportError:
            assert first == "sub"
        else:
            rope = ropewalk.Rope()
            rope.extend(b"still here")
            print(bytes(rope))
    """, first, gil, IN_A_SUBINTERPRETER)
    seen = out.splitlines()
    if sys.version_info < (3, 12) or gil == "shared":
        assert seen == ["used"] * 3 + ["b'still here'"]
    elif first == "main":
        assert seen == ["refused"] * 3 + ["b'still here'"]


def test_threads_share_a_pool_and_a_rope(pool):
    shared, errors = ropewalk.Rope(pool), []

    def work(number):
        try:
            for turn in range(200):
                own = ropewalk.Rope(pool)
                own.extend(bytes([number]) * (turn * 37 + 1))
                own.push(bytearray([number]) * 10)
                view = own[:].finalize()
                assert set(view) == {number}
                with own.get_buffer() as room:
                    room[:1] = bytes([number])
                own.buffer_updated(1)
                shared.append(own)
                shared.cursor().remaining, shared[:10], bytes(shared[:100]), shared.find(b"\1\2"), shared.segments()
                if len(shared) > 100_000:
                    shared.clear()
                shared.read(10)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    assert not errors
    shared.clear()
    del shared


def test_the_collector_runs_while_threads_use_ropes_in_cycles():
    python("""
        import gc, ropewalk, sys, threading, time, weakref

        class Source(bytearray):
            pass

        def collect():
            while not done:
                gc.collect()

        def work(number):
            try:
                while time.monotonic() < end:
                    source = Source(bytes([number]) * 5000)
                    rope, alive = ropewalk.Rope(), weakref.ref(source)
                    rope.push(source)
                    source.name, source.made = "source", [rope, rope[4990:], rope.cursor(1), rope.segments()]
                    kept = source.made[number % 4]
                    del source, rope
                    for _ in range(20):
                        if isinstance(kept, ropewalk.Rope):
                            kept.find(b"none"), bytes(kept), kept == kept[:], kept.extend(b"")
                        assert alive().name == "source"
                    del kept
            except BaseException as error:
                failed.append(error)
                raise

        sys.setswitchinterval(1e-5)
        failed, done, end = [], False, time.monotonic() + 5
        threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
        collector = threading.Thread(target=collect)
        for thread in [*threads, collector]:
            thread.start()
        for thread in threads:
            thread.join()
        done = True
        collector.join()
        gc.collect()
        assert not failed and not any(isinstance(left, Source) for left in gc.get_objects())
    """)


def test_the_collector_runs_while_a_thread_is_in_a_call():
    """The call has the rope's lock, detached, until the test lets it go on: the collector neither waits for the call
    nor takes what the rope refers to."""
    python("""
        import faulthandler, fcntl, gc, ropewalk, socket, struct, sys, termios, threading, time, weakref

        class Source(bytearray):
            pass

        def unread():
            return struct.unpack("i", fcntl.ioctl(other, termios.FIONREAD, bytes(4)))[0]

        faulthandler.dump_traceback_later(60, exit=True)  # a collector that waits holds the GIL
        one, other = socket.socketpair()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
        source = Source(b"source" * 1000)
        rope, alive = ropewalk.Rope(), weakref.ref(source)
        rope.push(source)
        source.name, source.made = "source", [rope, rope.cursor(), rope.segments()]
        part = rope[6:]
        thread = threading.Thread(target=part.recv_from, args=(other,))
        thread.start()
        one.send(b"x")
        while unread():
            time.sleep(0.001)  # poll(2) was content with one byte, and the receive waits for a second one
        observer = weakref.ref(part)
        del source, rope, part
        for _ in range(100):
            gc.collect()
        assert thread.is_alive() and alive().name == "source" and len(alive().made) == 3
        one.send(b"y")
        thread.join()
        del thread
        gc.collect()
        assert alive() is observer() is None, "the thread had the last reference to the cycle"
    """)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has a GIL")
def test_the_gil_stays_off():
    assert not sys._is_gil_enabled()


def test_memory_does_not_grow():
    grown = int(python("""
        import gc, os, resource, ropewalk, socket
        def turn():
            one, other = socket.socketpair()
            with one, other:
                rope = ropewalk.Rope()
                rope.push(bytearray(5000))
                rope.cursor(3).send(one)
                got = ropewalk.Rope()
                got.recv_from(other)
                with got.get_buffer() as room:
                    room[:1] = b"x"
                got.buffer_updated(1)
                view = got.finalize()
                memoryview(view)[:10], view[1:5], bytes(view), view == b"x", hash(view)
                try:
                    got.recv_from(-5)
                except (OSError, ValueError):
                    pass
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        for _ in range(2000):
            turn()
        gc.collect()
        before = resident()
        for _ in range(20_000):
            turn()
        gc.collect()
        print(resident() - before)
    """))
    assert grown < 1 << 20
