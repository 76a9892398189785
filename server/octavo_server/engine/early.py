"""The engine process before it knows its model: `python -m octavo_server.engine.early`.

torch and the engine's modules take 1.5 s to import, as long as the API process takes to import its
own and to find the model. The command line starts this process first; what to load follows on
standard input, where `engine.process` takes over.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import os
import select
import subprocess
import sys
import termios
import threading
from contextlib import suppress

from octavo_server.engine.spinning import short_spins

MODULE = "octavo_server.engine.early"


def spawn(module: str = MODULE) -> subprocess.Popen[bytes]:
    """An engine process without settings. It leaves when its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        env={**os.environ, **short_spins(os.environ)},
        # Its own group: Ctrl-C in a terminal reaches the API process only, which drains.
        process_group=0,
    )


def main() -> int:
    threading.Thread(target=_import_engine, name="early-import", daemon=True).start()
    _wait_for_settings()
    from octavo_server.engine.process import main as serve

    return serve()


def _wait_for_settings() -> None:
    """End the process if its parent gives up: a wrong flag, a model that is not there."""
    select.select([0], [], [])
    readable = array.array("i", [0])
    fcntl.ioctl(0, termios.FIONREAD, readable)
    if readable[0] == 0:
        os._exit(0)  # at once, whatever the other thread is importing


def _import_engine() -> None:
    # Full collections during the imports take a fifth of their time and find nothing.
    gc.disable()
    with suppress(Exception):  # who needs it imports it again, and reports the failure
        importlib.import_module("octavo_server.engine.build")
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
