"""A search from a model file to a result on disk: the one call that the command line makes.

In the folder of a search are `search.jsonl`, every candidate (what a second call resumes from),
`factors.json`, the best so far and in the end the winner, and `result.json`.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufrope._files import read_json, storage, working_folder, write_whole
from ggufrope._plain import decode
from ggufrope.backends.runtimes import Backend, LlamaBackend
from ggufrope.container.ggml import KvTypes
from ggufrope.container.pins import FileChangedError, Pin, PinChecks, pin
from ggufrope.container.reader import read_header
from ggufrope.errors import RequestError
from ggufrope.evals import stats
from ggufrope.patching.inspection import StoredModel, read_model
from ggufrope.patching.rotation import Rotation, rotation_of
from ggufrope.rope.architectures import architecture
from ggufrope.rope.factors import FactorSet, format_factors
from ggufrope.rope.purpose import require_generation
from ggufrope.rope.scaling import FrequencyFactors
from ggufrope.search.engine import Evaluator, Watch, search
from ggufrope.search.optimizers import require_optimizer
from ggufrope.search.record import Candidate, Record, read_candidates
from ggufrope.search.result import SearchResult, result_of
from ggufrope.search.rotators import open_rotator
from ggufrope.search.schemes import Scheme
from ggufrope.search.spaces import FACTOR_SPACES, UNIFORM_SPACES

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from ggufrope.search.plan import SearchPlan

RECORD, FACTORS, RESULT = SEARCH_FILES = ("search.jsonl", "factors.json", "result.json")
F16 = KvTypes(k="f16", v="f16")


def run_search(
    model: StoredModel | str | os.PathLike[str],
    plan: SearchPlan,
    backend: Backend[Any] | None = None,
    *,
    folder: Path,
    kv: KvTypes = F16,
    working: Path | None = None,
    watch: Watch | None = None,
) -> SearchResult:
    """Carry out `plan` on a model file, keeping everything in `folder`; the same call resumes.

    `backend` is what evaluates it, llama.cpp with its default settings where None, and `kv` the
    types of its caches. `working` is where working files go, the system's temporary folder where
    None. `watch` is called with each candidate. Raises RequestError where the model, the plan or an
    older record in `folder` do not fit together, MissingDependencyError where a needed package is
    not installed, StorageError where a folder cannot be used, BackendError where the runtime fails;
    what was finished by then is kept, and `folder` has the best factors so far.
    """
    backend = LlamaBackend() if backend is None else backend
    if not isinstance(model, StoredModel):
        model = read_model(Path(model))
    require_generation(model.metadata, str(model.path))
    arch = architecture(model.metadata.architecture)
    if not arch.loads_factors and plan.space in FACTOR_SPACES:
        raise RequestError(
            f"{arch.no_factors}: search with the space yarn, whose result is run-time flags"
        )
    rotation = rotation_of(
        model.metadata,
        target_context=plan.target_context,
        original_context=plan.original_context,
        within=plan.space == "attention",
    )
    require_optimizer(plan.optimizer)
    stats.require()
    backend.require()
    pins = _pinned(model)
    search_identity = {**identity(model, pins, plan, kv), "runtime": backend.versions()}
    with storage("create", folder):
        folder.mkdir(parents=True, exist_ok=True)

    def keep(best: Scheme, short: FrequencyFactors | None = None) -> None:
        if arch.loads_factors:
            write_factors(folder / FACTORS, rotation, best, short)

    with (
        Record(folder / RECORD, search_identity) as record,
        working_folder(working) as temporary,
        closing(open_rotator(model, rotation, backend, temporary, kv=kv)) as rotator,
    ):
        outcome = search(
            plan,
            rotation,
            Evaluator(rotator, record, watch, unchanged=_unchanged(pins)),
            short_factors=arch.has_long_short_factors and not _is_shared(plan),
            keep=keep,
        )
        keep(outcome.winner, outcome.short)
        result = result_of(
            model,
            search_identity,
            rotation,
            outcome,
            record.candidates,
            factors_path=folder / FACTORS,
            updates_in_place=rotator.updates_in_place,
        )
    write_whole(folder / RESULT, json.dumps(asdict(result), indent=1) + "\n")
    return result


def holds_search(folder: Path) -> bool:
    """Return whether a folder is that of a search, ended or not."""
    return (folder / RECORD).is_file()


def has_ended(folder: Path) -> bool:
    """Return whether the search in a folder has come to a result."""
    return (folder / RESULT).is_file()


def read_so_far(folder: Path) -> tuple[Candidate, ...]:
    """Return every candidate that the search in `folder` has judged, whether it ended or not.

    Raises RequestError where there is none, StorageError where its record cannot be read.
    """
    _require_search(folder)
    return read_candidates(folder / RECORD)


def read_result(folder: Path) -> SearchResult:
    """Return the result of the search in `folder`.

    Raises RequestError where there is none, or none yet, StorageError where it cannot be read.
    """
    _require_search(folder)
    path = folder / RESULT
    if not has_ended(folder):
        raise RequestError(
            f"the search in {folder} has not ended: run the same command to go on with it"
        )
    return decode(SearchResult, read_json(path), where=str(path))


def _require_search(folder: Path) -> None:
    if not holds_search(folder):
        raise RequestError(f"{folder} holds no search: it has no {RECORD}")


def write_factors(
    path: Path, rotation: Rotation, long: Scheme, short: FrequencyFactors | None
) -> None:
    """Write the factor tensors of a scheme, as a request reads `long_factors`."""
    factors = FactorSet(long=long.absolute_factors(rotation))
    if short is not None:
        factors = replace(factors, short=rotation.absolute_factors(short))
    write_whole(path, format_factors(factors, form="json").decode())


def identity(
    model: StoredModel, pins: Sequence[Pin], plan: SearchPlan, kv: KvTypes
) -> dict[str, Any]:
    """Return what the losses of a search depend on besides the runtime. The budget is not of it:
    more can be given later."""
    options = asdict(plan)
    del options["budget_seconds"]
    options["text"] = None if plan.text is None else plan.text.sha256
    return {
        **options,
        "settings": {"type_k": kv.k, "type_v": kv.v},
        "file_size": model.files.file_size,
        "sha256": [each.sha256 for each in pins],
    }


def _is_shared(plan: SearchPlan) -> bool:
    """Whether one set of factors is to serve all contexts."""
    return plan.shared_factors or plan.short_weight > 0 or plan.space in UNIFORM_SPACES


def _pinned(model: StoredModel) -> tuple[Pin, ...]:
    """Return the pins of every file of a model, which is read whole.

    Raises FileChangedError where a file is not the one that its header was read from.
    """
    pins = tuple(pin(shard.path) for shard in model.files.shards)
    for shard in model.files.shards:
        if read_header(shard.path) != shard.header:
            raise FileChangedError(f"{shard.path} changed after its header was read; search again")
    return pins


def _unchanged(pins: Sequence[Pin]) -> Callable[[], None]:
    """Return a check that raises FileChangedError where a file was touched since the last one."""
    checks = PinChecks()

    def check() -> None:
        if touched := checks.check(pins):
            raise FileChangedError(
                f"{touched} was touched while it was searched with; give the same command again "
                "to go on"
            )

    return check
