"""Hostile headers through read, inspect, check, plan, apply and undo, in little memory and time.

    python -m benchmarks.fuzz_limits [--count 500000] [--seed 0] [--log LOG.jsonl]

Each input is the header of a small model of any architecture whose keys, numbers, names, lengths
and bytes were changed to what no model has. It goes through the library in a process of `LIMIT_MIB`
of address space, with `SECONDS` of processor time for each input; a file that was edited in place
must be the same again after undo. Allowed are the package's own errors, in one line; anything else
is printed with the seed that makes the input again, and the exit code is 1.

With `--log`, every batch that ends is a line of that file, and a batch that is there is not run
again: a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
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
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

LIMIT_MIB = 512
SECONDS = 1.0
BATCH = 5000

INTEGERS = (
    *(0, 1, 2, 3, 7, 32, 127, 128, 255, 256, 1000, 65535, 65536, 100_000),
    *(1 << 20, 1 << 24, 1 << 27, 1 << 28, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 2),
    (1 << 32) - 1,
)
LENGTHS = (*INTEGERS, 1 << 40, (1 << 62) + 1, 1 << 63, (1 << 64) - 1)
FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.5, 8.0, 40.0, 1e-45, 1e-30, 1e30, 3.4e38, 1e4, 5e5),
    *(float("inf"), float("-inf"), float("nan")),
)
WORDS = ("yarn", "linear", "longrope", "none", "su", "\x1b[2J", "y" * 5000, "", "\n")
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
SCHEMES = ("linear", "yarn", "ntk", "ntk-by-parts", "dynamic-ntk", "llama3", "longrope", "none")
ODD_REALS = (1.0, 4.0, 1e-3, 0.0, -1.0, 1e300, 1e-320, float("nan"), float("inf"))


@cache
def architectures() -> tuple[str, ...]:
    """Every architecture, those with rules of their own more often, and one that nobody knows."""
    from ggufrope.rope.architectures import architectures as table

    usual = ("llama", "qwen2", "gemma3", "phi3", "deepseek2", "gpt-oss", "llama4", "bert", "x")
    return (*sorted(table()), *usual * 8)


class Layout:
    """How numbers and texts are laid out in one file, by its byte order."""

    def __init__(self, order: str) -> None:
        self.order = order

    def pack(self, kinds: str, *values: float) -> bytes:
        return struct.pack(self.order + kinds, *values)

    def text(self, data: bytes) -> bytes:
        return self.pack("Q", len(data)) + data

    def key_value(self, name: str, kind: int, value: bytes) -> bytes:
        return self.text(name.encode()) + self.pack("I", kind) + value

    def setting(self, name: str, kind: int, chance: random.Random) -> bytes:
        """A key of a model with a value that no model has."""
        if kind == 6:
            value = self.pack("f", chance.choice(FLOATS))
        elif kind == 7:
            value = bytes([chance.choice((0, 1, 2, 255))])
        elif kind == 8:
            value = self.text(chance.choice(WORDS).encode())
        else:
            value = self.pack("I", chance.choice(INTEGERS))
        return self.key_value(name, kind, value)

    def array(self, chance: random.Random) -> bytes:
        """An array of a random type whose count may say more than there is."""
        kind = chance.choice((0, 1, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 12))
        count = chance.choice((0, 1, 2, 2, 4, 5, 1000, 2000))
        width = {0: 1, 1: 1, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 12: 8}.get(kind, 8)
        numbers = chance.random() < 0.5 and width == 4 and kind != 6
        if numbers:
            data = b"".join(self.pack("I", chance.choice(INTEGERS)) for _ in range(min(count, 64)))
        else:
            data = chance.randbytes(min(count, 64) * width)
        data = data.ljust(count * width, b"\0")
        claimed = count if chance.random() < 0.9 else chance.choice(LENGTHS)
        return self.pack("IQ", kind, claimed) + data


def honest(chance: random.Random, layout: Layout) -> tuple[bytes, bytes]:
    """Return the header and the data of a small model, some of whose settings no model has."""
    from ggufrope.rope.keys import KEYS

    name = chance.choice(architectures())
    sizes = {"context_length": 2048, "embedding_length": 64, "block_count": 2}
    sizes |= {"attention.head_count": 2, "rope.dimension_count": 32}
    specs = [spec for spec in KEYS.values() if spec.suffix not in sizes]
    strange = chance.sample(specs, chance.choice((0, 1, 1, 2, 4, 8)))
    keys = [layout.key_value("general.architecture", 8, layout.text(name.encode()))]
    for suffix, number in sizes.items():
        if chance.random() < 0.1:
            number = chance.choice(INTEGERS)
        if chance.random() < 0.98:
            keys.append(layout.key_value(f"{name}.{suffix}", 4, layout.pack("I", number)))
    for spec in strange:
        key = f"{name}.{spec.suffix}"
        if (spec.per_layer and chance.random() < 0.7) or chance.random() < 0.05:
            keys.append(layout.key_value(key, 9, layout.array(chance)))
        else:
            kind = int(spec.type) if chance.random() < 0.95 else chance.choice((4, 6, 7, 8))
            keys.append(layout.setting(key, kind, chance))
    for key in chance.sample(("n", "general.name", "general.type", "ggufrope.padding"), 2):
        if chance.random() < 0.15:
            keys.append(layout.key_value(key, 9, layout.array(chance)))
    if chance.random() < 0.05:
        alignment = 1 << chance.randrange(32)
        keys.append(layout.key_value("general.alignment", 4, layout.pack("I", alignment)))
    if chance.random() < 0.02:
        keys.append(chance.choice(keys))
    if chance.random() < 0.004:
        big = layout.key_value("a", 9, layout.pack("IQ", 1, 1000) + b"\x9c" * 1000)
        keys += [big] * chance.choice((100, 3000))
    tensors, data = [], b""
    for tensor in chance.sample((*FACTORS, "t", "t"), chance.randrange(4)):
        length, offset = chance.choice((1, 2, 16, 16, 16, 32, 100)), len(data)
        kind = chance.choice((0,) * 12 + (1, 2, 31, 77))
        if chance.random() < 0.05:
            length, offset = chance.choice(LENGTHS), chance.choice(LENGTHS)
        tensors.append(layout.text(tensor.encode()) + layout.pack("IQIQ", 1, length, kind, offset))
        data += layout.pack("f", chance.choice(FLOATS)) * 100
        data += bytes(-len(data) % 32)
    version = chance.choice((3,) * 40 + (2, 2, 1))
    counts = layout.pack("IQQ", version, len(tensors), len(keys))
    return b"GGUF" + counts + b"".join((*keys, *tensors)), data


def hostile(seed: int) -> bytes:
    """Return the input of a seed: a small model with some bytes changed, or none."""
    chance = random.Random(seed)
    layout = Layout("<" if chance.random() < 0.95 else ">")
    header, data = honest(chance, layout)
    changed = bytearray(header)
    for _ in range(chance.choice((0, 0, 0, 0, 0, 0, 1, 2))):
        at = chance.randrange(len(changed))
        action = chance.randrange(4)
        if action == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            changed[at : at + 8] = layout.pack("Q", chance.choice(LENGTHS))
        elif action == 2:
            changed[at : at + 4] = layout.pack("I", chance.choice(INTEGERS))
        else:
            del changed[at : at + chance.choice((1, 4, 8, 30))]
    return bytes(changed) + bytes(-len(changed) % 32) + data


def request_of(chance: random.Random) -> Any:
    """Return a scaling request, one in five of a kind that nobody should make."""
    from ggufrope.patching.request import ScalingRequest

    scaling: Any = chance.choice(SCHEMES)
    wanted: dict[str, Any] = {}
    if scaling != "none":
        wanted = chance.choice(({"target_context": 1 << 20}, {"factor": 4.0}, {"factor": 512.0}))
    if scaling == "longrope":
        wanted["long_factors"] = (4.0,) * chance.choice((16, 16, 16, 8))
    if chance.random() < 0.2:
        names = ("freq_base", "beta_fast", "beta_slow", "attn_factor", "ext_factor", "factor")
        wanted |= {name: chance.choice(ODD_REALS) for name in chance.sample(names, 2)}
        wanted["target_context"] = chance.choice((None, 0, 4096, 1 << 40))
        wanted["original_context"] = chance.choice((None, 1, 2048, 1 << 33))
    return ScalingRequest(
        scaling=scaling,
        bake=chance.random() < 0.3,
        keep_short_context=chance.random() < 0.1,
        replace_scaling=chance.random() < 0.7,
        **wanted,
    )


def attack(path: Path, chance: random.Random) -> str:
    """Take one file all the way; return how far it came. Raises only what is a fault."""
    from ggufrope.container.reader import read_header
    from ggufrope.container.recovery import undo
    from ggufrope.patching.check import check
    from ggufrope.patching.inspection import inspect
    from ggufrope.patching.plan import apply, plan_patch

    before, request = path.read_bytes(), request_of(chance)
    if _passes(partial(read_header, path)) is None:
        return "refused"
    _passes(partial(inspect, path, context_tokens=chance.choice((None, 4096, 1 << 30))))
    _passes(partial(check, str(path)))
    output = chance.choice((None, path.with_name("out.gguf")))
    # Who else has the file open depends on the machine, and takes longer than all the rest.
    force = () if chance.random() < 0.01 else ("in-use",)
    plan = _passes(partial(plan_patch, path, request, output=output, force=force))
    if plan is None:
        return "read"
    receipt = _passes(partial(apply, plan))
    if receipt is not None and output is None:
        undo(path, force=force)
    if path.read_bytes() != before:
        raise AssertionError("the file is not what it was")
    return "planned" if receipt is None else "written"


def _passes(step: Callable[[], Any]) -> Any:
    """Return what a step returns, None where the package refuses; the refusal must be one line."""
    from ggufrope.errors import GgufRopeError

    try:
        return step()
    except GgufRopeError as error:
        if "\n" in str(error) or len(str(error)) > 20_000:
            raise AssertionError(f"not one short line: {str(error)[:200]}") from error
        return None


def serve(first: int, count: int) -> None:
    """Attack with `count` inputs from seed `first` under the limits, and print what came of it."""
    import resource

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    reached: Counter[str] = Counter()
    faults: list[str] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(20):  # imports what it needs
            attack(_written(Path(folder), seed), random.Random(seed))
        limit = LIMIT_MIB << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGPROF, late)
        for seed in range(first, first + count):
            path = _written(Path(folder), seed)
            before = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                reached[attack(path, random.Random(seed))] += 1
            except BaseException as error:
                signal.setitimer(signal.ITIMER_PROF, 0)
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(where.filename).name}:{where.lineno}"
                faults.append(f"seed {seed}: {type(error).__name__} at {place}: {str(error)[:200]}")
                reached["fault"] += 1
            signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"reached": reached, "faults": faults, "slowest": slowest, "peak_mib": peak}))


def _written(folder: Path, seed: int) -> Path:
    for left in folder.iterdir():
        left.unlink()
    path = folder / "model.gguf"
    path.write_bytes(hostile(seed))
    return path


def batch(first: int, count: int) -> dict[str, Any]:
    """Attack with one batch in a process of its own; return what came of it."""
    script = f"from benchmarks.fuzz_limits import serve; serve({first}, {count})"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        fault = f"seeds {first} to {first + count - 1}: exit {done.returncode} {last}"
        return {"reached": {}, "faults": [fault], "slowest": 0.0, "peak_mib": 0}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def fuzz(count: int, seed: int = 0, log: Path | None = None) -> list[dict[str, Any]]:
    """Attack with `count` inputs in batches, those in the log apart; return what came of each."""
    known: dict[tuple[int, int], dict[str, Any]] = {}
    if log is not None and log.exists():
        text = log.read_text()
        log.write_text(text[: text.rfind("\n") + 1])  # a line cut off is not there
        lines = (json.loads(line) for line in log.read_text().splitlines())
        known = {(line["first"], line["count"]): line for line in lines}
    answers = []
    for first in range(seed, seed + count, BATCH):
        size = min(BATCH, seed + count - first)
        answer = known.get((first, size))
        if answer is None:
            answer = {"first": first, "count": size, **batch(first, size)}
            if log is not None:
                with log.open("a") as stream:
                    stream.write(json.dumps(answer) + "\n")
        answers.append(answer)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    options: Any = parser.parse_args()
    answers = fuzz(options.count, options.seed, options.log)
    faults = [fault for answer in answers for fault in answer["faults"]]
    for fault in faults:
        print(f"FAULT {fault}")
    reached = sum((Counter(answer["reached"]) for answer in answers), Counter[str]())
    counts = ", ".join(f"{word} {times}" for word, times in sorted(reached.items()))
    print(
        f"{reached.total()} inputs: {counts}; slowest {max(a['slowest'] for a in answers):.2f} s, "
        f"most memory {max(a['peak_mib'] for a in answers)} MiB"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
