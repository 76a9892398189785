"""What rank 0 and the other ranks of an engine tell each other (msgpack, torch-free)."""

from __future__ import annotations

import msgspec

from octavo_server.config import EngineConfig
from octavo_server.distributed.ring import Handles
from octavo_server.engine.step import Step


class Settings(msgspec.Struct, kw_only=True):
    """First line on a rank's standard input (JSON), which then stays open.

    `meeting` and `reports` are descriptors: a nameless file where the ranks find each other, and
    the end of the rank's own pipe to rank 0. `parent_lives`: rank 0 started this process from a
    thread that lives as long as its process does.
    """

    rank: int
    size: int
    ring: Handles
    meeting: int
    reports: int
    parent_pid: int
    parent_lives: bool


class Load(msgspec.Struct, tag="load"):
    """Load this rank's part of a model, in the place of one that it may have."""

    config: EngineConfig


class Measure(msgspec.Struct, tag="measure"):
    """Run the largest steps, report what is left for the KV cache. Kernels are compiled by now."""


class Serve(msgspec.Struct, tag="serve"):
    """Make the cache: steps follow."""

    num_blocks: int
    max_model_len: int


class Capture(msgspec.Struct, tag="capture"):
    """Capture the graphs that a start captures."""


class Run(msgspec.Struct, tag="run"):
    """Launch a step."""

    step: Step


class Leave(msgspec.Struct, tag="leave"):
    """Leave the group, and end."""


Order = Load | Measure | Serve | Capture | Run | Leave


class Settled(msgspec.Struct, tag="settled"):
    """The model that it was told to load is there and can be cut so; the group may meet."""


class Measured(msgspec.Struct, tag="measured"):
    """Bytes that this rank's device has left for keys and values."""

    cache_bytes: int


class RankFailed(msgspec.Struct, tag="failed"):
    """Why a rank ends; as `engine.messages.Failed`."""

    reason: str
    message: str
    exit_code: int = 1


Report = Settled | Measured | RankFailed
