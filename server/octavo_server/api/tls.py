"""TLS: the context of the listening socket, and certificates that are replaced while it serves."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from dataclasses import dataclass

from octavo_server.errors import InvalidSettings

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """As uvicorn's flags of these names: `cert_reqs` 0 asks clients for no certificate, 1 for one
    if they have it, 2 for one in any case; they are checked against `ca_certs`.
    """

    certfile: str
    keyfile: str | None = None
    ca_certs: str | None = None
    cert_reqs: int = 0
    refresh: bool = False


def tls_files(
    certfile: str | None,
    keyfile: str | None,
    ca_certs: str | None,
    cert_reqs: int,
    *,
    refresh: bool,
) -> TlsFiles | None:
    """The flags of TLS together; None: plain HTTP. Raises `InvalidSettings`."""
    if certfile is None:
        if keyfile or ca_certs or cert_reqs or refresh:
            raise InvalidSettings("TLS needs --ssl-certfile")
        return None
    if cert_reqs and ca_certs is None:
        raise InvalidSettings("--ssl-cert-reqs needs --ssl-ca-certs, to check certificates against")
    return TlsFiles(certfile, keyfile, ca_certs, cert_reqs, refresh)


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """Raises `InvalidSettings` in one line for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, files)
    context.verify_mode = ssl.VerifyMode(files.cert_reqs)
    if files.ca_certs is not None:
        try:
            context.load_verify_locations(files.ca_certs)
        except OSError as error:
            raise InvalidSettings(f"--ssl-ca-certs {files.ca_certs}: {_why(error)}") from error
    return context


async def keep_fresh(
    context: ssl.SSLContext, files: TlsFiles, every_seconds: float = REFRESH_SECONDS
) -> None:
    """Load certificate and key again whenever they changed; connections that are open keep theirs.

    A pair that cannot be used, such as one of which half is written, is left alone until it
    changes.
    """
    seen = _stamps(files)
    while True:
        await asyncio.sleep(every_seconds)
        stamps = _stamps(files)
        if stamps == seen:
            continue
        seen = stamps
        try:
            _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)  # a failure would leave a half
            _load(context, files)
        except InvalidSettings as error:
            logger.warning("the certificate before it stays in use: %s", error)
        else:
            logger.warning("took a new certificate from %s", files.certfile)


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(files.certfile, files.keyfile, password=lambda: "")
    except OSError as error:
        names = f"--ssl-certfile {files.certfile}"
        if files.keyfile is not None:
            names += f", --ssl-keyfile {files.keyfile}"
        raise InvalidSettings(f"{names}: {_why(error)}") from error


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        known = {"KEY_VALUES_MISMATCH": "the key is not that of the certificate"}
        return known.get(error.reason or "", "not in PEM form, or a key with a password")
    return error.strerror or str(error)


def _stamps(files: TlsFiles) -> list[tuple[int, int] | None]:
    """When the files changed, through links, as a Secret's are replaced."""
    found: list[tuple[int, int] | None] = []
    for name in (files.certfile, files.keyfile or files.certfile):
        try:
            status = os.stat(name)
            found.append((status.st_mtime_ns, status.st_ino))
        except OSError:
            found.append(None)
    return found
