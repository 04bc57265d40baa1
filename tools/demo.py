"""Patch, inspect and validate a real model, command by command, as a person would type it.

    python tools/demo.py MODEL.gguf [--full]

Extend a copy of the model to 16384 tokens with YaRN, show what changed and what will take effect,
and measure needle recall with an f16 and a q8_0 KV cache: by default up to 4096 tokens, about two
minutes on two cores; with --full up to 16384.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

TARGET = "16384"
SHORT = "1024,2048,4096"
FULL = "2048,4096,8192,12288,16384"


def step(*arguments: str) -> int:
    """Print and run one ggufrope command; leave where its exit code is more than 1.

    Exit code 1 is a failed check, which is a result.
    """
    print(f"\n$ ggufrope {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-c", "from ggufrope_cli.app import main; main()", *arguments]
    code = subprocess.run(command).returncode
    if code > 1:
        sys.exit(code)
    return code


def demo(model: Path, lengths: str) -> int:
    patched = model.with_name(f"{model.stem}.yarn-{TARGET}.gguf")
    patched.unlink(missing_ok=True)
    scaling = ("--scaling", "yarn", "--target-ctx", TARGET)
    step("inspect", str(model))
    step("patch", str(model), "-o", str(patched), *scaling, "--dry-run")
    step("patch", str(model), "-o", str(patched), *scaling)
    step("diff", str(model), str(patched))
    step("inspect", str(patched), "--ctx", TARGET)
    return step("validate", str(patched), "--ctx", lengths, "--depths", "5", "--kv", "f16,q8_0")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--full"]
    if len(arguments) != 1:
        sys.exit("usage: demo.py MODEL.gguf [--full]")
    verdict = demo(Path(arguments[0]), FULL if "--full" in sys.argv else SHORT)
    print("\nverdict: " + ("pass" if verdict == 0 else "fail, for the reasons above"))
