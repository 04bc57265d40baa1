"""The system calls themselves: insertion, reflinks and copies on real file systems.

Tried are the file system of the temporary folder, and btrfs and XFS mounted from an image where
that is permitted. A skip reason names the file system and what it cannot do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ggufrope.container.filesystem import LOCAL
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from tests.container.edits import CASES, SCALING, Case, plan, prepare
from tests.container.writer import Model, Tensor, small_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(scope="module", params=["here", "btrfs", "xfs"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    kind = request.param
    if kind == "here":
        yield folder
        return
    make = shutil.which(f"mkfs.{kind}")
    if make is None or os.geteuid() != 0:
        pytest.skip(f"{kind} is not tried: that takes mkfs.{kind} and the right to mount")
    image = tmp_path_factory.mktemp("image") / "disk.img"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([make, "-q", str(image)], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"{kind} is not tried: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def path(disk: Path) -> Iterator[Path]:
    folder = disk / "work"
    folder.mkdir()
    yield folder / "m.gguf"
    shutil.rmtree(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_edit_and_its_undo(case: Case, path: Path) -> None:
    old = prepare(path, case)
    refusals = {
        Strategy.GROW: LOCAL.insert_refusal(path),
        Strategy.CLONE: LOCAL.clone_refusal(path),
    }
    refusal = refusals.get(case.strategy)
    if case.requested and refusal:
        pytest.skip(f"strategy {case.strategy.value} is not tried here: {refusal}")
    made = plan(path, case, LOCAL)
    if not refusal:
        assert made.strategy is case.strategy
    receipt = execute(made, verify_all=True)
    assert receipt.strategy is made.strategy
    assert read_header(path) == receipt.header
    undo(path)
    assert path.read_bytes() == old


def test_a_clone_takes_no_space(path: Path) -> None:
    if refusal := LOCAL.clone_refusal(path):
        pytest.skip(f"reflinks are not tried here: {refusal}")
    size = 64 << 20
    data = os.urandom(1 << 20) * (size >> 20)
    path.write_bytes(Model(tensors=[Tensor("t", (size,), data, 24)]).encoded())
    os.sync()
    before = LOCAL.free_bytes(path)
    output = path.with_name("o.gguf")
    made = plan_store(path, plan_rewrite(read_header(path), Edits(set=SCALING)), output=output)
    assert made.strategy is Strategy.CLONE
    execute(made, verify_all=True)
    os.sync()
    assert before - LOCAL.free_bytes(path) < 4 << 20
    # The two files are independent: what is written to one does not show in the other.
    rewrite = plan_rewrite(read_header(path), Edits(set=SCALING))
    execute(plan_store(path, rewrite))
    assert output.read_bytes()[-size:] == data


OVERLAY = """
import sys
from pathlib import Path
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import undo
from ggufrope.container.store import execute, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits
from ggufrope.container.writer import plan_rewrite
from tests.container.edits import SCALING

path = Path(sys.argv[1])
old = path.read_bytes()
edits = Edits(set=SCALING)
for strategy in (None, Strategy.STREAM, None):
    rewrite = plan_rewrite(read_header(path), edits)
    receipt = execute(plan_store(path, rewrite, strategy=strategy, force={"in-use"}))
    assert read_header(path) == receipt.header
    undo(path, force={"in-use"})
    assert path.read_bytes() == old
rewrite = plan_rewrite(read_header(path), edits)
execute(plan_store(path, rewrite, output=path.with_name("o.gguf")))
print(*sorted(one.name for one in path.parent.iterdir()))
"""


@pytest.mark.parametrize("upper", ["the same", "another"])
def test_a_file_of_a_lower_layer(tmp_path: Path, root: Path, upper: str) -> None:
    """On overlayfs, as in containers, opening a file of an image for writing copies it up first:
    it may become another file on another disk. Mounted in a namespace of this user."""
    for name in ("top", "bottom", "merged"):
        (tmp_path / name).mkdir()
    below = tmp_path / "bottom" if upper == "another" else tmp_path / "top"
    model = tmp_path / "model"
    model.write_bytes(small_model().encoded())
    script = f"""
        mount -t tmpfs none {tmp_path / "top"} && mount -t tmpfs none {tmp_path / "bottom"} &&
        mkdir {tmp_path / "top"}/u {tmp_path / "top"}/w {below}/l && cp {model} {below}/l/m.gguf &&
        mount -t overlay none {tmp_path / "merged"} -o \
            lowerdir={below}/l,upperdir={tmp_path / "top"}/u,workdir={tmp_path / "top"}/w || exit 77
        exec "$0" -c "$1" {tmp_path / "merged"}/m.gguf
    """
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    try:
        done = subprocess.run(
            [*words, sys.executable, OVERLAY], capture_output=True, text=True, cwd=root
        )
    except FileNotFoundError:
        pytest.skip("overlayfs is not tried: unshare is not installed")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"overlayfs is not tried: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["m.gguf", "o.gguf"]
