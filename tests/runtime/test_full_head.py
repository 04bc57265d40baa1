"""Who runs with fewer rotary dimensions than a head has: the table and llama.cpp agree."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fixtures.architectures import ARCHITECTURES
from fixtures.make import build
from ggufrope.errors import LoadError
from ggufrope.rope.architectures import architectures
from ggufrope.runtime.model import Model

pytestmark = pytest.mark.llama

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import sys
import llama_cpp
parameters = llama_cpp.llama_model_default_params()
parameters.n_gpu_layers = 0
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
context = model and llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
sys.exit(0 if context else 1)
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_a_head_runs_where_the_table_says(architecture: str, tmp_path: Path) -> None:
    (path,) = build(architecture, tmp_path / "tiny.gguf", rotary=16)
    ended = subprocess.run([sys.executable, "-c", RUN, str(path)], capture_output=True)
    whole = architectures()[architecture].full_head
    assert (ended.returncode != 0) == whole
    if whole:
        with pytest.raises(LoadError, match="runs only with the head size, 32"):
            Model.open(path)
    else:
        Model.open(path).close()
