"""A scaling request -> a PatchPlan -> a PatchReceipt.

The plan is complete and nothing of it is written yet: each key old and new, what the runtime will
do with the result, what it would ignore, and how the bytes reach the disk. A dry run shows the very
object that `apply` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ggufrope.container.planning import require_room_for
from ggufrope.container.remote import Place
from ggufrope.container.shards import ModelFiles, distribute, open_model, sibling_paths
from ggufrope.container.store import StorePlan, execute_together, plan_store
from ggufrope.container.strategies import Rejection, Strategy
from ggufrope.container.types import Edits, TensorData, float_tensor
from ggufrope.container.writer import plan_rewrite
from ggufrope.errors import FileError, RequestError
from ggufrope.patching.compose import check_start, encode_request, patched
from ggufrope.patching.config_file import not_carried, read_config
from ggufrope.patching.inspection import StoredModel, read_model
from ggufrope.patching.request import ScalingRequest, Target, check_growth
from ggufrope.rope.effective import EffectiveRope
from ggufrope.rope.encode import Expression, Ignored
from ggufrope.rope.lint import Finding, lint
from ggufrope.rope.llamacpp import effective
from ggufrope.rope.reach import far_warning
from ggufrope.rope.trained import (
    TrainedContext,
    declared_scaling,
    published_original,
    trained_context,
    trained_state,
)

if TYPE_CHECKING:
    from ggufrope.container.shards import Shard
    from ggufrope.container.types import ByteOrder
    from ggufrope.rope.metadata import RopeMetadata

Shown: TypeAlias = int | float | bool | str | None
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One key or tensor before and after; None where it is absent. A tensor is shown in words."""

    key: str
    old: Shown
    new: Shown


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPlan:
    """What a patch will change, what the runtime will do with the result, and how it is stored.

    `findings` and `effective` are about the file as it will be, in a context of its new length.
    `trained` is the context that the scaling starts from, None where the file says none.
    `unchanged` are the numbers of layers that rotate as before.
    `stores` has one entry per file written, the file with the metadata last.
    """

    model: StoredModel
    target: Target
    trained: TrainedContext | None
    edits: tuple[Edit, ...]
    ignored: tuple[Ignored, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    effective: EffectiveRope
    unchanged: tuple[int, ...]
    stores: tuple[StorePlan, ...]

    @property
    def output(self) -> Path:
        """The file that will have the metadata."""
        return self.stores[-1].target

    @property
    def strategy(self) -> Strategy:
        """How the file with the metadata is stored."""
        return self.stores[-1].strategy

    @property
    def rejected(self) -> tuple[Rejection, ...]:
        """The cheaper strategies that do not apply to it, and why."""
        return self.stores[-1].rejected

    @property
    def bytes_written(self) -> int:
        return sum(store.bytes_written for store in self.stores)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchReceipt:
    """What was written, as read back from the disk.

    `weights_sha256` is the digest of all tensor data of the result, None where not requested.
    `undo_steps` counts the edits in place that can be undone now, this one included; the oldest
    `undone_at_once` of them are one step, and `undo_lost` before them cannot be undone any more.
    """

    path: Path
    edits: tuple[Edit, ...]
    strategy: Strategy
    rejected: tuple[Rejection, ...]
    bytes_written: int
    weights_sha256: str | None
    undo_steps: int
    undone_at_once: int
    undo_lost: int


def plan_patch(
    place: Place,
    request: ScalingRequest,
    *,
    output: Path | None = None,
    strategy: Strategy | None = None,
    force: Collection[str] = (),
    reserve: int | None = None,
) -> PatchPlan:
    """Plan to write `request` into the model at `place`: to `output`, or in place where it is None.

    For a split model, `output` names the first file. `reserve` leaves that many bytes of header
    space for later edits. Nothing is written. Raises RequestError where the request contradicts
    itself, the file or the architecture, or does not start from the scaling that the file has;
    FileError where the file or its place forbids the edit.
    """
    model = read_model(place)
    check_growth(request, model.metadata)
    target, expression = encode_request(request, model.metadata)
    edits = edits_of(expression, model.header.byte_order)
    changed = describe(edits, model)
    if not changed and reserve is None:
        raise RequestError(f"{place}: already declares exactly this; there is nothing to change")
    wanted = patched(model.metadata, expression)
    check_start(request, target, model.metadata, wanted)
    stores = tuple(
        plan_store(
            shard.place,
            plan_rewrite(shard.header, part, reserve=reserve if shard.place == place else None),
            output=target_path,
            strategy=strategy,
            force=force,
        )
        for shard, part, target_path in _files(model, edits, output)
    )
    require_room_for(stores)
    return PatchPlan(
        model=model,
        target=target,
        trained=_trained(request, model.metadata),
        edits=changed,
        ignored=expression.ignored,
        flags=expression.flags,
        notes=(
            *expression.notes,
            *_side_effects(model, wanted),
            *_other_original(request, model),
            *_left_out(request, model),
            *_far(request, model, target),
        ),
        findings=lint(wanted),
        effective=effective(wanted),
        unchanged=_unchanged(model.metadata, wanted),
        stores=stores,
    )


def apply(
    plan: PatchPlan,
    *,
    hash_weights: bool = False,
    verify_all: bool = False,
    progress: Progress | None = None,
    committing: Callable[[], None] | None = None,
) -> PatchReceipt:
    """Write `plan`; the result is read back and compared before it replaces anything.

    With `verify_all` all tensor data is compared with the source, not samples of it; with
    `hash_weights` too, and the receipt has its digest. `committing` is called before the edit takes
    effect: from then on an interrupt does not undo it.

    Several files of a split model are changed in place as one: all of them or none. Raises
    StorageError or GuardError, with the old files as they were.
    """
    receipts = execute_together(
        plan.stores,
        progress=progress,
        verify_all=verify_all or hash_weights,
        committing=committing,
    )
    stored = receipts[-1]
    done = PatchReceipt(
        path=stored.path,
        edits=plan.edits,
        strategy=stored.strategy,
        rejected=stored.rejected,
        bytes_written=sum(receipt.bytes_written for receipt in receipts),
        weights_sha256=None,
        undo_steps=stored.undo_steps,
        undone_at_once=stored.undone_at_once,
        undo_lost=stored.undo_lost,
    )
    return with_digest(done) if hash_weights else done


def with_digest(receipt: PatchReceipt) -> PatchReceipt:
    """Return the receipt with the digest of all tensor data of the result."""
    return replace(receipt, weights_sha256=weights_sha256(open_model(receipt.path)))


def weights_sha256(files: ModelFiles, *, progress: Progress | None = None) -> str:
    """Return one digest of all tensor data of a model; metadata and order do not change it."""
    from ggufrope.container.compare import tensor_digests, weights_digest

    digests: dict[str, str] = {}
    for shard in files.shards:
        digests |= tensor_digests(shard.path, shard.header, progress=progress)
    return weights_digest(digests)


def _left_out(request: ScalingRequest, model: StoredModel) -> Iterator[str]:
    """Yield what a config says that no patch writes."""
    if request.from_config is None:
        return
    config = read_config(Path(request.from_config))
    if (left := not_carried(config, model.metadata)) is not None:
        yield left


def _far(request: ScalingRequest, model: StoredModel, target: Target) -> Iterator[str]:
    """Yield a warning where more is asked of a scaling than it can usually do."""
    trained = trained_context(model.metadata)
    if request.from_config is None and trained is not None:
        warning = far_warning(target.context_length / trained.tokens)
        if warning is not None:
            yield f"warning: {warning}"


def _side_effects(model: StoredModel, after: RopeMetadata) -> Iterator[str]:
    """Yield what the edit changes besides the rotation.

    mistral3.cpp 14-18: the attention temperature rises beyond the original context.
    """
    before = model.metadata
    scale = f"{before.architecture}.attention.temperature_scale"
    if before.architecture != "mistral3" or not model.header.get(scale):
        return
    old = before.original_context or before.context_length
    new = after.original_context or after.context_length
    if old != new:
        yield (
            f"the attention temperature rises beyond the original context, which moves from {old} "
            f"to {new} tokens: outputs beyond {min(old or 0, new or 0)} tokens change"
        )


def _trained(request: ScalingRequest, metadata: RopeMetadata) -> TrainedContext | None:
    """Return the context that the scaling starts from: as given, else as the file has it."""
    given = request.original_context
    unscaled = request.replace_scaling or declared_scaling(trained_state(metadata)) is None
    if given is not None and unscaled:
        return TrainedContext(tokens=given, original=given, source="as given")
    return trained_context(metadata)


def _other_original(request: ScalingRequest, model: StoredModel) -> Iterator[str]:
    """Yield where the authors of the model scale from another context than the file declares."""
    published = published_original(trained_state(model.metadata))
    if request.scaling == "yarn" and request.original_context is None and published is not None:
        yield (
            f"the authors of this model give YaRN over an original context of {published} tokens, "
            f"not over the {model.metadata.context_length} that the file declares"
        )


def _unchanged(before: RopeMetadata, after: RopeMetadata) -> tuple[int, ...]:
    """Return the layers that rotate the same in the file as it stands; none if it does not load."""
    try:
        old = effective(before)
    except (FileError, RequestError):
        return ()
    return tuple(
        layer
        for group in effective(after).groups
        for layer in group.layers
        if replace(group, layers=()) == replace(old.group(layer), layers=())
    )


def _files(
    model: StoredModel, edits: Edits, output: Path | None
) -> Iterator[tuple[Shard, Edits, Path | None]]:
    """Yield each file to write, its edits and its target, the file with the metadata last.

    In place only the files that change are written, as a copy all of them.
    """
    parts = {shard.place: (shard, part) for shard, part in distribute(model.files, edits)}
    shards = model.files.shards
    parts.setdefault(shards[0].place, (shards[0], Edits()))
    if output is None:
        yield from ((shard, part, None) for shard, part in parts.values())
        return
    targets = sibling_paths(output, len(shards))
    for shard, target in reversed(tuple(zip(shards, targets, strict=True))):
        yield shard, parts.get(shard.place, (shard, Edits()))[1], target


def edits_of(expression: Expression, order: ByteOrder) -> Edits:
    """Return the edits of a file in that byte order that `expression` means."""
    keys = expression.keys
    return Edits(
        set={key: value for key, value in keys.items() if value is not None},
        remove=frozenset(key for key, value in keys.items() if value is None),
        put_tensors=_tensors(expression.tensors, order),
        remove_tensors=frozenset(
            name for name, factors in expression.tensors.items() if factors is None
        ),
    )


def _tensors(
    tensors: Mapping[str, tuple[float, ...] | None], order: ByteOrder
) -> dict[str, TensorData]:
    return {
        name: float_tensor(factors, order)
        for name, factors in tensors.items()
        if factors is not None
    }


def describe(edits: Edits, model: StoredModel) -> tuple[Edit, ...]:
    """Return what `edits` changes in the file of `model`, without what is already so."""
    header = model.header
    changes = [
        Edit(key=key, old=_shown(header.get(key)), new=_shown(value.value))
        for key, value in edits.set.items()
    ]
    changes += [
        Edit(key=key, old=_shown(header.get(key)), new=None) for key in sorted(edits.remove)
    ]
    for name, data in edits.put_tensors.items():
        old = None if header.tensor(name) is None else "factors"
        changes.append(Edit(key=name, old=old, new=f"{data.shape[0]} factors"))
    changes += [Edit(key=name, old="factors", new=None) for name in sorted(edits.remove_tensors)]
    return tuple(change for change in changes if not _same(change))


def _shown(value: object) -> Shown:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _same(edit: Edit) -> bool:
    """Whether a key already says so, to the precision of the float32 it is stored as."""
    old, new = edit.old, edit.new
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) <= 1e-7 * abs(new)
    return old == new and type(old) is type(new)
