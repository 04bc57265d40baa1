"""The demonstration of `make demo`: which scaling makes a model reach further, and by how much.

    python tools/demo.py MODEL.gguf [--page FILE]

First the nano model of fixtures/, trained at 256 tokens: which of four schemes holds to 2048. Then
a real model, SmolLM2, with YaRN and without, on both sides of the 8192 tokens that it was trained
for, by spliced needles alone. No model is changed. Results, a page (demo.html) and a picture go to
a new folder runs/demo-N. With --page, what the commands print goes to a Markdown file, as
docs/demo.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from subprocess import STDOUT
from typing import TextIO

NANO = Path("fixtures/nano.gguf")
NANO_OPTIONS = ("--ctx", "512,2048", "--haystack", "noise")
REAL_OPTIONS = (
    *("--scaling", "none,yarn", "--target-ctx", "16384", "--ctx", "4096,12288"),
    *("--samples", "1", "--whole-prompts", "0", "--no-control"),
)


def step(*arguments: object, page: TextIO | None) -> None:
    """Print and run one ggufrope command, or write that to a page; leave with its exit code where
    it is not 0."""
    words = [str(argument) for argument in arguments]
    print(f"$ ggufrope {shlex.join(words)}", flush=True, file=page)
    command = [sys.executable, "-m", "ggufrope", *words]
    size = {**os.environ, "COLUMNS": "80"} if page else None
    if code := subprocess.run(command, stdout=page, stderr=page and STDOUT, env=size).returncode:
        sys.exit(code)
    print(flush=True, file=page)


def demo(model: Path, folder: Path, page: TextIO | None) -> None:
    """Compare schemes on both models, and write a page and a picture of each comparison."""
    begun = time.monotonic()
    for name, path, options in (("nano", NANO, NANO_OPTIONS), ("demo", model, REAL_OPTIONS)):
        run = folder / name
        step("compare", path, *options, "--out", run, page=page)
        step("report", run, "--html", f"{run}.html", "--png", f"{run}.png", page=page)
    print(f"{time.monotonic() - begun:.0f} seconds", file=page)


HEAD = """# What `make demo` prints

At 80 columns, on two cores; written by `python tools/demo.py MODEL.gguf --page docs/demo.md`.

```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    number = 1
    while (folder := Path(f"runs/demo-{number}")).exists():
        number += 1
    if options.page is None:
        demo(options.model, folder, None)
        return
    with options.page.open("w", encoding="utf-8") as page:
        page.write(HEAD)
        page.flush()
        demo(options.model, folder, page)
        page.write("```\n")


if __name__ == "__main__":
    main()
