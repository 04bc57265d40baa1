"""The generator of tables, on a source tree in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/architectures.py"

SOURCES = {
    "ggml/CMakeLists.txt": """
set(GGML_VERSION_MAJOR 0)
set(GGML_VERSION_MINOR 99)
set(GGML_VERSION_PATCH 1)
""",
    "src/llama-arch.cpp": """
static const std::map<llm_arch, const char *> LLM_ARCH_NAMES = {
    { LLM_ARCH_ROUND,   "round"   },
    { LLM_ARCH_SPIRAL,  "spiral"  },
    { LLM_ARCH_UNKNOWN, "(unknown)" },
};
bool llm_arch_is_diffusion(const llm_arch & arch) {
    switch (arch) {
        default: return false;
    }
}
""",
    "src/llama-model.cpp": """
llama_model * llama_model_create(llm_arch arch) {
    switch (arch) {
        case LLM_ARCH_ROUND: return new llama_model_round(params);
        case LLM_ARCH_SPIRAL: return new llama_model_spiral(params);
    }
}
    if (hparams.n_rot() > n_embd_head) { throw std::runtime_error("invalid n_rot"); }
llama_rope_type llama_model_rope_type(const llama_model * model) {
    switch (model->arch) {
        case LLM_ARCH_ROUND: return LLAMA_ROPE_TYPE_NORM;
        case LLM_ARCH_SPIRAL: return LLAMA_ROPE_TYPE_NEOX;
    }
}
bool llama_model_has_decoder(const llama_model * model) {
    switch (model->arch) {
        default: return true;
    }
}
""",
    "src/models/models.h": """
struct llama_model_round : public llama_model_base {
    struct graph {};
};
struct llama_model_spiral : public llama_model_round {
    struct graph {};
};
""",
    "src/models/round.cpp": """
void llama_model_round::load_arch_hparams(llama_model_loader & ml) {
    ml.get_key(LLM_KV_ROPE_SCALING_YARN_BETA_FAST, hparams.yarn_beta_fast, false);
    hparams.swa_type = LLAMA_SWA_TYPE_STANDARD;
    uint32_t swa_period = 6; // what is left out
    ml.get_key_or_arr(LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, swa_period, false);
    hparams.set_swa_pattern(swa_period);
}
void llama_model_round::load_arch_tensors(llama_model_loader & ml) {
    create_tensor(tn(LLM_TENSOR_ROPE_FREQS, "weight"), {n_rot/2}, 0);
}
llama_model_round::graph::graph(const llama_model & model) {
    Qcur = ggml_rope_ext(ctx0, Qcur, inp_pos, rope_factors, n_rot, rope_type, n_ctx_orig);
}
""",
    "src/models/spiral.cpp": """
void llama_model_spiral::load_arch_hparams(llama_model_loader & ml) {
    llama_model_round::load_arch_hparams(ml);
    ml.get_key(LLM_KV_ROPE_SCALING_YARN_BETA_SLOW, hparams.yarn_beta_slow, false);
}
void llama_model_spiral::load_arch_tensors(llama_model_loader & ml) {
    output = create_tensor(tn(LLM_TENSOR_OUTPUT, "weight"), {n_embd, n_vocab}, 0);
}
llama_model_spiral::graph::graph(const llama_model & model) {
    Qcur = ggml_rope_ext(ctx0, Qcur, inp_pos, nullptr, n_rot, rope_type, n_ctx_orig);
}
""",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / "llama.cpp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path / "llama.cpp"


def generate(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), str(tree), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_table_is_read_out_of_any_tree(tree: Path) -> None:
    made = json.loads(generate(tree, "--commit", "b99999", "--package", "mine 1.0").stdout)
    assert made["source"] == {"commit": "b99999", "package": "mine 1.0", "ggml": "0.99.1"}
    sliding = {"pattern": 6, "base": "context", "scale": "context"}
    assert made["architectures"] == {
        "round": {
            "rope": "norm",
            "reads": ["yarn_beta_fast"],
            "tensors": ["rope_freqs.weight"],
            "factors_on": "all",
            "sliding": sliding,
        },
        "spiral": {
            "rope": "neox",
            "reads": ["yarn_beta_fast", "yarn_beta_slow"],
            "sliding": sliding,
        },
    }


def test_a_checkout_names_its_commit(tree: Path) -> None:
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert json.loads(generate(tree).stdout)["source"]["commit"] == head.stdout.strip()


def test_a_package_has_no_commit_of_its_own(tree: Path) -> None:
    refused = generate(tree)
    assert refused.returncode == 2
    assert "--commit" in refused.stderr


def test_what_is_not_found_is_said(tree: Path) -> None:
    path = tree / "src/models/round.cpp"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "swa_period" not in line), "utf-8")
    made = generate(tree, "--commit", "b99999")
    assert made.returncode == 0
    assert "check by hand: round: which layers slide" in made.stderr


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("src/models/models.h", None, "no src/models/models.h"),
        ("src/llama-arch.cpp", "", "no llama_model_"),
        ("src/llama-model.cpp", "return new llama_model_round", "no llama_model_"),
    ],
)
def test_another_tree_is_refused(tree: Path, name: str, text: str | None, reason: str) -> None:
    path = tree / name
    path.unlink() if text is None else path.write_text(text, "utf-8")
    refused = generate(tree, "--commit", "b99999")
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert not refused.stdout
