"""A child process that edits one file is killed at random moments, many times."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from gguf import GGUFReader

from ggufrope.container.compare import tensor_digests, weights_digest
from ggufrope.container.history import KEPT_RECORDS
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover
from tests.container.edits import blocky_model
from tests.container.writer import Tensor

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 12

EDITOR = """
import sys
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, TypedValue, ValueType
from ggufrope.container.writer import plan_rewrite

path, strategy = sys.argv[1], sys.argv[2] or None
number = 0
print("ready", flush=True)
while True:
    recover(path)
    number += 1
    text = "x" * (number * 977 % 5000)
    edits = Edits(set={"a.text": TypedValue(type=ValueType.STRING, value=text)})
    rewrite = plan_rewrite(read_header(path), edits)
    plan = plan_store(path, rewrite, strategy=strategy and Strategy(strategy), force={"in-use"})
    execute(plan)
    if number % 3 == 0:
        undo(path, force={"in-use"})
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
    repaired = 0
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", EDITOR, path, strategy], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.05, 0.25))
            assert child.poll() is None, "the editor failed by itself"
            child.kill()
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
        assert len(hidden) <= KEPT_RECORDS + 1  # a merge was interrupted
    assert repaired, "no round was interrupted in the middle of an edit"
