"""Every number, word, type and tensor of a model changed, one at a time: what ends the process?

    python -m benchmarks.abort_sweep [--only PATTERN] [--jobs 2] [--json RESULT.json]

Each case is the nano model of fixtures/ with one thing changed: a key of the file or one that any
llama.cpp knows, a tensor's type, shape or presence, the vocabulary, the architecture. The library
loads it and evaluates some tokens, in a fork; and so the unchanged model with every setting of a
context, of which none may end the fork. llama.cpp asserts much that it does not check: an
assertion that fails, a signal, or an exception that nobody catches ends the fork. Each case that
does so, and every 100th of the others, goes through `probe`, `validate` or `doctor --model` as a
person calls them, which must end with a documented exit code, and with one line where that is 2 or
more. Anything else is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

from benchmarks.fuzz_commands import NANO, Outcome, wait
from ggufrope.container.ggml import CACHE_TYPES, TYPES
from ggufrope.container.reader import read_header
from ggufrope.errors import GgufRopeError, RequestError
from ggufrope.lm import Branch
from ggufrope.rope.effective import RopeOverrides, ScalingType
from ggufrope.runtime import library
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
INTEGERS = (0, 1, 2, 3, 7, 33, 513, 65536, (1 << 31) - 1, (1 << 32) - 1)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"))
WORDS = ("", "x", "none", "yarn", "llama", "bert", "t5", "rwkv", "plamo2", "default")
COMMANDS = (
    ("probe", "{model}", "--json"),
    ("validate", "{model}", "--ctx", "256", "--depths", "1", "--samples", "1", "--json"),
    ("doctor", "--model", "{model}", "--json"),
)
SECONDS = 60.0
OUR_FAULT = "a fault of ours"


@dataclass(frozen=True)
class Key:
    name: str
    kind: int
    value: bytes

    @property
    def encoded(self) -> bytes:
        return encoded_text(self.name.encode()) + struct.pack("<I", self.kind) + self.value


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes


@dataclass(frozen=True)
class File:
    """A model in parts."""

    keys: tuple[Key, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def nano(cls) -> File:
        data, header = NANO.read_bytes(), read_header(NANO)
        keys = []
        for pair in header.key_values:
            head = 8 + len(pair.key.encode()) + 4
            value = data[pair.span.offset + head : pair.span.end]
            keys.append(Key(pair.key, int(pair.type), value))
        tensors = []
        for info in header.tensors:
            begin = header.data_offset + info.offset
            content = data[begin : begin + info.length]
            tensors.append(Tensor(info.name, info.shape, info.type, content))
        return cls(tuple(keys), tuple(tensors))

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def with_key(self, key: Key) -> File:
        return replace(self, keys=(*(k for k in self.keys if k.name != key.name), key))

    def without_key(self, name: str) -> File:
        return replace(self, keys=tuple(k for k in self.keys if k.name != name))

    def with_tensor(self, tensor: Tensor) -> File:
        others = tuple(t for t in self.tensors if t.name != tensor.name)
        return replace(self, tensors=(*others, tensor))

    def renamed(self, architecture: str) -> File:
        """Return the same model as one of another architecture."""
        keys = (replace(k, name=k.name.replace("llama.", f"{architecture}.", 1)) for k in self.keys)
        named = Key("general.architecture", STRING, encoded_text(architecture.encode()))
        return replace(self, keys=tuple(keys)).with_key(named)

    @property
    def encoded(self) -> bytes:
        out = struct.pack("<4sIQQ", b"GGUF", 3, len(self.tensors), len(self.keys))
        out += b"".join(key.encoded for key in self.keys)
        offset, data = 0, b""
        for tensor in self.tensors:
            out += encoded_text(tensor.name.encode()) + struct.pack("<I", len(tensor.shape))
            out += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
            out += struct.pack("<IQ", tensor.kind, offset)
            data += tensor.data + bytes(-len(tensor.data) % 32)
            offset = len(data)
        return out + bytes(-len(out) % 32) + data


def encoded_text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def number(name: str, value: float) -> Key:
    if isinstance(value, float):
        return Key(name, F32, struct.pack("<f", value))
    return Key(name, U32, struct.pack("<I", value))


def cases() -> Iterator[tuple[str, File]]:
    """Yield a name for each case, and the file."""
    nano = File.nano()
    yield "unchanged", nano
    for key in nano.keys:
        yield f"without {key.name}", nano.without_key(key.name)
        yield from _other_values(nano, key)
    have = {key.name for key in nano.keys}
    for name in sorted(set(_known_keys()) - have):
        for value in (0, 3, (1 << 32) - 1, float("nan")):
            yield f"{name} = {value!r}", nano.with_key(number(name, value))
        yield f"{name} = True", nano.with_key(Key(name, BOOL, b"\1"))
        yield f"{name} = 'x'", nano.with_key(Key(name, STRING, encoded_text(b"x")))
        per_layer = struct.pack("<IQ2I", U32, 2, 0, 3)
        yield f"{name} = [0, 3]", nano.with_key(Key(name, ARRAY, per_layer))
    yield from _other_tensors(nano)
    yield from _factors(nano)
    yield from _other_architectures(nano)


def _other_values(nano: File, key: Key) -> Iterator[tuple[str, File]]:
    if key.kind == U32:
        for value in INTEGERS:
            yield f"{key.name} = {value}", nano.with_key(number(key.name, value))
    elif key.kind == F32:
        for real in FLOATS:
            yield f"{key.name} = {real}", nano.with_key(number(key.name, real))
    elif key.kind == BOOL:
        for value in (0, 1, 255):
            yield f"{key.name} = {value}", nano.with_key(replace(key, value=bytes([value])))
    elif key.kind == STRING and not key.name.endswith(("description", "chat_template")):
        for word in WORDS:
            changed = replace(key, value=encoded_text(word.encode()))
            yield f"{key.name} = {word!r}", nano.with_key(changed)
    elif key.kind == ARRAY:
        kind, count = struct.unpack_from("<IQ", key.value)
        empty = struct.pack("<IQ", kind, 0)
        yield f"{key.name} = []", nano.with_key(replace(key, value=empty))
        if kind != STRING:
            size = (len(key.value) - 12) // count
            short = struct.pack("<IQ", kind, count - 1) + key.value[12:-size]
            yield f"{key.name} one short", nano.with_key(replace(key, value=short))
            odd = key.value[:12] + b"\xff" * (len(key.value) - 12)
            yield f"{key.name} all ones", nano.with_key(replace(key, value=odd))
    if key.kind != U32:
        yield f"{key.name} as a number", nano.with_key(number(key.name, 1))


def _known_keys() -> Iterator[str]:
    """Yield the keys that the gguf package knows, as a model of nano's architecture has them."""
    from gguf import constants

    groups = [constants.Keys]
    while groups:
        for name, value in vars(groups.pop()).items():
            if isinstance(value, type):
                groups.append(value)
            elif isinstance(value, str) and not name.startswith("_"):
                filled = value.replace("{arch}", "llama").replace("{bid}", "0")
                if "." in filled and not filled.startswith("ggufrope"):
                    yield filled


def of_type(tensor: Tensor, kind: int) -> Tensor:
    """Return a tensor of zeros of another type, as large as it has to be."""
    found = TYPES[kind]
    count = 1
    for size in tensor.shape:
        count *= size
    size = -(-count // found.block_size) * found.block_bytes
    return replace(tensor, kind=kind, data=bytes(size))


def _other_tensors(nano: File) -> Iterator[tuple[str, File]]:
    for tensor in nano.tensors:
        left = tuple(t for t in nano.tensors if t.name != tensor.name)
        yield f"without {tensor.name}", replace(nano, tensors=left)
        if tensor.name.startswith("blk.1.") or "attn_k" in tensor.name or "ffn_up" in tensor.name:
            continue
        for kind in TYPES:
            name = f"{tensor.name} as {TYPES[kind].name}"
            yield name, nano.with_tensor(of_type(tensor, kind))
        turned = tuple(reversed(tensor.shape))
        yield f"{tensor.name} turned", nano.with_tensor(replace(tensor, shape=turned))
        flat = replace(tensor, shape=(*tensor.shape, *(1,) * (4 - len(tensor.shape))))
        yield f"{tensor.name} of 4 dimensions", nano.with_tensor(flat)
        for size in (0, 1):
            cut = of_type(replace(tensor, shape=(size, *tensor.shape[1:])), tensor.kind)
            yield f"{tensor.name} of width {size}", nano.with_tensor(cut)
        endless = replace(tensor, data=b"\xff" * len(tensor.data))
        yield f"{tensor.name} of NaN", nano.with_tensor(endless)


def _factors(nano: File) -> Iterator[tuple[str, File]]:
    kinds = {"linear": ("rope_freqs",), "longrope": ("rope_factors_long", "rope_factors_short")}
    for word, names in kinds.items():
        typed = nano.with_key(Key("llama.rope.scaling.type", STRING, encoded_text(word.encode())))
        for shape in ((16,), (15,), (32,), (0,), (16, 1), (1, 16)):
            tensors = [Tensor(f"{name}.weight", shape, 0, b"") for name in names]
            for kind in TYPES if shape == (16,) else (0,):
                made = replace(
                    typed, tensors=(*typed.tensors, *(of_type(t, kind) for t in tensors))
                )
                yield f"{names[0]} {shape} as {TYPES[kind].name}", made


def _other_architectures(nano: File) -> Iterator[tuple[str, File]]:
    from ggufrope.rope.architectures import architectures

    for name in architectures():
        yield f"as {name}", nano.renamed(name)
        experts = nano.with_key(number("llama.expert_count", 4))
        yield f"as {name} of 4 experts", experts.renamed(name)


def settings() -> Iterator[tuple[str, ContextSettings]]:
    """Yield a name for each way to make a context of the unchanged model, and its settings."""
    usual = ContextSettings(n_ctx=256, n_threads=1)
    numbers: dict[str, tuple[Any, ...]] = {
        "n_ctx": (1, 2, 255, 257, 1 << 20, (1 << 31) - 1),
        "spare": (0, 1, 1 << 20),
        "n_batch": (2, 3, 31, 100_000),
        "n_ubatch": (1, 3, 100_000),
        "n_threads": (1, 3, 64, 512),
    }
    for name, values in numbers.items():
        for value in values:
            yield f"{name} = {value}", replace(usual, **{name: value})
    yield "swa_full off", replace(usual, swa_full=False)
    yield "offload_kqv off", replace(usual, offload_kqv=False)
    for k, v, flash in product(CACHE_TYPES, CACHE_TYPES, (None, True, False)):
        made = replace(usual, type_k=k, type_v=v, flash_attention=flash)
        yield f"{k}/{v}, flash attention {flash}", made
    for name in (each.name for each in fields(RopeOverrides) if each.name != "scaling_type"):
        for kind, value in product(
            get_args(ScalingType), (0, 1e-30, 0.5, 1, 3, 1e30, (1 << 31) - 1)
        ):
            number_: Any = int(value) if name == "yarn_orig_ctx" else float(value)
            try:
                rope = replace(RopeOverrides(scaling_type=kind), **{name: number_})
            except RequestError:
                continue
            yield f"{kind}, {name} = {number_}", replace(usual, rope=rope)


def attempt(model: Path, context: ContextSettings) -> tuple[str, str]:
    """Load a model in a fork and evaluate some tokens; return what became of it, and why.

    The words are "ok", "refused", "a fault of ours", "too slow", or the name of the signal that
    ended the fork.
    """
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if not pid:
            os.setsid()
            os.dup2(said.fileno(), 2)
            try:
                _evaluate(model, context)
            except GgufRopeError as error:
                os.write(2, str(error).encode("utf-8", "replace"))
                os._exit(1)
            except BaseException as error:
                os.write(2, repr(error).encode("utf-8", "replace"))
                os._exit(2)
            os._exit(0)
        code = wait(pid, SECONDS)
        said.seek(0)
        reason = said.read().decode("utf-8", "replace").strip()[-300:]
    if code is None:
        return "too slow", reason
    if code < 0:
        return signal.Signals(-code).name, reason
    return ("ok", "refused", OUR_FAULT)[code], reason


def _evaluate(model: Path, settings: ContextSettings) -> None:
    with Model.open(model, gpu_layers=0) as loaded:
        loaded.tokenize("One and two.", beginning=True)
        loaded.size_context(settings)
        with Context(loaded, settings) as context:
            context.extend([1, 2, 3, 4])
            context.score([Branch(prompt=(5,), answers=((6, 7),))])


def as_called(model: Path, command: tuple[str, ...], folder: Path) -> Outcome:
    """Run a command in a process of its own, as a person does."""
    words = [word.format(model=model) for word in command]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ggufrope", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=2 * SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(code=None, out="", err="took too long")
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


@dataclass
class Result:
    """How many settings, files and commands came to which end, what ended a fork, and faults."""

    settings: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    ended: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, other: Result) -> None:
        self.settings += other.settings
        self.files += other.files
        self.commands += other.commands
        self.ended |= other.ended
        self.faults += other.faults

    def fault(self, what: str) -> None:
        self.faults.append(what)
        print(f"FAULT {what}", flush=True)


def sweep(chosen: Callable[[int, str], bool], every: int) -> Result:
    """Try the settings and files that are chosen by number and name."""
    result = Result()
    library.load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (case, context) in enumerate(settings()):
            if chosen(index, case):
                end, reason = attempt(NANO, context)
                result.settings[end] += 1
                if end not in ("ok", "refused"):
                    result.fault(f"{case}: {end}: {reason}")
        for index, (case, file) in enumerate(cases()):
            if chosen(index, case):
                (folder / "m.gguf").write_bytes(file.encoded)
                _try_file(case, folder, result, called=index % every == 0)
    return result


def _try_file(case: str, folder: Path, result: Result, *, called: bool) -> None:
    model = folder / "m.gguf"
    end, reason = attempt(model, ContextSettings(n_ctx=256, n_threads=1))
    result.files[end] += 1
    if end == OUR_FAULT:
        result.fault(f"{case}: {reason}")
    elif end not in ("ok", "refused"):
        result.ended[case] = f"{end}: {reason}"
    elif not called:
        return
    command = COMMANDS[len(result.ended) % len(COMMANDS)]
    with tempfile.TemporaryDirectory(dir=folder) as working:
        outcome = as_called(model, command, Path(working))
    result.commands[f"{command[0]} {outcome.code}"] += 1
    if fault := outcome.fault(command):
        result.fault(f"{case}: {fault}")


def _in_parts(jobs: int, words: list[str]) -> Result:
    """Sweep in several processes, each a part of the cases."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for part in range(jobs):
            command = [sys.executable, "-m", "benchmarks.abort_sweep", *words]
            command += ["--part", f"{part}/{jobs}", "--json", f"{folder}/{part}.json"]
            parts.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        for part, process in enumerate(parts):
            process.wait()
            plain = json.loads(Path(folder, f"{part}.json").read_text("utf-8"))
            plain |= {name: Counter(plain[name]) for name in ("settings", "files", "commands")}
            result.add(Result(**plain))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="a pattern: cases whose names match")
    parser.add_argument("--every", type=int, default=100, help="of those that end no fork")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the result here")
    options: Any = parser.parse_args()
    part, parts = map(int, options.part.split("/"))

    def chosen(index: int, case: str) -> bool:
        return index % parts == part and bool(re.search(options.only, case))

    if options.jobs > 1:
        result = _in_parts(options.jobs, ["--only", options.only, "--every", str(options.every)])
    else:
        result = sweep(chosen, options.every)
    for what in ("settings", "files", "commands"):
        counts = getattr(result, what)
        shown = ", ".join(f"{end}: {count}" for end, count in sorted(counts.items()))
        print(f"{counts.total()} {what}: {shown}")
    print(f"{len(result.ended)} files ended llama.cpp's process, {len(result.faults)} faults")
    if options.json:
        options.json.write_text(json.dumps(vars(result), indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
