"""Compile every kernel variant to machine code without a GPU; print a table; say what is too big.

Run as a script: the test process has Triton's interpreter on, which replaces the compiler.

    python tests/kernels/compile_variants.py [--only TEXT] [--processes 2]

Per variant and architecture: shared memory, registers per thread, bytes of stack (spilled
registers), and the size of the machine code. Exits 1 if one needs more shared memory than a block
can have, or spills more than MAX_SPILL_BYTES.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

os.environ.pop("TRITON_INTERPRET", None)

import octavo_kernels

# Shared memory one block may use (CUDA C Programming Guide, table of compute capabilities).
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
# A few spilled words outside the loop cost nothing; a spilled accumulator is kilobytes a thread.
MAX_SPILL_BYTES = 256


def modules_with_variants() -> list[str]:
    """Every module of the package that has kernels to compile."""
    names = [module.name for module in pkgutil.iter_modules(octavo_kernels.__path__)]
    return [
        name
        for name in names
        if hasattr(importlib.import_module(f"octavo_kernels.{name}"), "variants")
    ]


def compile_one(task: tuple[str, int, int]) -> tuple[str, int, int, int, int, int, str]:
    """(module, index of the variant, architecture) -> name, architecture, shared bytes, registers,
    spilled bytes, code bytes, error."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, index, architecture = task
    variant = importlib.import_module(f"octavo_kernels.{module}").variants()[index]
    names = variant.kernel.arg_names
    unknown = {*variant.signature, *variant.constants, *variant.divisible} - set(names)
    missing = set(names) - {*variant.signature, *variant.constants}
    if unknown or missing:
        problem = f"arguments unknown {sorted(unknown)}, missing {sorted(missing)}"
        return variant.name, architecture, 0, 0, 0, 0, problem
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, **variant.options}
    try:
        built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        registers, spilled = read_resources(built.asm["cubin"])
    except Exception as error:  # reported in the table: one bad variant must not hide the others
        return variant.name, architecture, 0, 0, 0, 0, f"{type(error).__name__}: {error}"[:300]
    code = len(built.asm["cubin"])
    return variant.name, architecture, built.metadata.shared, registers, spilled, code, ""


def read_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread. None of these kernels has arrays or calls, so what
    lies on the stack was spilled."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1]), int(found[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    tasks = [
        (module, index, architecture)
        for module in modules_with_variants()
        for index, variant in enumerate(
            importlib.import_module(f"octavo_kernels.{module}").variants()
        )
        if arguments.only in variant.name
        for architecture in SHARED_BYTES
        if architecture >= 90 or not variant.constants.get("PDL")  # as language.launch_options
    ]
    print(f"{'variant':<58} arch  shared KiB  registers  spilled B   code B", flush=True)
    bad = 0
    with ProcessPoolExecutor(arguments.processes) as pool:
        for name, architecture, shared, registers, spilled, code, error in pool.map(
            compile_one, tasks
        ):
            limit = SHARED_BYTES[architecture]
            if shared > limit:
                error = f"shared memory over {limit // 1024} KiB"
            elif spilled > MAX_SPILL_BYTES:
                error = f"spills more than {MAX_SPILL_BYTES} bytes"
            bad += bool(error)
            print(
                f"{name:<58} {architecture:>4} {shared / 1024:>11.1f} {registers:>10} "
                f"{spilled:>10} {code:>8}  {error and 'BAD: ' + error}",
                flush=True,
            )
    print(f"{len(tasks)} compiled, {bad} bad")
    return 1 if bad or not tasks else 0


if __name__ == "__main__":
    sys.exit(main())
