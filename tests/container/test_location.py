"""Names of models in the stores of other tools, looked up in stores made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggufrope.container.location import locate
from ggufrope.errors import RequestError, StorageError


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "sha256-abc").write_bytes(b"GGUF")
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:def"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"},
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    return tmp_path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--repo"
    for revision in ("aaa", "bbb"):
        (repository / "snapshots" / revision / "sub").mkdir(parents=True)
        (repository / "snapshots" / revision / "sub" / "m.gguf").write_bytes(b"GGUF")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("bbb\n")
    return repository


def test_a_path_is_itself() -> None:
    assert locate("some/model.gguf") == Path("some/model.gguf")


@pytest.mark.parametrize("name", ["tiny", "tiny:latest", "library/tiny"])
def test_ollama_name(ollama: Path, name: str) -> None:
    assert locate(f"ollama:{name}") == ollama / "blobs" / "sha256-abc"


def test_ollama_absent(ollama: Path) -> None:
    with pytest.raises(StorageError, match=r"no such model .*ollama list"):
        locate("ollama:other")


def test_ollama_manifest_without_a_model(ollama: Path) -> None:
    manifest = ollama / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    manifest.write_text("[]")
    with pytest.raises(StorageError, match="not a manifest"):
        locate("ollama:tiny")


def test_hugging_face_prefers_main(hub: Path) -> None:
    assert locate("hf:owner/repo/sub/m.gguf") == hub / "snapshots" / "bbb" / "sub" / "m.gguf"


def test_hugging_face_without_a_ref(hub: Path) -> None:
    (hub / "refs" / "main").unlink()
    assert locate("hf:owner/repo/sub/m.gguf") == hub / "snapshots" / "aaa" / "sub" / "m.gguf"


def test_hugging_face_absent(hub: Path) -> None:
    with pytest.raises(StorageError, match="download it first"):
        locate("hf:owner/repo/other.gguf")


@pytest.mark.parametrize("name", ["ollama:", "ollama:../x", "hf:owner/repo", "hf:a/../../b/c"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(RequestError, match="expected"):
        locate(name)
