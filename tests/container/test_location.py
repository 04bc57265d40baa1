"""Names of models in the stores of other tools, looked up in stores made by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ggufrope.container.location import find_models, locate
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


def test_hugging_face_at_a_revision(hub: Path) -> None:
    (hub / "refs" / "v1").mkdir()
    (hub / "refs" / "v1" / "rc").write_text("aaa")
    for name in ("aaa", "v1/rc"):
        found = hub / "snapshots" / "aaa" / "sub" / "m.gguf"
        assert locate(f"hf:owner/repo/sub/m.gguf@{name}") == found
    with pytest.raises(StorageError, match=r"`ggufrope fetch hf:owner/repo/sub/m.gguf@v2`"):
        locate("hf:owner/repo/sub/m.gguf@v2")


def test_hugging_face_absent(hub: Path) -> None:
    with pytest.raises(StorageError, match=r"`ggufrope fetch hf:owner/repo/other.gguf`"):
        locate("hf:owner/repo/other.gguf")


@pytest.mark.parametrize("name", ["ollama:", "ollama:../x", "hf:owner/repo", "hf:a/../../b/c"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(RequestError, match="expected"):
        locate(name)


def test_models_of_a_folder_are_found_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in (
        "z.gguf",
        "b/a.GGUF",
        "b/s-00002-of-00002.gguf",
        "b/s-00001-of-00002.gguf",
        "lone-00003-of-00004.gguf",
        "lone-00002-of-00004.gguf",
        ".m.gguf.ggufrope-partial",
        "notes.gguf.txt",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a-link.gguf").symlink_to("z.gguf")
    (tmp_path / "gone.gguf").symlink_to("nowhere")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in find_models(tmp_path)]
    assert found == [
        "b/a.GGUF",
        "b/s-00001-of-00002.gguf",
        "gone.gguf",
        "lone-00002-of-00004.gguf",
        "z.gguf",
    ]


def test_a_folder_of_links_into_a_store_keeps_their_names(hub: Path) -> None:
    """As in the Hugging Face cache: two revisions of one file are one model."""
    snapshots = hub / "snapshots"
    blob = hub / "blobs" / "abc"
    blob.parent.mkdir()
    blob.write_bytes(b"GGUF")
    for revision in ("aaa", "bbb"):
        link = snapshots / revision / "sub" / "m.gguf"
        link.unlink()
        link.symlink_to(blob)
    assert find_models(hub) == (snapshots / "aaa" / "sub" / "m.gguf",)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        find_models(tmp_path / "absent")


@pytest.mark.parametrize(
    "name",
    [
        "ollama:..", "ollama:a/../b", "ollama:.", "ollama:tiny:../../x", "ollama:tiny:/etc/passwd",
        "ollama:tiny:..", "ollama:a/b/c/d", "ollama:a\nb", "hf:a/b/../../c", "hf:../x/f.gguf",
        "hf:a/../c", "hf:a//x", "hf:a/b//etc/passwd", "hf:a/b/", "hf:a/b/c\\d", "a\0b", "hf:a/b/\0",
        "hf:a/b/c.gguf@../x", "hf:a/b/c.gguf@", "hf:a/b/c.gguf@a//b",
    ],
)  # fmt: skip
def test_names_that_lead_out_of_a_store(name: str, ollama: Path) -> None:
    with pytest.raises(RequestError):
        locate(name)


@pytest.mark.parametrize(
    "digest",
    ["../../secret.gguf", "/etc/passwd", "sha256:../x", "sha256:a\0b", "", None, [], {"a": 1}],
)
def test_digests_that_lead_out_of_the_store(ollama: Path, digest: object) -> None:
    manifest = ollama / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    manifest.write_text(json.dumps({"layers": [layer]}))
    with pytest.raises(StorageError, match="expected sha256:HEX"):
        locate("ollama:tiny")


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff\xfe", b"[]", b"{", b'{"layers": null}'])
def test_manifests_that_are_none(ollama: Path, content: bytes) -> None:
    manifest = ollama / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    manifest.write_bytes(content)
    with pytest.raises(StorageError, match="is not a manifest"):
        locate("ollama:tiny")


@pytest.mark.parametrize(
    "content", [b"../../../secret", b"/etc", b"..", b"a\0b", b"\xff\xfe", b"", b"x" * 10_000]
)
def test_references_that_lead_out_of_the_cache(hub: Path, content: bytes) -> None:
    (hub / "refs" / "main").write_bytes(content)
    found = hub / "snapshots" / "aaa" / "sub" / "m.gguf"
    assert locate("hf:owner/repo/sub/m.gguf") == found


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_not_waited_for(hub: Path, ollama: Path) -> None:
    for path in (
        hub / "refs" / "main",
        ollama / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest",
    ):
        path.unlink()
        os.mkfifo(path)
    assert locate("hf:owner/repo/sub/m.gguf").parts[-3] == "aaa"
    with pytest.raises(StorageError, match="not a regular file"):
        locate("ollama:tiny")


def test_a_name_that_no_file_system_takes(hub: Path, ollama: Path) -> None:
    for name in ("hf:owner/repo/" + "x" * 5000, "ollama:" + "x" * 5000):
        with pytest.raises(RequestError, match="expected"):
            locate(name)
