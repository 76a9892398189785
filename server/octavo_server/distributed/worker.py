"""A rank other than 0: `python -m octavo_server.distributed.worker`, started by `workers`.

It does what rank 0 orders, in that order, and never waits for the device but where rank 0 is three
steps ahead.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
import sys
import threading
from contextlib import suppress

import msgspec

from octavo_server import log_lines
from octavo_server.distributed.orders import (
    Capture,
    Leave,
    Load,
    Measure,
    Measured,
    Order,
    RankFailed,
    Report,
    Run,
    Serve,
    Settings,
    Settled,
)
from octavo_server.distributed.ring import Reader
from octavo_server.engine.parent import end_with_parent
from octavo_server.errors import StartupError

logger = logging.getLogger(__name__)


def main() -> int:
    threading.Thread(target=_import_engine, name="early-import", daemon=True).start()
    select.select([0], [], [])
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)  # rank 0 gave up before it knew the model
    settings = msgspec.json.decode(line, type=Settings)
    end_with_parent(settings.parent_pid, by_signal=settings.parent_lives)
    for descriptor in (*settings.ring.all, settings.meeting, settings.reports):
        os.set_inheritable(descriptor, False)  # compilers that this process starts
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    name = f"rank {settings.rank} of {settings.size}"
    log_lines.install(name)
    try:
        _obey(settings)
        return 0
    except StartupError as error:
        report(settings, RankFailed(error.reason, f"{name}: {error}", error.exit_code))
    except MemoryError:
        report(settings, RankFailed("OutOfMemory", f"{name}: the machine ran out of memory"))
    except Exception as error:
        from octavo_server.engine.shortage import shortage_in

        logger.exception("%s failed", name)
        reason = "EngineFailed" if shortage_in(error) is None else "OutOfMemory"
        text = f"{name} failed: {type(error).__name__}: {error}"
        report(settings, RankFailed(reason, text))
    return 1


def _obey(settings: Settings) -> None:
    # Imported here: torch takes seconds, and its failure is then reported like any other.
    from octavo_server.distributed.workers import join
    from octavo_server.engine.rank import Rank

    reader = Reader(settings.ring, settings.rank - 1)
    decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
    group = rank = runner = None
    while True:
        match decoder.decode(reader.receive()):
            case Run(step):
                assert runner is not None
                runner.launch(step)
            case Load(config):
                # NOTE: graphs hold on to the group's communicator, which waits for them.
                rank = runner = None
                gc.collect()
                rank = Rank(config, lambda _: None, settings.rank)
                report(settings, Settled())
                if group is None:
                    group = join(settings.rank, settings.size, settings.meeting, rank.device)
                    if rank.device.type == "cuda":
                        # Later: imports triton.
                        from octavo_kernels import compile_cache

                        compile_cache.install()
                rank.load(group)
                gc.collect()
                gc.freeze()
            case Measure():
                assert rank is not None
                report(settings, Measured(rank.measure()))
            case Serve(num_blocks, max_model_len):
                assert rank is not None
                runner = rank.runner(num_blocks, max_model_len)
            case Capture():
                assert runner is not None
                runner.capture()
            case Leave():
                rank = runner = None
                gc.collect()
                if group is not None:
                    group.close()
                return


def report(settings: Settings, told: Report) -> None:
    with suppress(BrokenPipeError):
        os.write(settings.reports, msgspec.json.encode(told) + b"\n")


def _import_engine() -> None:
    gc.disable()  # full collections during the imports take a fifth of their time
    with suppress(Exception):  # who needs it imports it again, and reports the failure
        importlib.import_module("octavo_server.engine.rank")
    gc.enable()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # not through destructors that might wait for other ranks
