"""Hostile headers through read, inspect, check, plan and apply, in little memory and a second each.

    python -m benchmarks.fuzz_limits [--count 500000] [--seed 0]

Each input is a header whose numbers, names and lengths were changed to what no model has: by bytes
as they come, and by values that are known to hurt. It goes through the library in a process of
`LIMIT_MIB` of address space, with `SECONDS` of processor time for each input. Allowed are the
package's own errors; anything else is printed with the seed that makes the input again, and the
exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

LIMIT_MIB = 512
SECONDS = 1.0
BATCH = 2000

INTEGERS = (
    *(0, 1, 2, 3, 7, 32, 127, 128, 255, 256, 1000, 65535, 65536, 100_000),
    *(1 << 20, 1 << 24, 1 << 27, 1 << 28, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 2),
    (1 << 32) - 1,
)
LENGTHS = (*INTEGERS, 1 << 40, (1 << 62) + 1, 1 << 63, (1 << 64) - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, float("inf"), float("nan"))
NUMBERS = (
    "context_length",
    "embedding_length",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "attention.sliding_window",
    "rope.scaling.original_context_length",
)
REALS = (
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_log_multiplier",
    "rope.scale_linear",
)
ARCHITECTURES = ("llama", "qwen2", "gemma3", "phi3", "deepseek2", "gpt-oss", "llama4", "bert", "x")
SCHEMES = ("linear", "yarn", "ntk", "ntk-by-parts", "dynamic-ntk", "llama3", "longrope", "none")


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def key_value(name: str, kind: int, value: bytes) -> bytes:
    return text(name.encode()) + struct.pack("<I", kind) + value


def array(chance: random.Random) -> bytes:
    """An array of a random type whose count may say more than there is."""
    kind = chance.choice((0, 1, 4, 5, 6, 7, 8, 9, 10, 12))
    count = chance.choice((0, 1, 5, 1000, 2000))
    data = chance.randbytes(min(count, 64) * chance.choice((1, 4, 8)))
    if chance.random() < 0.5:
        data = data.ljust(count * 8, b"\0")
    claimed = count if chance.random() < 0.7 else chance.choice(LENGTHS)
    return struct.pack("<IQ", kind, claimed) + data


def honest(chance: random.Random) -> tuple[bytes, bytes]:
    """Return the header and the data of a small model, some of whose settings no model has."""
    name = chance.choice(ARCHITECTURES)
    sizes = {"context_length": 2048, "embedding_length": 64, "block_count": 2}
    sizes |= {"attention.head_count": 2, "rope.dimension_count": 32}
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        sizes[chance.choice(NUMBERS)] = chance.choice(INTEGERS)
    keys = [key_value("general.architecture", 8, text(name.encode()))]
    keys += [key_value(f"{name}.{key}", 4, struct.pack("<I", n)) for key, n in sizes.items()]
    for key in chance.sample(REALS, chance.randrange(3)):
        keys.append(key_value(f"{name}.{key}", 6, struct.pack("<f", chance.choice(FLOATS))))
    if chance.random() < 0.4:
        scheme = chance.choice(("yarn", "linear", "longrope", "none", "\x1b[2J", "y" * 5000))
        keys.append(key_value(f"{name}.rope.scaling.type", 8, text(scheme.encode())))
    for _ in range(chance.choice((0, 0, 1, 3))):
        key = chance.choice(("n", f"{name}.{chance.choice(NUMBERS)}", "general.name"))
        keys.append(key_value(key, 9, array(chance)))
    if chance.random() < 0.1:
        alignment = 1 << chance.randrange(32)
        keys.append(key_value("general.alignment", 4, struct.pack("<I", alignment)))
    if chance.random() < 0.05:
        big = key_value("a", 9, struct.pack("<IQ", 1, 1000) + b"\x9c" * 1000)
        keys += [big] * chance.choice((100, 3000))
    tensors, data = [], b""
    for tensor in chance.sample(
        ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "t", "t"),
        chance.randrange(4),
    ):
        length = chance.choice((1, 2, 16, 32, 100))
        offset = len(data)
        kind = chance.choice((0, 0, 0, 1, 2, 31, 77))
        if chance.random() < 0.1:
            length, offset = chance.choice(LENGTHS), chance.choice(LENGTHS)
        tensors.append(text(tensor.encode()) + struct.pack("<IQIQ", 1, length, kind, offset))
        data += struct.pack("<f", chance.choice(FLOATS)) * 100
        data += bytes(-len(data) % 32)
    counts = struct.pack("<IQQ", 3, len(tensors), len(keys))
    return b"GGUF" + counts + b"".join((*keys, *tensors)), data


def hostile(seed: int) -> bytes:
    """Return the input of a seed: a small model with some bytes changed, or none."""
    chance = random.Random(seed)
    header, data = honest(chance)
    changed = bytearray(header)
    for _ in range(chance.choice((0, 0, 0, 0, 1, 2))):
        at = chance.randrange(len(changed))
        action = chance.randrange(4)
        if action == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            changed[at : at + 8] = struct.pack("<Q", chance.choice(LENGTHS))
        elif action == 2:
            changed[at : at + 4] = struct.pack("<I", chance.choice(INTEGERS))
        else:
            del changed[at : at + chance.choice((1, 4, 8, 30))]
    return bytes(changed) + bytes(-len(changed) % 32) + data


def attack(path: Path, chance: random.Random) -> str:
    """Take one file all the way; return how far it came. Raises only what is a fault."""
    from ggufrope.container.reader import read_header
    from ggufrope.errors import GgufRopeError
    from ggufrope.patching.check import check
    from ggufrope.patching.inspection import inspect
    from ggufrope.patching.plan import apply, plan_patch
    from ggufrope.patching.request import ScalingRequest

    reached = "refused"
    try:
        read_header(path)
        reached = "read"
        inspect(path)
        check(str(path))
        request = ScalingRequest(
            scaling=chance.choice(SCHEMES),  # type: ignore[arg-type]
            target_context=chance.choice((None, 4096, 1 << 20)),
            factor=chance.choice((None, None, 4.0)),
            bake=chance.random() < 0.3,
            replace_scaling=chance.random() < 0.5,
        )
        plan = plan_patch(path, request, output=path.with_name("out.gguf"))
        reached = "planned"
        apply(plan)
        reached = "written"
    except GgufRopeError as error:
        if "\n" in str(error) or len(str(error)) > 20_000:
            raise AssertionError(f"not one short line: {str(error)[:200]}") from error
    return reached


def serve(first: int, count: int) -> None:
    """Attack with `count` inputs from seed `first` under the limits, and print what came of it."""
    import resource

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    with tempfile.TemporaryDirectory() as folder:
        attack(_written(Path(folder), 0), random.Random(0))  # imports what it needs
        limit = LIMIT_MIB << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGPROF, late)
        reached: Counter[str] = Counter()
        for seed in range(first, first + count):
            path = _written(Path(folder), seed)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                reached[attack(path, random.Random(seed))] += 1
            except BaseException as error:
                signal.setitimer(signal.ITIMER_PROF, 0)
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                print(f"FAULT seed {seed}: {type(error).__name__} at {place}: {str(error)[:200]}")
                reached["fault"] += 1
            signal.setitimer(signal.ITIMER_PROF, 0)
    for word, times in reached.items():
        print(f"{word} {times}")


def _written(folder: Path, seed: int) -> Path:
    for left in folder.iterdir():
        left.unlink()
    path = folder / "model.gguf"
    path.write_bytes(hostile(seed))
    return path


def fuzz(count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Attack with `count` inputs in batches; return how far they came, and every fault."""
    reached: Counter[str] = Counter()
    faults: list[str] = []
    for first in range(seed, seed + count, BATCH):
        size = min(BATCH, seed + count - first)
        script = f"from benchmarks.fuzz_limits import serve; serve({first}, {size})"
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        lines = done.stdout.splitlines()
        faults += [line for line in lines if line.startswith("FAULT")]
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            faults.append(
                f"FAULT seeds {first} to {first + size - 1}: exit {done.returncode} {last}"
            )
        for line in lines:
            word, _, times = line.partition(" ")
            if times.isdecimal():
                reached[word] += int(times)
    return reached, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args()
    began = time.monotonic()
    reached, faults = fuzz(options.count, options.seed)
    for fault in faults:
        print(fault)
    counts = ", ".join(f"{word} {times}" for word, times in sorted(reached.items()))
    print(f"{reached.total()} inputs in {time.monotonic() - began:.0f} s: {counts}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
