"""Compare our chunked perplexity with llama-perplexity's, on the same model and text.

    python -m benchmarks.perplexity_parity MODEL.gguf --llama-perplexity .../llama-perplexity

The exit code is 1 where a printed digit differs. llama-perplexity is part of llama.cpp: use the
commit that `ggufrope doctor` names, because another version may calculate differently.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import record
from ggufrope.evals.perplexity import PerplexityPlan, perplexity_of, read_chunks
from ggufrope.evals.texts import Text, reference_text
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings


def ours(model_path: Path, text: Text, n_ctx: int, chunks: int) -> tuple[str, float]:
    """Return our value as it is printed, and the seconds it took."""
    with Model.open(model_path) as model:
        plan = PerplexityPlan(n_ctx=n_ctx, text=text, chunks=chunks)
        begun = time.perf_counter()
        found = perplexity_of(
            read_chunks(plan, model, lambda n: Context(model, ContextSettings(n_ctx=n)))
        )
        return f"{found.value:.4f} +/- {found.error:.5f}", time.perf_counter() - begun


def theirs(
    program: Path, model_path: Path, text: Text, n_ctx: int, chunks: int
) -> tuple[str, float]:
    """Return llama-perplexity's value as it is printed, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        # It drops one newline at the end of a file, and reads backslashes as escapes.
        file.write_text(text.content + "\n", encoding="utf-8", newline="")
        command = [program, "-m", model_path, "-f", file, "-c", n_ctx, "-b", n_ctx]
        begun = time.perf_counter()
        done = subprocess.run(
            [*map(str, command), "--chunks", str(chunks), "--no-escape"],
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"PPL = ([\d.]+ \+/- [\d.]+)", done.stdout + done.stderr)
    if found is None:
        raise SystemExit(f"{program} gave no estimate:\n{done.stderr[-2000:]}")
    return found[1], time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-perplexity", type=Path, default=Path("llama-perplexity"))
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    text = reference_text()
    mine, my_seconds = ours(options.model, text, options.ctx, options.chunks)
    other, other_seconds = theirs(
        options.llama_perplexity, options.model, text, options.ctx, options.chunks
    )
    record(
        "perplexity_parity",
        {
            "model": options.model.name,
            "text": f"{text.source}, sha256 {text.sha256}",
            "n_ctx": options.ctx,
            "chunks": options.chunks,
            "ggufrope": {"perplexity": mine, "seconds_without_loading": round(my_seconds, 1)},
            "llama-perplexity": {"perplexity": other, "seconds_in_all": round(other_seconds, 1)},
        },
    )
    return 0 if mine == other else 1


if __name__ == "__main__":
    sys.exit(main())
