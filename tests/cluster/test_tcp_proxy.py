"""The faulty network of the outage tests, by itself."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.tcp_proxy import TcpProxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything again."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return client.recv(1 << 16)


def test_cut(echo: int) -> None:
    with TcpProxy(echo) as proxy, connect(proxy) as client, connect(proxy) as other:
        assert ask(client, b"a") == ask(other, b"a") == b"a"
        assert proxy.cut() == 2 == proxy.connections
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with connect(proxy) as again:
            assert ask(again, b"b") == b"b"


def test_cut_in_the_middle_of_an_answer(echo: int) -> None:
    with TcpProxy(echo) as proxy:
        proxy.cut_after(lambda: 5)
        with connect(proxy) as client:
            assert ask(client, b"abc") == b"abc"
            assert ask(client, b"def") in (b"de", b"")
            wait_for("the cut", lambda: proxy.cuts == 1)
        proxy.cut_after(None)
        with connect(proxy) as client:
            assert ask(client, b"abc") + ask(client, b"def") == b"abcdef"


def test_hang(echo: int) -> None:
    with TcpProxy(echo) as proxy, connect(proxy) as client:
        assert ask(client, b"a") == b"a"
        proxy.hang(new_ones=False)
        with connect(proxy) as new:
            assert ask(new, b"a") == b"a"
        proxy.hang()
        client.settimeout(0.2)
        with connect(proxy) as new:
            new.settimeout(0.2)
            for each in (client, new):
                with pytest.raises(TimeoutError):
                    ask(each, b"b")
            proxy.flow()
            assert client.recv(1) == new.recv(1) == b"b"
        proxy.hang()
        assert proxy.cut() >= 1
