"""Let the device under the file die, or fail, at every operation of an edit and of an undo.

    python -m benchmarks.failing_device [--folder DIR]

Takes Linux, the right to mount, mkfs.ext4 and mkfs.xfs. A file system in an image is mounted, and
from operation N on

- it is shut down (the ioctl that xfstests uses), without its log or with it, as when power is cut,
- or the image cannot grow any more, so that the device fails every write to a new block.

The edit must then fail as a StorageError or be done. The file system is mounted again, so that it
replays its log, and the next command must find the old file or the new one, repair what is left,
and be able to undo an edit that is finished. Results go to results/failing_device.json.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import record
from ggufrope.container.filesystem import FileLayer
from ggufrope.container.reader import read_header
from ggufrope.container.recovery import recover, undo
from ggufrope.container.shards import distribute, open_model
from ggufrope.container.store import execute_together, plan_store
from ggufrope.container.strategies import Strategy
from ggufrope.container.types import Edits, TypedValue, ValueType, float_tensor
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import StorageError

IMAGE_BYTES = 400 << 20
NANO = Path(__file__).parent.parent / "fixtures" / "nano.gguf"
SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
WITH_LOG, WITHOUT_LOG = 1, 2
OPERATIONS = (
    "open", "create", "write", "resize", "sync", "sync_directory", "replace", "place", "remove",
    "copy", "allocate", "insert_range", "collapse_range", "clone_range",
)  # fmt: skip
FORCE = {"in-use", "changed"}
MAKE = {"ext4": ("-q", "-b", "4096"), "xfs": ("-q", "-s", "size=4096")}
"""With blocks and writes of one page. The loop driver takes a write that the full store cut short
for a whole one, and so would lie about larger ones."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system of a kind in an image, which lies in a tmpfs."""

    kind: str
    store: Path
    folder: Path

    def mount(self) -> None:
        run("mount", "-o", "loop", self.store / "image", self.folder)
        device = self.folder.stat().st_dev
        queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue")
        (queue / "max_sectors_kb").write_text("4")

    def unmount(self) -> None:
        run("umount", self.folder)

    def shut_down(self, how: int) -> None:
        import fcntl

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(descriptor)

    def stop_growing(self) -> None:
        """Let the image have the blocks that it has, and no more."""
        for _ in range(100):  # it may just be taking some
            blocks = os.statvfs(self.store)
            used = (blocks.f_blocks - blocks.f_bfree) * blocks.f_frsize
            words = ["mount", "-o", f"remount,size={used}", str(self.store)]
            if not subprocess.run(words, capture_output=True).returncode:
                return
        raise SystemExit(f"{self.store}: cannot be kept from growing")

    def grow(self) -> None:
        run("mount", "-o", f"remount,size={2 * IMAGE_BYTES}", self.store)


@contextmanager
def made(kind: str, parent: Path) -> Iterator[Disk]:
    """Make an empty file system, and mount it."""
    disk = Disk(kind=kind, store=parent / f"{kind}-store", folder=parent / kind)
    disk.store.mkdir()
    disk.folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={2 * IMAGE_BYTES}", "none", disk.store)
    try:
        with (disk.store / "image").open("wb") as image:
            image.truncate(IMAGE_BYTES)
        run(f"mkfs.{kind}", *MAKE[kind], disk.store / "image")
        disk.mount()
        try:
            yield disk
        finally:
            disk.unmount()
    finally:
        run("umount", disk.store)


class DyingFiles(FileLayer):
    """Files whose device is struck before operation number `at`, counted from 0."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.at, self.strike, self.seen = at, strike, 0

    def count(self) -> None:
        self.seen += 1
        if self.seen - 1 == self.at:
            self.strike()


def _counted(name: str) -> Callable[..., Any]:
    real = getattr(FileLayer, name)

    def operation(self: DyingFiles, *arguments: Any) -> Any:
        self.count()
        return real(self, *arguments)

    return operation


for _name in OPERATIONS:
    setattr(DyingFiles, _name, _counted(_name))

CONTEXT = {"llama.context_length": TypedValue(type=ValueType.UINT32, value=1024)}
SCALING = {"llama.rope.scaling.type": TypedValue(type=ValueType.STRING, value="yarn")}
FACTORS = float_tensor([2.0] * 16, "<")
CASES: dict[str, tuple[Edits, Strategy | None]] = {
    "overwrite": (Edits(set=CONTEXT), None),
    "grow": (Edits(set=SCALING), Strategy.GROW),
    "a tensor": (Edits(set=SCALING, put_tensors={"rope_freqs.weight": FACTORS}), None),
    "stream": (Edits(set=SCALING), Strategy.STREAM),
    "two files": (Edits(set=SCALING, put_tensors={"output_norm.weight": FACTORS}), None),
}


def split(folder: Path) -> Path:
    """Write the nano model as two files, the tensors in the second."""
    header = read_header(NANO)
    names = frozenset(tensor.name for tensor in header.tensors)
    for number, gone in enumerate((names - {"token_embd.weight"}, {"token_embd.weight"})):
        keys = {"split.no": number, "split.count": 2}
        values = {key: TypedValue(type=ValueType.UINT16, value=n) for key, n in keys.items()}
        values["split.tensors.count"] = TypedValue(type=ValueType.INT32, value=len(names))
        rewrite = plan_rewrite(header, Edits(set=values, remove_tensors=frozenset(gone)))
        output = folder / f"m-0000{number + 1}-of-00002.gguf"
        execute_together([plan_store(NANO, rewrite, output=output)])
    return folder / "m-00001-of-00002.gguf"


def edit(path: Path, edits: Edits, strategy: Strategy | None, files: FileLayer) -> None:
    plans = [
        plan_store(
            shard.path,
            plan_rewrite(shard.header, part),
            strategy=strategy,
            force=FORCE,
            files=files,
        )
        for shard, part in distribute(open_model(path), edits)
    ]
    execute_together(plans, files=files)


def models(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.gguf")}


def tried(disk: Disk, model: Path, case: str, what: str, fault: str) -> Counter[str]:
    """Strike at each operation in turn; count what became of it."""
    edits, strategy = CASES[case]
    work = disk.folder / "work"
    found: Counter[str] = Counter()
    at = 0
    while True:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for path in model.parent.glob("*.gguf"):
            shutil.copy(path, work)
        path = work / model.name
        old = models(work)
        if what == "undo":
            edit(path, edits, strategy, FileLayer())
        os.sync()
        run("fstrim", disk.folder)  # what is free is no part of the image, and must be written anew
        strike = {
            "shutdown without log": lambda: disk.shut_down(WITHOUT_LOG),
            "shutdown with log": lambda: disk.shut_down(WITH_LOG),
            "no new blocks": disk.stop_growing,
        }[fault]
        files = DyingFiles(at, strike)
        try:
            if what == "undo":
                undo(path, force=FORCE, files=files)
            else:
                edit(path, edits, strategy, files)
            found["done"] += 1
        except StorageError:
            found["refused"] += 1
        disk.grow()
        with suppress(OSError):
            os.sync()
        disk.unmount()
        disk.mount()
        recover(path)
        state = models(work)
        if state == old:
            found["old after"] += 1
        else:
            undo(path, force=FORCE)
            found["new after, undone"] += 1
        if models(work) != old:
            raise SystemExit(f"{disk.kind}, {fault}, {case}, {what}, operation {at}: not the old")
        if any("undo" not in one.name for one in work.glob(".*")):
            raise SystemExit(f"{disk.kind}, {fault}, {case}, {what}, operation {at}: remains")
        if files.seen <= at:
            return found
        at += 1


def run(*words: str | Path) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        parent = Path(name)
        for folder in ("one", "two"):
            (parent / folder).mkdir()
        one = Path(shutil.copy(NANO, parent / "one" / "m.gguf"))
        two = split(parent / "two")
        for kind in ("ext4", "xfs"):
            with made(kind, parent) as disk:
                for fault in ("shutdown without log", "shutdown with log", "no new blocks"):
                    total: Counter[str] = Counter()
                    for case in CASES:
                        for what in ("edit", "undo"):
                            model = two if case == "two files" else one
                            total += tried(disk, model, case, what, fault)
                    results[f"{kind}, {fault}"] = dict(total)
                    print(kind, fault, dict(total), flush=True)
    record("failing_device", results)


if __name__ == "__main__":
    main()
