"""Find a model file by its usual name, and all those in a folder. Nothing is downloaded here.

A name is a path, `ollama:NAME[:TAG]` in the store that Ollama keeps on disk (`OLLAMA_MODELS`),
`hf:OWNER/REPO/FILE[@REV]` in the cache of the Hugging Face Hub or on the Hub, or an `https:`
address.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ggufrope._files import is_component, read_text
from ggufrope.container.remote import Place, WebFile, local
from ggufrope.container.shards import first_path
from ggufrope.errors import RequestError, StorageError

_OLLAMA_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"[a-z0-9]{1,16}[:-][0-9a-fA-F]{1,128}")
_ADDRESS = re.compile(r"https?:|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How any address begins, also one that cannot be read: it is no path, and may have a password."""
_MOST_TEXT = 4 << 20


def locate(name: str) -> Path:
    """Return the path of the model called `name`. A plain path is returned as given, unchecked.

    Raises RequestError where the name has the wrong form, StorageError where nothing of that name
    is on disk.
    """
    return local(find(name))


def find(name: str, *, whole: bool = False) -> Place:
    """Return where the model called `name` is: on disk, else on a server, to read its header there.

    `whole` permits a server that knows no ranges to send the file from its start. Raises
    RequestError where the name has the wrong form, StorageError where an `ollama:` name is not on
    disk. No server is asked before the file is read.
    """
    if not name:
        raise RequestError("the name of the model is empty; expected a path")
    if "\0" in name:
        raise RequestError(f"{name!r} is not the name of a file: it has a zero byte")
    scheme, _, rest = name.partition(":")
    if scheme == "ollama":
        return _ollama(rest)
    if scheme == "hf":
        from ggufrope.container.hub import HubFile, HubName  # only those who name it need it

        hub_name = HubName.parse(rest)
        return hub_name.cached() or HubFile(hub_name, whole=whole)
    if _ADDRESS.match(name):
        return WebFile(name, whole=whole)
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
    if not 1 <= len(parts) <= 3 or not all(map(is_component, (*parts, tag))):
        raise RequestError(
            f"ollama:{name}: expected ollama:NAME, ollama:NAME:TAG or ollama:USER/NAME"
        )
    if len(parts) == 1:
        parts.insert(0, "library")
    host = parts.pop(0) if len(parts) == 3 else "registry.ollama.ai"
    manifest = store.joinpath("manifests", host, *parts, tag)
    try:
        layers = json.loads(read_text(manifest, most=_MOST_TEXT))["layers"]
        (digest,) = (la["digest"] for la in layers if la["mediaType"] == _OLLAMA_MODEL_LAYER)
    except StorageError as error:
        raise StorageError(
            f"ollama:{name}: no such model in {store} ({error}); `ollama list` shows them"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"ollama:{name}: {manifest} is not a manifest with one model") from error
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise StorageError(
            f"ollama:{name}: {manifest} names the model {str(digest)[:80]!r}, expected sha256:HEX"
        )
    return store / "blobs" / digest.replace(":", "-")
