"""Run every benchmark that needs only this checkout and its demo model, one after the other.

    python -m benchmarks [MODEL.gguf]

Run it on a machine that does nothing else. Results go to benchmarks/results.
"""

from __future__ import annotations

import subprocess
import sys

SMOLLM2 = ".models/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else SMOLLM2
    commands = (("startup",), ("check",), ("edit",), ("prefill", model), ("evaluation_cost", model))
    for name, *arguments in commands:
        print(f"\n$ python -m benchmarks.{' '.join((name, *arguments))}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)


if __name__ == "__main__":
    main()
