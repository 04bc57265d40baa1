"""Hostile models and plans through the commands that load models, each in a process of its own.

    python -m benchmarks.fuzz_commands [--count 2000] [--seed 0]

Each input is the nano model of fixtures/ with settings, words, bytes of the header, lengths or
weights changed. `probe`, `validate`, `compare`, `search`, `run`, `report` and `doctor` of it must
end within `SECONDS` with an exit code that is documented, at most one line of error and no
traceback. What does not is printed with the seed that makes the input again, and the exit code is
1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from benchmarks.fuzz_limits import FLOATS, INTEGERS, LENGTHS, WORDS
from ggufrope.search.spaces import SpaceName

if TYPE_CHECKING:
    from typing_extensions import Self

    from ggufrope.container.types import Header, KeyValue

ROOT = Path(__file__).parent.parent
NANO = ROOT / "fixtures" / "nano.gguf"
SECONDS = 60.0
DOCUMENTED = {0, 1, 2, 3, 4, 5, 130}
"""Exit codes but for 70, a fault of ours, and 141, which needs a reader that goes away."""
_USAGE = ("Usage: ", "╭─ Error")
"""How Typer begins what it says of options that it cannot read."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@cache
def _nano() -> tuple[bytes, Header]:
    from ggufrope.container.reader import read_header

    return NANO.read_bytes(), read_header(NANO)


def hostile_model(seed: int) -> bytes:
    """Return the nano model with one to three of its parts changed to what no model has."""
    chance = random.Random(seed)
    data, header = _nano()
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice((_number, _number, _number, _item, _flip, _weights, _added))(
            changed, header, chance
        )
    if chance.random() < 0.05:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


def _value_at(pair: KeyValue) -> int:
    return pair.span.offset + 8 + len(pair.key.encode()) + 4


def _number(changed: bytearray, header: Header, chance: random.Random) -> None:
    """Change the number of a key."""
    pair = chance.choice([pair for pair in header.key_values if int(pair.type) in _SIZES])
    kind, at = int(pair.type), _value_at(pair)
    if kind == 6:
        changed[at : at + 4] = struct.pack("<f", chance.choice(FLOATS))
    else:
        size = _SIZES[kind]
        changed[at : at + size] = chance.choice(LENGTHS).to_bytes(8, "little")[:size]


def _item(changed: bytearray, header: Header, chance: random.Random) -> None:
    """Change an item of an array, or its type or count."""
    pair = chance.choice([pair for pair in header.key_values if int(pair.type) == 9])
    at = _value_at(pair)
    where = chance.randrange(3)
    if where == 0:
        changed[at : at + 4] = struct.pack("<I", chance.randrange(14))
    elif where == 1:
        changed[at + 4 : at + 12] = struct.pack("<Q", chance.choice(LENGTHS))
    else:
        begin = at + 12 + 4 * chance.randrange(200)
        changed[begin : begin + 4] = struct.pack("<I", chance.choice(INTEGERS))


def _flip(changed: bytearray, header: Header, chance: random.Random) -> None:
    """Change one byte of the header, more often near its beginning or its end."""
    near = chance.choice((1200, header.data_offset))
    at = chance.choice((chance.randrange(near), header.data_offset - 1 - chance.randrange(1500)))
    changed[at] = chance.randrange(256)


def _weights(changed: bytearray, header: Header, chance: random.Random) -> None:
    """Put numbers without end or without sense in a tensor."""
    tensor = chance.choice(header.tensors)
    begin = header.data_offset + tensor.offset
    number = chance.choice((b"\xff\xff", b"\x00\x7c", b"\x00\x00", b"\xff\x7b"))
    changed[begin : begin + tensor.length] = number * (tensor.length // 2)


def _added(changed: bytearray, header: Header, chance: random.Random) -> None:
    """Put a key of the rotation in the place of a text that nobody needs."""
    from ggufrope.rope.keys import KEYS

    (room,) = (pair for pair in header.key_values if pair.key == "general.description")
    spec = chance.choice(list(KEYS.values()))
    key = f"llama.{spec.suffix}".encode()
    if spec.type == 8:
        word = chance.choice([word for word in WORDS if len(word) < 10]).encode()
        value = struct.pack("<IQ", 8, len(word)) + word
    elif spec.type == 6:
        value = struct.pack("<If", 6, chance.choice(FLOATS))
    else:
        value = struct.pack("<II", 4, chance.choice(INTEGERS))
    record = struct.pack("<Q", len(key)) + key + value
    filler = room.span.length - len(record) - 8 - 1 - 4 - 8
    if filler >= 0:
        record += struct.pack("<Q", 1) + b"x" + struct.pack("<IQ", 8, filler) + b"x" * filler
        changed[room.span.offset : room.span.end] = record
        count = struct.unpack_from("<Q", changed, 16)[0]
        if count == len(header.key_values):
            struct.pack_into("<Q", changed, 16, count + 1)


def commands(model: Path, chance: random.Random) -> list[tuple[str, ...]]:
    """Return commands that load a model, all with their results in its folder."""
    folder, file = model.parent, str(model)
    plan = folder / "plan.toml"
    scaling = chance.choice(('"file"', '"yarn"', '{ scaling = "ntk", factor = 2.0, bake = true }'))
    task = chance.choice(("needle", "perplexity", "kv-cache", "short-context"))
    text = "text = 'text.txt'\n" if task == "perplexity" else ""
    (folder / "text.txt").write_text("One and two and three and four. " * 200)
    plan.write_text(
        f"models = ['m.gguf']\ncontexts = [256]\nscalings = [{scaling}]\ndepths = 1\n"
        f"tasks = ['{task}']\n{text}haystack = {{ kind = 'noise' }}\n[runtime]\nthreads = 1\n"
    )
    quick = ("--ctx", "256", "--depths", "1", "--threads", "1")
    space = ("--space", chance.choice(get_args(SpaceName)))
    few = (
        "--samples=1",
        "--haystacks=2",
        "--screening-samples=1",
        "--holdout-haystacks=2",
        "--candidates=8",
    )
    search = ("--target-ctx", "512", *space, *few, "--finalists=1")
    return [
        ("probe", file, "--json"),
        ("validate", file, *quick, "--json", "--out", str(folder / "validated")),
        ("report", str(folder / "validated"), "--json"),
        ("compare", file, *quick, "--scaling", "file", "--scaling", "yarn"),
        ("run", str(plan), "--out", str(folder / "run"), "--json"),
        ("report", str(folder / "run"), "--html", str(folder / "page.html")),
        ("search", file, *search, "--threads", "1", "--out", str(folder / "search"), "--json"),
        ("doctor", "--model", file, "--json"),
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of a command; `code` is negative for a signal, None where it took too long."""

    code: int | None
    out: str
    err: str

    def fault(self, arguments: tuple[str, ...]) -> str | None:
        """Return what is wrong with it, None where nothing is."""
        errors = [line for line in self.err.splitlines() if line.startswith("ggufrope: ")]
        shown = f"{arguments[0]}: exit {self.code}: {self.err.strip()[-300:]!r}"
        if self.code not in DOCUMENTED or "Traceback" in self.err or len(errors) > 1:
            return shown
        if self.code >= 2 and len(errors) != 1 and not self.err.startswith(_USAGE):
            return f"no reason is given: {shown}"
        if any(c in self.out + self.err for c in "\x00\x07\x1b\x9b\u202e"):
            return f"control characters: {shown}"
        if "--json" in arguments and self.code in (0, 1):
            try:
                json.loads(self.out, parse_constant=dict[str, float]().__getitem__)
            except (ValueError, KeyError) as error:
                return f"no JSON ({error!r}): {shown}"
        return None


class Commands:
    """A process that runs commands in forks of itself, so that each starts in milliseconds."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.fuzz_commands import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__(None, None, None)

    def call(self, *arguments: object, cwd: Path, seconds: float = SECONDS) -> Outcome:
        """Run `ggufrope` with these arguments in a folder."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        words = [str(argument) for argument in arguments]
        request = {"arguments": words, "cwd": str(cwd), "seconds": seconds}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Outcome(**json.loads(self._server.stdout.readline()))


def serve() -> None:
    """Run the commands of standard input; what became of each goes to standard output."""
    import ggufrope_cli.app

    from ggufrope.runtime import library

    library.load()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                os.chdir(request["cwd"])
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.setsid()
                code: Any = 70
                try:
                    ggufrope_cli.app.main(request["arguments"])
                except SystemExit as leaving:
                    code = leaving.code
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            code = wait(pid, request["seconds"])
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode("utf-8", "surrogateescape"))
        print(json.dumps({"code": code, "out": texts[0], "err": texts[1]}), flush=True)


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a process, None where it had to be killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(pid, 9)
    os.waitpid(pid, 0)
    return None


def attack(server: Commands, seed: int) -> tuple[Counter[str], list[str]]:
    """Take one model through all commands; return how often each exit came, and every fault."""
    exits: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "m.gguf"
        model.write_bytes(hostile_model(seed))
        for arguments in commands(model, random.Random(seed)):
            outcome = server.call(*arguments, cwd=Path(name))
            exits[f"{arguments[0]} {outcome.code}"] += 1
            if fault := outcome.fault(arguments):
                faults.append(f"seed {seed}: {fault}")
    return exits, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args()
    exits: Counter[str] = Counter()
    failed = False
    with Commands() as server:
        for seed in range(options.seed, options.seed + options.count):
            found, faults = attack(server, seed)
            exits += found
            for fault in faults:
                failed = True
                print(f"FAULT {fault}", flush=True)
    print(f"{options.count} models: {', '.join(f'{k}: {n}' for k, n in sorted(exits.items()))}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
