"""The pod's last word: one JSON line that Kubernetes copies into the container's status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from octavo_server.errors import InvalidSettings

_DEFAULT_PATH = "/dev/termination-log"
_MAX_BYTES = 4096  # what a kubelet keeps


def write_termination(reason: str, message: str) -> None:
    """Write `{"reason", "message"}` to $OCTAVO_TERMINATION_LOG, or to Kubernetes' default file.

    The default is written only where it exists, so that nothing appears outside of a pod. A file
    that cannot be written is no reason to hide the failure itself: such errors are ignored.
    """
    chosen = os.environ.get("OCTAVO_TERMINATION_LOG")
    path = Path(chosen or _DEFAULT_PATH)
    if not chosen and not path.exists():
        return
    try:
        path.write_bytes(termination_line(reason, message))
    except OSError:
        pass


def termination_line(reason: str, message: str) -> bytes:
    """At most 4,096 bytes of valid JSON; a message that is too long loses its end."""
    message = " ".join(message.split())
    while True:
        line = json.dumps({"reason": reason, "message": message}, ensure_ascii=False)
        encoded = line.encode("utf-8", "replace") + b"\n"
        excess = len(encoded) - _MAX_BYTES
        if excess <= 0:
            return encoded
        message = message[: -max(8, excess // 4 + 4)] + "..."


class TellingCommand(click.Command):
    """Wrong flags (of a manifest's extraArgs, say) go to the termination message as well."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            write_termination(InvalidSettings.reason, error.format_message())
            raise
