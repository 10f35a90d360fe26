import asyncio
import gc
import os
import socket
import ssl
import threading

import pytest

import ropewalk


@pytest.fixture
def pool():
    """A pool of its own, all of which is given back in the end."""
    pool = ropewalk.Pool(capacity=64 << 20)
    yield pool
    gc.collect()
    assert pool.stats().in_use == 0, "something still holds pages"


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine on a loop of its own, for no longer than two minutes."""
    # Neither uvloop nor trustme is to be had for every interpreter.
    runner = asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run

    def run(coroutine):
        return runner(asyncio.wait_for(coroutine, 120))

    run.loop = request.param
    return run


@pytest.fixture(scope="session")
def contexts():
    """The TLS contexts of a server and of its clients."""
    authority = pytest.importorskip("trustme").CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


@pytest.fixture(params=["plain", "tls"])
def tls(request):
    """Options of servers and of clients."""
    if request.param == "plain":
        return {}, {}
    contexts = request.getfixturevalue("contexts")
    return {"ssl": contexts[0]}, {"ssl": contexts[1], "server_hostname": "localhost"}


@pytest.fixture(scope="session")
def data():
    """Bytes of which no two pieces are alike."""
    return os.urandom(5_000_000)


@pytest.fixture
def peer():
    """A thread that serves one connection; what it raises is raised here."""
    threads, failures = [], []

    def peer(serve):
        listener = socket.create_server(("127.0.0.1", 0))

        def work():
            try:
                with listener, listener.accept()[0] as sock:
                    serve(sock)
            except BaseException as failure:
                failures.append(failure)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        return listener.getsockname()

    yield peer
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    for failure in failures:
        raise failure


def address(buffer):
    """Where a buffer's bytes lie."""
    return pytest.importorskip("numpy").frombuffer(buffer, "uint8").__array_interface__["data"][0]
