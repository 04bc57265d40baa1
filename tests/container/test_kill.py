"""A child process that edits one file is killed in the middle of it, many times.

It kills itself, at an operation on files that chance chose: one that is killed by the clock is hit
in an edit, or never, as the disk pleases.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader

from ggufrope.container.compare import tensor_digests, weights_digest
from ggufrope.container.history import KEPT_RECORDS, undo_steps
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover
from ggufrope.container.store import execute, plan_store
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from tests.container.edits import blocky_model
from tests.container.writer import Tensor

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 24
OPERATIONS = 120  # of five edits or more

EDITOR = """
import signal, sys
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite
from tests.container.faults import FaultyFiles

class KilledFiles(FaultyFiles):
    def _strike(self):
        signal.raise_signal(signal.SIGKILL)

path, strategy = sys.argv[1], sys.argv[2] or None
files = KilledFiles("torn", int(sys.argv[3]))
number = 0
while True:
    recover(path, files=files)
    number += 1
    text = "x" * (number * 977 % 5000)
    edits = Edits(set={"a.text": TypedValue(type=ValueType.STRING, value=text)})
    rewrite = plan_rewrite(read_header(path), edits)
    chosen = strategy and Strategy(strategy)
    plan = plan_store(path, rewrite, strategy=chosen, force={"in-use"}, files=files)
    execute(plan, files=files)
    if number % 3 == 0:
        undo(path, force={"in-use"}, files=files)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("strategy", ["", "stream"])
def test_killed_at_any_moment(strategy: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = blocky_model()
    model.tensors.append(Tensor("big", (1 << 20,), bytes(range(256)) * 4096, 24))
    path.write_bytes(model.encoded())
    weights = weights_digest(tensor_digests(path, read_header(path)))
    chance = random.Random(7)
    repaired = left = 0
    for _ in range(ROUNDS):
        operation = str(chance.randrange(OPERATIONS))
        words: list[str | Path] = [sys.executable, "-c", EDITOR, path, strategy, operation]
        ended = subprocess.run(words, cwd=ROOT, check=False)
        assert ended.returncode == -signal.SIGKILL, "the editor failed by itself"
        repaired += recover(path) is not None
        header = read_header(path)
        assert weights_digest(tensor_digests(path, header)) == weights
        text = header.get("a.text")
        assert text is None or set(str(text)) <= {"x"}
        reader = GGUFReader(path)
        assert len(reader.tensors) == len(model.tensors)
        del reader
        hidden = {p.name for p in tmp_path.iterdir()} - {"m.gguf"}
        assert all(name.startswith(".m.gguf.ggufrope-undo-") for name in hidden)
        assert len(hidden) <= max(left, KEPT_RECORDS) + 1  # a merge was interrupted
        left = len(hidden)
    assert repaired, "no round was interrupted in the middle of an edit"
    edits = Edits(set={"a.text": TypedValue(type=ValueType.STRING, value="undisturbed")})
    rewrite = plan_rewrite(read_header(path), edits)
    execute(plan_store(path, rewrite, force={"in-use"}))
    assert len(undo_steps((path,))) <= KEPT_RECORDS, "merges that were interrupted are made up for"
