"""Save one token's state in each format of llama.cpp, as fixtures for tests without that llama.cpp.

    python -m tools.saved_states [--llama-lib FOLDER]

adds the states of the installed llama.cpp, or of another build, to fixtures/states.json, by the
version of their format: of nano, and of a small Gemma 3, whose sliding windows make it two caches.
`caches` has the layers of each cache, `file` the begin of a state saved to a file, where the
version is, and `memory` a state as the probe reads it, of one token at position 5 in a cache of
F32. Both are hexadecimal.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fixtures.make import build
from ggufrope.runtime import engine, library
from ggufrope.runtime.batch import decode
from ggufrope.runtime.context import Context
from ggufrope.runtime.model import Model
from ggufrope.runtime.settings import ContextSettings
from ggufrope.runtime.states import cache_layers, saved_state, saved_version

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
STATES = FIXTURES / "states.json"
TOKEN, POSITION = 7, 5
_HEAD_BYTES = 12  # magic number, version, number of tokens


def main() -> None:
    """Save the states of one llama.cpp."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--llama-lib", metavar="FOLDER", help="another build of llama.cpp")
    engine.use_llama(parser.parse_args().llama_lib)
    states = json.loads(STATES.read_text(encoding="utf-8")) if STATES.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        (gemma,) = build("gemma3", Path(folder) / "gemma3.gguf", width=32, head_size=16)
        saved = {"nano": _save(FIXTURES / "nano.gguf"), "gemma3": _save(gemma)}
    version = saved_version(bytes.fromhex(saved["nano"]["file"]))
    found = library.versions()
    states[str(version)] = {"llama.cpp": f"{found.llama_cpp} ({found.commit})", **saved}
    ordered = {key: states[key] for key in sorted(states, key=int)}
    STATES.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def _save(path: Path) -> dict[str, Any]:
    llama = library.load()
    settings = ContextSettings(n_ctx=256, type_k="f32", type_v="f32", n_threads=1)
    with (
        library.capture(debug=True) as log,
        Model.open(path, gpu_layers=0) as model,
        Context(model, settings) as context,
    ):
        one = np.array([1], dtype=np.int32)
        decode(context.handle, one * TOKEN, one * POSITION, [(0,)], np.zeros(1, dtype=np.int8))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state"
            llama.llama_state_seq_save_file(context.handle, os.fsencode(file), 0, None, 0)
            head = file.read_bytes()[:_HEAD_BYTES]
        return {
            "caches": cache_layers(log.lines),
            "file": head.hex(),
            "memory": saved_state(context.handle, 0).hex(),
        }


if __name__ == "__main__":
    main()
