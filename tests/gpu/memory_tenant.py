"""Another tenant of the GPU: holds so many bytes of its memory until its standard input ends.

    python tests/gpu/memory_tenant.py 21474836480      # so many bytes
    python tests/gpu/memory_tenant.py -4509715660      # all that is free but so many
    python tests/gpu/memory_tenant.py 0                # all, to the last 2 MiB

Speaks to the driver itself, so that it takes a second. Prints `held N` (bytes, beside its context).
"""

from __future__ import annotations

import ctypes
import sys

SMALLEST = 2 << 20  # the driver gives memory in such pages
LARGEST = 8 << 30


def main() -> None:
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        if code := getattr(driver, name)(*arguments):
            sys.exit(f"{name} failed with CUDA error {code}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    wanted = int(sys.argv[1])
    left = wanted if wanted > 0 else free.value + wanted
    held, chunk = 0, LARGEST
    while chunk >= SMALLEST and left >= SMALLEST:
        size = min(chunk, left // SMALLEST * SMALLEST)
        address = ctypes.c_uint64()
        if driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)) == 0:
            held, left = held + size, left - size
        else:
            chunk //= 2
    if wanted > 0 and left >= SMALLEST:
        sys.exit(f"the GPU gave {held} of {wanted} bytes")
    print(f"held {held}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
