"""The demonstration of `make demo`: which scaling makes a model reach further, and by how much.

    python tools/demo.py MODEL.gguf

First the nano model of fixtures/, trained at 256 tokens: which of four schemes holds to 2048. Then
a real model, SmolLM2, with YaRN and without, on both sides of the 8192 tokens that it was trained
for, by spliced needles alone. No model is changed. Results, a page (demo.html) and a picture go to
a new folder runs/demo-N.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

NANO = Path("fixtures/nano.gguf")
NANO_OPTIONS = ("--ctx", "512,2048", "--haystack", "noise")
REAL_OPTIONS = (
    *("--scaling", "none,yarn", "--target-ctx", "16384", "--ctx", "4096,12288"),
    *("--samples", "1", "--whole-prompts", "0", "--no-control"),
)


def step(*arguments: object) -> None:
    """Print and run one ggufrope command; leave with its exit code where it is not 0."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ ggufrope {shlex.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", "ggufrope", *words]).returncode:
        sys.exit(code)


def demo(model: Path, folder: Path) -> None:
    """Compare schemes on both models, and write a page and a picture of each comparison."""
    for name, path, options in (("nano", NANO, NANO_OPTIONS), ("demo", model, REAL_OPTIONS)):
        run = folder / name
        step("compare", path, *options, "--out", run)
        step("report", run, "--html", f"{run}.html", "--png", f"{run}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: demo.py MODEL.gguf")
    number = 1
    while (folder := Path(f"runs/demo-{number}")).exists():
        number += 1
    demo(Path(sys.argv[1]), folder)
