"""Lines of the log: text for people, JSON for machines, each of a pass with its object."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Iterator

import kopf

from octavo_operator.queue import Key

_object: contextvars.ContextVar[Key | None] = contextvars.ContextVar("object", default=None)


def configure_logs(*, as_json: bool, verbose: bool) -> None:
    """For the whole process. Unless verbose: Kopf speaks of failures alone, in one line each."""
    kopf.configure(
        verbose=verbose, log_format=kopf.LogFormat.JSON if as_json else kopf.LogFormat.FULL
    )
    if not verbose:
        for noisy in ("kopf", "aiohttp.access"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if not verbose:
            handler.addFilter(one_line)
        if as_json:
            handler.addFilter(with_object)


def one_line(record: logging.LogRecord) -> bool:
    """A filter: Kopf's errors without their tracebacks, whose last line the message repeats."""
    if record.name.partition(".")[0] == "kopf":
        record.exc_info = None
    return True


def with_object(record: logging.LogRecord) -> bool:
    """A filter: `namespace` and `name` of the InferenceService that a pass is about."""
    if (key := _object.get()) is not None:
        record.namespace, record.inferenceservice = key
    return True


@contextlib.contextmanager
def logging_about(key: Key) -> Iterator[None]:
    """Lines written meanwhile, in this task, are about `key`."""
    token = _object.set(key)
    try:
        yield
    finally:
        _object.reset(token)
