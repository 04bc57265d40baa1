"""A search from a model file to a result on disk: the one call that the command line makes.

In the folder of a search are `search.jsonl`, every candidate (what a second call resumes from),
`factors.json`, the best so far and in the end the winner, and `result.json`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope._files import storage, write_whole
from ggufrope.errors import RequestError
from ggufrope.rope.architectures import architecture
from ggufrope.rope.factors import FactorSet, format_factors
from ggufrope.rope.scaling import RopeScaling
from ggufrope.search.bench import Runtime, open_bench
from ggufrope.search.engine import Judge, Watch, search
from ggufrope.search.record import Record
from ggufrope.search.result import SearchResult, result_of
from ggufrope.search.spaces import Rotation, rotation_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ggufrope.patching.inspection import StoredModel
    from ggufrope.search.plan import SearchPlan

RECORD, FACTORS, RESULT = "search.jsonl", "factors.json", "result.json"

_PAGES, _PAGE = 256, 4096


def run_search(
    model: StoredModel,
    plan: SearchPlan,
    runtime: Runtime[Any],
    *,
    folder: Path,
    working: Path | None = None,
    settings: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> SearchResult:
    """Carry out `plan` on `model`, keeping everything in `folder`; the same call resumes.

    `working` is where working files go, the system's temporary folder where None. `settings` are
    those of the runtime that losses depend on, such as cache types. Raises
    RequestError where the model, the plan or an older record in `folder` do not fit together,
    StorageError where a folder cannot be used, BackendError where the runtime fails; what was
    finished by then is kept, and `folder` has the best factors so far.
    """
    arch = architecture(model.metadata.architecture)
    if not arch.loads_factors and plan.space != "yarn":
        raise RequestError(
            f"llama.cpp loads no factor tensors for {arch.name}: search with the space yarn, "
            "whose result is run-time flags"
        )
    rotation = rotation_of(
        model.metadata,
        target_context=plan.target_context,
        original_context=plan.original_context,
    )
    with storage("create", folder):
        folder.mkdir(parents=True, exist_ok=True)

    search_identity = identity(model, plan, settings or {})

    def keep(best: RopeScaling, short: RopeScaling | None = None) -> None:
        write_factors(folder / FACTORS, rotation, best, short)

    with (
        Record(folder / RECORD, search_identity) as record,
        _working_folder(working) as temporary,
        closing(open_bench(model, rotation, runtime, temporary)) as bench,
    ):
        found = search(
            plan,
            rotation,
            Judge(bench, record, watch),
            keep_short_context=plan.keep_short_context and arch.has_long_short_factors,
            keep=keep,
        )
        keep(found.winner, found.short)
        result = result_of(
            model,
            search_identity,
            rotation,
            found,
            record.candidates,
            factors_path=folder / FACTORS,
            live=bench.live,
        )
    write_whole(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")
    return result


def write_factors(
    path: Path, rotation: Rotation, long: RopeScaling, short: RopeScaling | None
) -> None:
    """Write the factor tensors of a scheme, as `patch --long-factors` reads them."""
    factors = FactorSet(long=rotation.absolute_factors(long))
    if short is not None:
        factors = replace(factors, short=rotation.absolute_factors(short))
    write_whole(path, format_factors(factors, form="json").decode())


def identity(model: StoredModel, plan: SearchPlan, settings: Mapping[str, str]) -> dict[str, Any]:
    """What the losses of a search depend on. The budget is not of it: more can be given later."""
    options = asdict(plan)
    del options["budget_seconds"]
    options["text"] = None if plan.text is None else plan.text.sha256
    return {
        **options,
        "settings": dict(settings),
        "file_size": model.files.file_size,
        "fingerprint": _fingerprint(model),
    }


def _fingerprint(model: StoredModel) -> str:
    """SHA-256 of every header, and of pages evenly spread over the weights: enough to tell models
    apart, at the cost of a megabyte a file."""
    digest = hashlib.sha256()
    for shard in model.files.shards:
        start, size = shard.header.data_offset, shard.header.file_size
        with storage("read", shard.path), shard.path.open("rb") as stream:
            digest.update(stream.read(start))
            for number in range(_PAGES):
                stream.seek(start + (size - start) * number // _PAGES)
                digest.update(stream.read(_PAGE))
    return digest.hexdigest()


@contextmanager
def _working_folder(parent: Path | None) -> Iterator[Path]:
    with storage("make a working folder in", parent or Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="ggufrope-search-", dir=parent)
    with folder as name:
        yield Path(name)
