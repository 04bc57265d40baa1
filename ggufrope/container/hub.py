"""Models of the Hugging Face Hub: `hf:OWNER/REPO/FILE`, at a revision with `@REVISION` behind it.

A file is looked up in the cache that huggingface_hub keeps (`HF_HUB_CACHE`, `HF_HOME`,
`XDG_CACHE_HOME`), or its parts are read from the Hub, or it is fetched into the cache whole.
huggingface_hub is imported only where the Hub is asked; the endpoint, the token and all other
settings are those that it finds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ggufrope._files import is_component, read_text
from ggufrope.container.remote import Address, RemoteFile, http_library, is_allowed, origin_of
from ggufrope.container.shards import names_of_shards
from ggufrope.errors import MissingDependencyError, RequestError, StorageError

_MOST_REFERENCE = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A file of a repository; `revision` is a branch, tag or commit, None for the main branch."""

    owner: str
    repository: str
    file: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `OWNER/REPO/FILE[@REVISION]`. Raises RequestError where a part leads elsewhere.

        A revision begins at the `@` behind `.gguf`: names of files have that letter too.
        """
        owner, _, rest = text.partition("/")
        repository, _, path = rest.partition("/")
        stem, mark, revision = path.partition(".gguf@")
        file = f"{stem}.gguf" if mark else path
        parts = (owner, repository, *file.split("/"), *(revision.split("/") if mark else ()))
        if not all(map(is_component, parts)):
            raise RequestError(f"hf:{text}: expected hf:OWNER/REPO/FILE or hf:OWNER/REPO/FILE@REV")
        return cls(owner=owner, repository=repository, file=file, revision=revision or None)

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        return f"hf:{self.owner}/{self.repository}/{self.file}{at}"

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repository}"

    def with_file_name(self, name: str) -> HubName:
        """Return the file of that name in the same folder."""
        folder, slash, _ = self.file.rpartition("/")
        return replace(self, file=f"{folder}{slash}{name}")

    def cached(self) -> Path | None:
        """Return the file in the cache, None where that does not have it.

        Without a revision any will do, that of the main branch first. Raises StorageError where the
        cache cannot be read.
        """
        folder = _cache() / f"models--{self.owner}--{self.repository}"
        snapshots = folder / "snapshots"
        candidates = []
        # A reference that is damaged or leads out of the cache is none.
        with suppress(StorageError, RequestError):
            reference = folder.joinpath("refs", *(self.revision or "main").split("/"))
            commit = read_text(reference, most=_MOST_REFERENCE).strip()
            if is_component(commit):
                candidates.append(snapshots / commit / self.file)
        try:
            if self.revision is not None:
                candidates.append(snapshots / self.revision / self.file)
            elif snapshots.is_dir():
                candidates += sorted(snapshot / self.file for snapshot in snapshots.iterdir())
            return next((each for each in candidates if each.is_file()), None)
        except OSError as error:
            raise StorageError(f"{self}: cannot read {snapshots}: {error.strerror}") from error


class HubFile(RemoteFile):
    """A file on the Hub, read in parts."""

    def __init__(self, hub_name: HubName, *, whole: bool = False) -> None:
        name = hub_name.file.rpartition("/")[2]
        super().__init__(shown=str(hub_name), name=name, whole=whole)
        self._hub_name = hub_name

    def with_name(self, name: str) -> HubFile:
        return HubFile(self._hub_name.with_file_name(name), whole=self.whole)

    @property
    def download(self) -> tuple[str, ...]:
        return ("ggufrope", "fetch", str(self))

    @property
    def name_here(self) -> str:
        return str(self)

    def find_address(self) -> Address:
        hub, httpx = _library(), http_library()
        asked = _address(self._hub_name, hub)
        endpoint = httpx.URL(asked)
        self.requests += 1
        with _explained(self._hub_name, hub):
            found = hub.get_hf_file_metadata(asked)
            url = httpx.URL(found.location)
        if not is_allowed(url.scheme, url.host, may_be_local=endpoint.scheme == "http"):
            raise StorageError(f"{self}: the Hub redirects to {url.scheme}://{url.host}")
        return Address(
            url=url,
            origin=origin_of(endpoint),
            authorization=hub.utils.build_hf_headers().get("authorization"),
        )


def fetch(name: str) -> tuple[Path, ...]:
    """Download `hf:OWNER/REPO/FILE[@REV]` into the cache of huggingface_hub; return the path there.

    A download that was interrupted goes on. Of a split model `name` is the first file, and all are
    fetched. Raises RequestError for another name, StorageError where it cannot be had,
    MissingDependencyError without huggingface_hub.
    """
    scheme, _, rest = name.partition(":")
    if scheme != "hf":
        raise RequestError("expected hf:OWNER/REPO/FILE; other tools fetch other names")
    first = HubName.parse(rest)
    own = first.file.rpartition("/")[2]
    names = names_of_shards(own)
    if own != names[0]:
        raise RequestError(f"{first} is not the first file of its model; name {names[0]}")
    hub = _library()
    _address(first, hub)
    paths = []
    for each in map(first.with_file_name, names):
        with _explained(each, hub):
            paths.append(hub.hf_hub_download(each.repo_id, each.file, revision=each.revision))
    return tuple(map(Path, paths))


def _library() -> Any:
    """Return huggingface_hub. Raises MissingDependencyError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise MissingDependencyError(
            "files of the Hub that are not in its cache need huggingface_hub: "
            "pip install 'ggufrope[remote]'"
        ) from error
    return huggingface_hub


def _address(name: HubName, hub: Any) -> str:
    """Return the address of a file of the Hub. Raises RequestError where a token would travel
    there in the clear."""
    asked: str = hub.hf_hub_url(name.repo_id, name.file, revision=name.revision)
    parts = urlsplit(asked)
    if not is_allowed(parts.scheme, parts.hostname or "", may_be_local=True):
        raise RequestError(
            f"HF_ENDPOINT {parts.scheme}://{parts.hostname}: only https: addresses are read, and "
            "http: ones of this machine"
        )
    return asked


@contextmanager
def _explained(name: HubName, hub: Any) -> Iterator[None]:
    """Turn what huggingface_hub raises into a StorageError without addresses and tokens."""
    known = hub.errors
    try:
        yield
    except known.GatedRepoError:
        reason = "the repository is gated: ask for access on its page, and log in (`hf auth login`)"
    except known.RepositoryNotFoundError:
        reason = "there is no such repository, or a private one: log in (`hf auth login`)"
    except known.RevisionNotFoundError:
        reason = f"the repository has no revision {name.revision or 'main'}"
    except known.LocalEntryNotFoundError as error:
        reason = f"not in the cache, and the Hub cannot be reached ({_cause(error)})"
    except known.EntryNotFoundError:
        reason = "the repository has no such file"
    except known.OfflineModeIsEnabled:
        reason = "not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub"
    except known.HfHubHTTPError as error:
        reason = f"the Hub answers {error.response.status_code}"
    except Exception as error:  # of the HTTP library below, which is another in each version
        reason = _cause(error)
    else:
        return
    raise StorageError(f"{name}: {reason}")


def _cause(error: BaseException) -> str:
    """Return the innermost reason in its first line, without addresses."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\w+://\S+", "…", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cache() -> Path:
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    if home := os.environ.get("HF_HOME"):
        return Path(home) / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "huggingface" / "hub"
