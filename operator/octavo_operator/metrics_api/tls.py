"""The server's TLS context, made anew whenever its certificate or the front proxy's CA changes."""

from __future__ import annotations

import ssl
import tempfile

from octavo_operator.metrics_api.authority import Issued


class Tls:
    """`context` is for a listening socket, for good: each handshake finds the latest."""

    def __init__(self) -> None:
        self._current: ssl.SSLContext | None = None
        self._from: tuple[bytes, str] | None = None
        # Its own settings matter where a handshake keeps them: whether a certificate is asked for.
        self.context = _bare()
        self.context.sni_callback = self._switch

    def use(self, issued: Issued, client_authority: str) -> None:
        """From the next handshake on. ValueError or ssl.SSLError for what is no certificate: the
        former ones stay.
        """
        if self._from == (issued.certificate, client_authority):
            return
        context = _bare()
        context.load_verify_locations(cadata=client_authority)
        with tempfile.NamedTemporaryFile() as pair:  # readable by its owner alone; ssl reads files
            pair.write(issued.key + issued.certificate)
            pair.flush()
            context.load_cert_chain(pair.name)
        self._current, self._from = context, (issued.certificate, client_authority)

    def _switch(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext
    ) -> int | None:
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None


def _bare() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Optional: without one there is an answer, which says what is missing. One of another CA fails.
    context.verify_mode = ssl.CERT_OPTIONAL
    # A session that is taken up again would not be checked against the CA of now.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context
