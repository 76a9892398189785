"""HTTPS with real certificates, refused early where they are no good, replaced while it serves."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from tests.server.api.authority import Authority, trusting

from octavo_server.api.run import http_server
from octavo_server.api.serve import listen
from octavo_server.api.tls import TlsFiles, keep_fresh, make_context, tls_files
from octavo_server.errors import InvalidSettings


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def hello(scope, receive, send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["scheme"].encode()})


async def serve_while(context: ssl.SSLContext, client) -> None:
    """Runs `client(url)` in a thread before a server of our own kind."""
    listener = listen("127.0.0.1", 0)
    http = http_server(hello, "critical", context)
    task = asyncio.create_task(http.serve(sockets=[listener]))
    try:
        await asyncio.to_thread(client, f"https://localhost:{listener.getsockname()[1]}/")
    finally:
        http.should_exit = True
        await task


def test_https_and_no_http(authority, tmp_path) -> None:
    context = make_context(TlsFiles(*authority.issue(tmp_path, "server")))

    def client(url: str) -> None:
        assert httpx.get(url, verify=trusting(authority)).text == "https"
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, verify=ssl.create_default_context())
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))

    asyncio.run(serve_while(context, client))


def test_clients_without_a_certificate_are_kept_out(authority, tmp_path) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    files = TlsFiles(
        *authority.issue(tmp_path, "server"), ca_certs=str(tmp_path / "ca.crt"), cert_reqs=2
    )
    pair = authority.issue(tmp_path, "client")

    def client(url: str) -> None:
        assert httpx.get(url, verify=trusting(authority, *pair)).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, verify=trusting(authority))

    asyncio.run(serve_while(make_context(files), client))


def test_a_new_certificate_is_taken_while_it_serves(authority, tmp_path) -> None:
    certfile, keyfile = authority.issue(tmp_path, "old")
    new = authority.issue(tmp_path, "new")
    files = TlsFiles(certfile, keyfile, refresh=True)
    context = make_context(files)

    def name(url: str) -> str:
        port = int(url.rstrip("/").rsplit(":", 1)[1])
        pem = ssl.get_server_certificate(("127.0.0.1", port)).encode()
        subject = x509.load_pem_x509_certificate(pem).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def client(url: str) -> None:
        assert name(url) == "old"
        Path(certfile).write_bytes(Path(new[0]).read_bytes())  # half of the pair: left alone
        time.sleep(0.1)
        assert name(url) == "old"
        Path(keyfile).write_bytes(Path(new[1]).read_bytes())
        deadline = time.monotonic() + 10
        while name(url) != "new":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    async def main() -> None:
        fresh = asyncio.create_task(keep_fresh(context, files, every_seconds=0.01))
        await serve_while(context, client)
        fresh.cancel()

    asyncio.run(main())


def test_files_that_are_no_good_are_one_line(authority, tmp_path) -> None:
    certfile, keyfile = authority.issue(tmp_path, "a")
    _, other = authority.issue(tmp_path, "b")
    _, locked = authority.issue(tmp_path, "locked", b"word")
    junk = tmp_path / "junk"
    junk.write_text("no PEM")
    for files, said in (
        (TlsFiles(certfile, other), "the key is not that of the certificate"),
        (TlsFiles(certfile, locked), "a key with a password"),
        (TlsFiles(str(tmp_path / "none"), keyfile), "No such file"),
        (TlsFiles(str(junk), keyfile), "not in PEM form"),
        (TlsFiles(certfile, keyfile, ca_certs=str(junk)), "--ssl-ca-certs"),
    ):
        with pytest.raises(InvalidSettings, match=said) as caught:
            make_context(files)
        assert "\n" not in str(caught.value)


def test_flags_that_need_each_other() -> None:
    assert tls_files(None, None, None, 0, refresh=False) is None
    for flags in ((None, "k", None, 0), (None, None, "c", 0), ("c", None, None, 2)):
        with pytest.raises(InvalidSettings, match="--ssl-c"):
            tls_files(*flags, refresh=False)
    with pytest.raises(InvalidSettings):
        tls_files(None, None, None, 0, refresh=True)
