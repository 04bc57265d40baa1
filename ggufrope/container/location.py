"""Find a model file by its usual name, and all those in a folder. Nothing is ever downloaded.

A name is a path, `ollama:NAME[:TAG]`, or `hf:OWNER/REPO/FILE`; the last two are looked up in the
stores that those tools keep on disk (`OLLAMA_MODELS`; `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from ggufrope.container.shards import first_path
from ggufrope.errors import RequestError, StorageError

_OLLAMA_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"[a-z0-9]{1,16}[:-][0-9a-fA-F]{1,128}")
_SEPARATORS = "/\\" if os.name != "nt" else "/\\:"
_MOST_TEXT = 4 << 20
_MOST_NAME_BYTES = 255


def locate(name: str) -> Path:
    """Return the path of the model called `name`. A plain path is returned as given, unchecked.

    Raises RequestError where an `ollama:` or `hf:` name has the wrong form, StorageError where
    nothing of that name is on disk.
    """
    if not name:
        raise RequestError("the name of the model is empty; expected a path")
    if "\0" in name:
        raise RequestError(f"{name!r} is not the name of a file: it has a zero byte")
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "ollama":
        return _ollama(rest)
    if colon and scheme == "hf":
        return _hugging_face(rest)
    if colon and scheme in ("http", "https"):
        raise RequestError(f"{name}: nothing is downloaded; fetch the file and give its path")
    return Path(name)


def find_models(folder: Path) -> tuple[Path, ...]:
    """Return the models in a folder and in those below it, in the order of their paths.

    These are files named `*.gguf`, of a split model the first one alone. Links are followed, and a
    file that several names lead to is found once, by a name that is no link where it has one. A
    folder that cannot be read, a link that leads nowhere, and a later file without the first are
    found too, so that whoever reads them says so. Raises StorageError where `folder` itself cannot
    be read.
    """
    found: list[Path] = []
    seen: set[str] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(current.iterdir())
        except OSError as error:
            if current == folder:
                raise StorageError(f"cannot read {folder}: {error.strerror or error}") from error
            found.append(current)
            continue
        for entry in entries:
            # os.path, unlike Path, takes what may not be looked at for absent, and does not raise.
            if os.path.isdir(entry):  # noqa: PTH112
                pending.append(entry)
            elif entry.suffix.lower() == ".gguf" and (
                os.path.isfile(entry) or not os.path.exists(entry)  # noqa: PTH110, PTH113
            ):
                found.append(entry)
    return _distinct(found)


def _distinct(paths: list[Path]) -> tuple[Path, ...]:
    """Return one path per model, in order."""
    files: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (first_path(path) != path, path.is_symlink(), path)):
        files.setdefault(os.path.realpath(first_path(path)), path)
    return tuple(sorted(files.values()))


def _ollama(name: str) -> Path:
    store = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    model, _, tag = name.partition(":")
    parts = [part for part in model.split("/") if part]
    tag = tag or "latest"
    if not 1 <= len(parts) <= 3 or not all(map(_is_component, (*parts, tag))):
        raise RequestError(
            f"ollama:{name}: expected ollama:NAME, ollama:NAME:TAG or ollama:USER/NAME"
        )
    if len(parts) == 1:
        parts.insert(0, "library")
    host = parts.pop(0) if len(parts) == 3 else "registry.ollama.ai"
    manifest = store.joinpath("manifests", host, *parts, tag)
    try:
        layers = json.loads(_small_text(manifest))["layers"]
        (digest,) = (la["digest"] for la in layers if la["mediaType"] == _OLLAMA_MODEL_LAYER)
    except OSError as error:
        raise StorageError(
            f"ollama:{name}: no such model in {store} ({error.strerror or error}); `ollama list` "
            "shows them"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"ollama:{name}: {manifest} is not a manifest with one model") from error
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise StorageError(
            f"ollama:{name}: {manifest} names the model {str(digest)[:80]!r}, expected sha256:HEX"
        )
    return store / "blobs" / digest.replace(":", "-")


def _hugging_face(name: str) -> Path:
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not all(map(_is_component, (owner, repository, *file.split("/")))):
        raise RequestError(f"hf:{name}: expected hf:OWNER/REPO/FILE")
    folder = _hub_cache() / f"models--{owner}--{repository}"
    snapshots = folder / "snapshots"
    candidates = []
    # A reference that is damaged or leads out of the cache is none: any snapshot will do.
    with suppress(OSError, ValueError):
        revision = _small_text(folder / "refs" / "main").strip()
        if _is_component(revision):
            candidates.append(snapshots / revision / file)
    try:
        if snapshots.is_dir():
            candidates += sorted(snapshot / file for snapshot in snapshots.iterdir())
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    except OSError as error:
        raise StorageError(f"hf:{name}: cannot read {snapshots}: {error.strerror}") from error
    download = shlex.join(("hf", "download", f"{owner}/{repository}", file))
    raise StorageError(
        f"hf:{name}: not in the Hugging Face cache {folder.parent}; fetch it with `{download}`"
    )


def _is_component(word: str) -> bool:
    """Return whether a word names one entry of a folder, and nothing outside of it."""
    if word in ("", ".", "..") or len(os.fsencode(word)) > _MOST_NAME_BYTES:
        return False
    return not any(character in _SEPARATORS or not character.isprintable() for character in word)


def _small_text(path: Path) -> str:
    """Return the text of a small file. Raises OSError, ValueError where it is no UTF-8 text."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > _MOST_TEXT:
        raise OSError(errno.EFBIG, "too large", str(path))
    return path.read_text(encoding="utf-8")


def _hub_cache() -> Path:
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "huggingface" / "hub"
