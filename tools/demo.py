"""Show what ggufrope is for, command by command, as a person would type it.

    python tools/demo.py MODEL.gguf [--full]

First the nano model, trained at 256 tokens, under four schemes up to 2048: seconds. Then a real
model, SmolLM2, unscaled and under YaRN on both sides of the 8192 tokens that it was trained for:
about two minutes on two cores. With --full, its needles are confirmed by whole prompts, and the
comparison goes up to 16384 tokens, which takes hours. Nothing is written to either file.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

NANO = Path("fixtures/nano.gguf")
SPLICED = ("--ctx", "4k,12k", "--samples", "1", "--whole-prompts", "0", "--no-control")
FULL = ("--ctx", "4k,8k,12k,16k")


def step(*arguments: str) -> None:
    """Print and run one ggufrope command; leave where it fails."""
    print(f"\n$ ggufrope {shlex.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "ggufrope", *arguments]).returncode
    if code:
        sys.exit(code)


def demo(model: Path, real: tuple[str, ...]) -> None:
    begun = time.monotonic()
    lengths = "256,512,768,1024,1536,2048"
    step("compare", str(NANO), "--ctx", lengths, "--haystack", "noise", "--out", "runs/demo-nano")
    step("compare", str(model), "--scaling", "none,yarn", *real, "--out", "runs/demo")
    step("report", "runs/demo", "--html", "demo.html", "--png", "demo.png")
    print(
        f"\n{time.monotonic() - begun:.0f} seconds. Open demo.html (the page) or demo.png (the "
        "picture);\nthe nano model: ggufrope report runs/demo-nano --html nano.html"
    )


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--full"]
    if len(arguments) != 1:
        sys.exit("usage: demo.py MODEL.gguf [--full]")
    demo(Path(arguments[0]), FULL if "--full" in sys.argv else SPLICED)
