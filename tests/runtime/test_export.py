"""Exports for llama-cpp-python, executed: the same logits as a patched file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufrope.patching.exporting import export_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingRequest

llama_cpp = pytest.importorskip("llama_cpp", reason="executes exports in llama-cpp-python")

NANO = Path(__file__).parents[2] / "fixtures" / "nano.gguf"
TOKENS = 600
"""More than nano's own context of 256 tokens."""
REQUESTS = {
    "linear": ScalingRequest(scaling="linear", target_context=2048),
    "ntk": ScalingRequest(scaling="ntk", target_context=2048),
    "dynamic-ntk": ScalingRequest(scaling="dynamic-ntk", target_context=2048),
    "yarn": ScalingRequest(scaling="yarn", target_context=2048),
    "yarn attention factor": ScalingRequest(
        scaling="yarn", target_context=2048, attn_factor=1.1, freq_base=20000.0
    ),
}


def logits(text: str) -> tuple[int, int, Any]:
    """Execute an export: the context's length, the model's, and the logits behind a prompt."""

    def quiet(**arguments: Any) -> Any:
        return llama_cpp.Llama(**arguments, verbose=False, n_threads=1, n_threads_batch=1)

    model = eval(text, {"Llama": quiet})
    try:
        model.eval([1 + place % 40 for place in range(TOKENS)])
        trained = llama_cpp.llama_model_n_ctx_train(model.model)
        row = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        found = np.ctypeslib.as_array(row, shape=(model.n_vocab(),)).copy()
        return model.n_ctx(), trained, found
    finally:
        model.close()


def unscaled() -> Any:
    made = export_model(NANO, "llama-cpp-python", context_tokens=2048)
    return logits(made.text)[2]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_scaling_that_is_not_in_the_file(name: str, tmp_path: Path) -> None:
    request = REQUESTS[name]
    made = export_model(NANO, "llama-cpp-python", request=request)
    assert made.inexpressible == ()
    apply(plan_patch(NANO, request, output=tmp_path / "patched.gguf"))
    written = export_model(tmp_path / "patched.gguf", "llama-cpp-python")
    assert "rope" not in written.text
    length, trained, found = logits(made.text)
    patched_length, patched_trained, expected = logits(written.text)
    assert (length, trained) == (patched_length, patched_trained) == (2048, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(expected - unscaled()).max() > 0.1
