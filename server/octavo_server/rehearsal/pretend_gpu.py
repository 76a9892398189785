"""A GPU that is not there: tensors on it have shapes and addresses but no memory.

For running the engine's own launch path on a machine without one. What lies on the CPU is real;
what is on "cuda" is torch's FakeTensor, whose results are shapes. In a process of its own: it
replaces functions of torch.cuda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_ALIGNED = 1 << 12
"""Where every fake block of memory starts: torch's allocator aligns to 512 bytes."""


_MOST_GPUS = 64
"""As many as a model may be cut for; all are this one."""


@contextmanager
def pretend_gpu(capability: int, multiprocessors: int, memory_bytes: int) -> Iterator[None]:
    """Within, torch sees one CUDA device of this kind, and nothing of what it is told happens."""
    device = SimpleNamespace(
        name="pretended GPU",
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=multiprocessors,
        total_memory=memory_bytes,
        L2_cache_size=50 << 20,
        shared_memory_per_block_optin=227 << 10,
        warp_size=32,
    )
    replaced: dict[str, Callable[..., Any]] = {
        "_lazy_init": _nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: _MOST_GPUS,
        "current_device": lambda: 0,
        "set_device": _nothing,
        "device": lambda *_: nullcontext(),
        "get_device_capability": lambda *_: (device.major, device.minor),
        "get_device_properties": lambda *_: device,
        "get_device_name": lambda *_: device.name,
        "is_bf16_supported": lambda *_, **__: True,
        "mem_get_info": lambda *_: (memory_bytes, memory_bytes),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": _nothing,
        "empty_cache": _nothing,
        "synchronize": _nothing,
        "Stream": _Nobody,
        "Event": _Nobody,
        "CUDAGraph": _Nobody,
        "MemPool": _Nobody,
        "use_mem_pool": lambda *_: nullcontext(),
        "graph": lambda *_, **__: nullcontext(),
        "stream": lambda *_: nullcontext(),
        "current_stream": _Nobody,
        "default_stream": _Nobody,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: False,
    }
    # First: making it imports parts of torch that list torch.cuda's functions.
    pretending = _Pretending()
    # Without a driver torch's C++ would ask it which device is current; this makes it not ask.
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for name, stand_in in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", _address))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", _nothing))
        stack.enter_context(pretending)
        stack.enter_context(_ListsAsTensors())
        yield


class _Nobody:
    """Any object of torch.cuda: takes every call, answers nothing; an event has always happened."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _address(tensor: Any) -> int:
    return _ALIGNED + int(tensor.storage_offset()) * int(tensor.element_size())


class _ListsAsTensors(TorchFunctionMode):
    """Lists on their way to "cuda": torch would copy them behind the dispatcher's back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                parts = (torch.tensor(part) if isinstance(part, list) else part for part in index)
                args = (args[0], tuple(parts), *args[2:])
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        return func(*args, **kwargs)


class _Pretending(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """CPU operations are real, operations on or to "cuda" are shapes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.pop("pin_memory", None) is not None:
            kwargs["pin_memory"] = False
        name = func.overloadpacket.__name__
        leaves = pytree.tree_leaves((args, kwargs))
        fakes = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        to_cuda = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if name in ("is_pinned", "_pin_memory"):
            return False if name == "is_pinned" else args[0]
        if not fakes and not to_cuda:
            return func(*args, **kwargs)
        if name == "_local_scalar_dense":
            return torch.zeros((), dtype=args[0].dtype).item()
        if name == "copy_" and not isinstance(args[0], FakeTensor):
            return args[0]  # what comes back to the host is whatever lies there
        if isinstance(kwargs.get("out"), FakeTensor):
            return kwargs["out"]  # made to measure; torch has no shape function for some of these
        device = kwargs.get("device")
        if name == "_to_copy" and device is not None and device.type == "cpu":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        with self._fake:
            args, kwargs = pytree.tree_map_only(torch.Tensor, self._faked, (args, kwargs))
            try:
                return func(*args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                pass
        return self._of_zeros(func, args, kwargs)

    def _of_zeros(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A result whose shape depends on values: that of zeros."""
        zeros = pytree.tree_map_only(
            torch.Tensor, lambda it: torch.zeros(it.shape, dtype=it.dtype), (args, kwargs)
        )
        found = func(*zeros[0], **zeros[1])

        def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
            with self._fake:
                return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

        return pytree.tree_map_only(torch.Tensor, on_gpu, found)

    def _faked(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return self._fake.from_tensor(tensor)
