"""Before long work: the lengths that nobody named, the folder that keeps the results, and one line
that says what the work takes."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .output import stderr_console
from .tables import shown

if TYPE_CHECKING:
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.runs.estimate import JobEstimate
    from ggufrope.runs.jobs import Job, Selection
    from ggufrope.runs.models import ModelFile
    from ggufrope.runs.plan import RunPlan
    from ggufrope.runs.store import RunStore

RUNS = Path("runs")


def take_llama(folder: str | None) -> None:
    """Use the build of llama.cpp in `folder`, None for the usual one; say where it was not tested.

    Raises MissingDependencyError and RequestError where it cannot be used.
    """
    from ggufrope.runtime import library
    from ggufrope.runtime.engine import use_llama

    use_llama(folder)
    found = library.versions()
    if not found.tested:
        _say(
            f"ggufrope was not tested with llama.cpp {found.llama_cpp} ({found.commit}); "
            f"`ggufrope doctor{' --llama-lib FOLDER' * (not found.own)}` says what it reads of it."
        )


def default_contexts(model: str, requests: tuple[ScalingRequest, ...]) -> tuple[int, ...]:
    """Return lengths to measure `model` at: from what it was trained for to what the requests
    reach, or up to the context of the file.

    Raises OptionError where a scaling reaches for no length.
    """
    from ggufrope.advice.advise import contexts_to_measure
    from ggufrope.patching.inspection import read_model
    from ggufrope.rope.trained import trained_context
    from ggufrope.runs.plan import MIN_CONTEXT

    from .errors import OptionError
    from .values import model_path

    metadata = read_model(model_path(model)).metadata
    trained = trained_context(metadata)
    if trained is None:
        raise OptionError("--ctx is missing, and the file declares no context length")
    targets = [
        request.target_context or int(trained.tokens * (request.factor or 0))
        for request in requests
    ]
    scaled = any(not request.is_file and request.scaling != "none" for request in requests)
    if scaled and not any(targets):
        raise OptionError(
            "missing --ctx, such as 8k,16k; or --target-ctx, to measure the lengths up to it"
        )
    target = max(targets) or metadata.context_length or trained.tokens
    found = contexts_to_measure(trained.tokens, target)
    return tuple(each for each in found if each >= MIN_CONTEXT) or (target,)


@contextmanager
def kept_results(model: str) -> Iterator[Path]:
    """Make a folder for the results of one command, and name it at the end.

    It is runs/NAME-1, -2, … after the model; temporary where none can be made here.
    """
    from ggufrope._files import working_folder

    name = re.sub(r"[^\w.+-]+", "-", Path(model).stem).strip(".-")[:100] or "model"
    try:
        folder = _new_folder(name)
    except OSError as error:
        reason = f"{RUNS}: {error.strerror or error}"
        _say(f"The results are not kept ({reason}); --out keeps them elsewhere.")
        with working_folder() as temporary:
            yield temporary
        return
    try:
        yield folder
    finally:
        if _has_results(folder):
            if isinstance(sys.exc_info()[1], KeyboardInterrupt):
                _say(f"To go on, add to the same command: --out {folder}")
            page = f"ggufrope report {folder} --html {folder.name}.html"
            _say(f"Results: {folder} · as a page: {page}")
        else:
            shutil.rmtree(folder)
            with suppress(OSError):  # other runs are there
                RUNS.rmdir()


def _has_results(folder: Path) -> bool:
    from ggufrope.errors import StorageError
    from ggufrope.runs.store import RunStore

    try:
        with RunStore(folder) as store:
            return any(result.status == "ok" for result in store.results())
    except StorageError:
        return False


def _say(line: str) -> None:
    """Print a remark: whole where it goes to a file, or has something to paste."""
    out = stderr_console()
    whole = not out.is_terminal or "ggufrope " in line
    out.print(shown(line), style="dim", soft_wrap=whole)


def _new_folder(name: str) -> Path:
    RUNS.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = RUNS / f"{name}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def estimate_jobs(
    plan: RunPlan, selection: Selection, *, tokens_per_second: float | None = None
) -> tuple[JobEstimate, ...]:
    """Return the selected jobs of `plan` with the tokens, memory and time that each will take."""
    from ggufrope.runs.jobs import expand
    from ggufrope.runs.models import models_of, resolve_base

    files = models_of(plan)
    jobs = selection.choose(expand(plan, files, resolve_base(plan, files)))
    return _estimates(plan, jobs, files, tokens_per_second)


def _estimates(
    plan: RunPlan,
    jobs: tuple[Job, ...],
    files: Sequence[ModelFile],
    tokens_per_second: float | None,
) -> tuple[JobEstimate, ...]:
    from ggufrope.advice.memory import memory_need
    from ggufrope.container.location import locate
    from ggufrope.patching.inspection import naming, read_model
    from ggufrope.runs.estimate import contexts_at_once, estimate
    from ggufrope.runs.models import REUSES

    if plan.runtime.server is not None:
        reuse = {file.name: dict(file.details).get(REUSES) == "yes" for file in files}
        return estimate(
            plan,
            jobs,
            memory=lambda job, tokens: None,
            tokens_per_second=tokens_per_second,
            reuses=lambda job: reuse[job.model],
        )
    models = {file.name: read_model(Path(file.path)) for file in files}
    base = None if plan.base is None else read_model(locate(plan.base)).header
    beside = 0 if base is None else sum(tensor.length for tensor in base.tensors)

    def memory(job: Job, context_tokens: int) -> int:
        model = models[job.model]
        with naming(model.path):
            need = memory_need(
                model.header,
                model.metadata,
                context_tokens=context_tokens,
                k_type=job.kv.k,
                v_type=job.kv.v,
            )
        others = contexts_at_once(job) - 1
        return need.total_bytes + others * (need.kv_bytes + need.compute_bytes + beside)

    return estimate(plan, jobs, memory=memory, tokens_per_second=tokens_per_second)


def announce(store: RunStore, jobs: Iterable[Job]) -> None:
    """Say in one line what the pending of these jobs will take, before they begin."""
    from ggufrope._format import byte_size
    from ggufrope.runs.models import LACKS

    pending = {entry.job.id for entry in store.jobs() if entry.state == "pending"}
    left = tuple(job for job in jobs if job.id in pending)
    if not left:
        return
    files = [record.file for record in store.models()]
    estimates = _estimates(store.plan, left, files, None)
    cells = sum(len(job.cells) - len(store.results_of(job)) for job in left)
    longest = max(cell.context_tokens for job in left for cell in job.cells)
    parts = [
        f"{cells:,} cell{'s' * (cells != 1)} of up to {longest:,} tokens{_growth(store, longest)}",
        f"at most {sum(each.tokens for each in estimates):,} tokens to evaluate"
        + (" by the server" if store.plan.runtime.server else ""),
    ]
    needs = [each.memory_bytes for each in estimates if each.memory_bytes is not None]
    if needs:
        parts.append(f"{byte_size(max(needs))} of memory")
    _say("; ".join(parts))
    for pair in _slow_pairs(store.plan, files):
        _say(f"K/V {pair}: attention leaves the GPU in this build; see `ggufrope doctor`.")
    for file in files if store.plan.runtime.server else ():
        details = dict(file.details)
        _say(f"{details['server']}, {file.name}, does not give {details[LACKS]}.")


def _slow_pairs(plan: RunPlan, files: Sequence[ModelFile]) -> Iterator[str]:
    """Yield the pairs of cache types that the installed llama.cpp runs slowly on a model."""
    from ggufrope.patching.inspection import read_model
    from ggufrope.runtime.attention import known_slow_pairs

    at = plan.runtime
    mixed = [kv for kv in plan.kv_types if str(kv) != "f16"]
    # In a process of its own, each worker asks for its own device.
    if not mixed or at.server or at.rpc or at.devices or at.gpu_layers == 0:
        return
    known = [known_slow_pairs(read_model(Path(file.path)).metadata) or () for file in files]
    for kv in mixed:
        if any((kv.k, kv.v) in slow for slow in known):
            yield str(kv)


def _growth(store: RunStore, longest: int) -> str:
    """Return how many times the trained context the longest one is, where it is longer."""
    natives = [record.file.native_context for record in store.models()]
    trained = min((each for each in natives if each), default=longest)
    times = longest / trained
    shown = f"{times:,.0f}" if times >= 100 else f"{times:.3g}"
    return f" ({shown} times the trained context)" if longest > trained else ""
