"""Plans: what they accept, what they refuse, and what they expand to."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufrope._plain import decode
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import RequestError, StorageError
from ggufrope.evals.task import BaseKind, Haystack
from ggufrope.evals.thresholds import Thresholds
from ggufrope.patching.request import ScalingName, ScalingRequest
from ggufrope.runs.jobs import Selection, base_of, expand
from ggufrope.runs.models import ModelFile, resolve_models
from ggufrope.runs.plan import (
    RunPlan,
    changed_keys,
    format_plan,
    parse_plan,
    plan_schema,
    read_plan,
)

if TYPE_CHECKING:
    from pathlib import Path

NIGHT = """
name = "a night"
models = ["a.gguf", "b.gguf"]
contexts = [8192, 4096]
kv = ["f16", "q8_0/q4_0"]
tasks = ["needle", "perplexity"]
depths = 3
samples = 1
whole_prompts = 0
seeds = [1, 2]
scalings = ["file", { scaling = "yarn", factor = 4 }]

[haystack]
kind = "noise"
"""


def models(*names: str) -> tuple[ModelFile, ...]:
    return tuple(
        ModelFile(name=name, path=f"{name}.gguf", file_size=1, header_sha256=name) for name in names
    )


def test_a_plan_file_is_read() -> None:
    plan = parse_plan(NIGHT)
    assert plan.requests == (
        ScalingRequest(scaling="file"),
        ScalingRequest(scaling="yarn", factor=4.0),
    )
    assert plan.kv_types[1] == KvTypes(k="q8_0", v="q4_0")
    assert plan.depth_percents == (0.0, 50.0, 100.0)
    assert plan.haystack.kind == "noise"


@given(
    name=st.text(st.characters(exclude_categories=["Cs"])),
    factor=st.floats(min_value=1, max_value=1e6) | st.just(1e-5),
)
def test_a_plan_survives_being_written(name: str, factor: float) -> None:
    plan = replace(
        parse_plan(NIGHT),
        name=name,
        scalings=(ScalingRequest(scaling="yarn", factor=factor, label=name),),
    )
    assert parse_plan(format_plan(plan)) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("contxts = [1]", "unknown key 'contxts'; did you mean 'contexts'?"),
        ('kv = ["q9"]', "unknown KV cache type 'q9' in 'q9'"),
        ('tasks = ["neddle"]', "did you mean 'needle'?"),
        ("contexts = []", "`contexts` is empty"),
        ("contexts = [64]", "context 64 is too short: at least 128 tokens"),
        ("contexts = [100000000]", "context 100000000 is too long: at most 33554432 tokens"),
        ("contexts = [" + "9" * 30 + "]", "`contexts[0]` is a number of 100 bits, at most 63"),
        ("samples = 1" + "0" * 5000, "too many digits"),
        ("samples = 0x1" + "0" * 5000, "`samples` is a number of 20001 bits"),
        ("samples = 1000000000000", "at most 1000000 are possible"),
        ("depths = 1000000000", "at most 1000000 are possible"),
        ("thresholds = { recall = 1" + "0" * 400 + " }", "recall is a number with too many digits"),
        ("seeds = [" + "1," * 100_001 + "]", "`seeds` has 100001 items, at most 100000"),
        ("text = '" + "t" * 5000 + "'", "`text` has 5000 characters, at most 4096"),
        ('text = "a\\u0000b"', "NUL character"),
        ("runtime = { threads = 0 }", "`threads` 0 must be 1 to 4096"),
        ("runtime = { gpu_layers = -5 }", "`gpu_layers` -5 must be 0 to"),
        ("runtime = { experts_on_cpu = 513 }", "`experts_on_cpu` 513 must be 0 to 512"),
        ("runtime = { batch_tokens = 0 }", "`batch_tokens` 0 must be 1 to"),
        ("runtime = { tensor_split = [nan] }", "`tensor_split` nan must be a finite number"),
        ("text = '" + "t" * (1 << 20) + "'", "not a plan"),
        ("contexts = [256, 256]", "`contexts` has 256 more than once"),
        ('scalings = ["yarn", "yarn"]', "names of scalings has 'yarn' more than once"),
        ("depths = [101]", "depth 101 is not a percentage"),
        ("depths = [50, 20, 50.0]", "`depths` has 50 more than once"),
        ("depths = 0", "depths 0 must be 1 or more"),
        ('tasks = ["divergence"]', "give another scaling or cache type"),
        ("samples = 0", "samples 0 must be 1 or more"),
        ('haystack = { kind = "text" }', 'haystack: a haystack of kind "text" needs a file'),
        ('kv = ["f16", "f16/f16"]', "`kv` has 'f16' more than once"),
        ("depths = 1000000000", "the plan has up to 4000000000 cells per model, at most 1000000"),
        (
            'scalings = [{ scaling = "yarn", beta_fast = inf }]',
            "scalings[0].beta_fast inf must be a finite number",
        ),
        ("models = " + "[" * 20000, "its lists are nested too deeply"),
        ("schema = 2", "schema must be one of 1, found 2"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_problems(change: str, message: str) -> None:
    name = change.partition(" ")[0]
    base = {"models": 'models = ["a"]', "contexts": "contexts = [256]", name: change}
    with pytest.raises(RequestError) as caught:
        parse_plan("\n".join(base.values()), where="p.toml")
    assert str(caught.value).startswith("p.toml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("opening", ["[", "{a=", "a.", "'a' . ", "[[a.", "'''"])
def test_a_nest_without_end_is_refused_at_once(opening: str) -> None:
    began = time.process_time()
    for text in ("models = " + opening * 100_000, opening * 100_000):
        with pytest.raises(RequestError) as caught:
            parse_plan(text)
        assert len(str(caught.value)) < 1000
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "name",
    ["/tmp/escaped", "../../escaped", "..", "", " ", "a\0b", "a\nb", "n" * 300, "a\\b", "c:d"],
)
def test_a_name_that_leaves_the_folder_of_runs_names_none(name: str) -> None:
    plan = RunPlan(models=("a",), contexts=(256,), name=name)
    with pytest.raises(RequestError, match="cannot be that of a folder"):
        _ = plan.folder_name


def test_a_name_is_that_of_the_folder() -> None:
    plan = RunPlan(models=("a",), contexts=(256,), name="Nacht 2 · später")
    assert plan.folder_name == "Nacht 2 · später"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"thresholds": Thresholds(divergence=0.1)}, "`divergence` needs `tasks` divergence"),
        (
            {"thresholds": Thresholds(recall=0.8), "tasks": ("ruler",)},
            "`recall` needs `tasks` needle or passkey",
        ),
        ({"thresholds": Thresholds(top_ranked=0.9)}, "`top_ranked` needs `distractors`"),
        (
            {"thresholds": Thresholds(ruler_share=0.9), "tasks": ("ruler",)},
            "`ruler_share` compares lengths: give two `contexts` or more",
        ),
        (
            {"thresholds": Thresholds(long_context_nll=0.2), "tasks": ("perplexity",)},
            "`long_context_nll` compares lengths",
        ),
        (
            {"thresholds": Thresholds(recall_share=0.9), "control": False},
            "`recall_share` needs `control`",
        ),
        (
            {"thresholds": Thresholds(require="yarm")},
            "`require` yarm: no scaling of the plan; it has file",
        ),
        (
            {"thresholds": Thresholds(require="file"), "tasks": ("kv-cache",)},
            "`require` file: no threshold applies to `tasks` kv-cache",
        ),
        (
            {"scalings": (ScalingRequest(scaling="ntk", beta_fast=16.0),)},
            "`beta_fast` does not apply to `scaling` ntk",
        ),
        (
            {"scalings": (ScalingRequest(scaling="file", factor=2.0),)},
            "`factor` needs `scaling`",
        ),
        (
            {"scalings": (ScalingRequest(scaling="file", from_config="c.json", factor=2.0),)},
            "`from_config` gives the scheme: leave out `factor`",
        ),
    ],
)
def test_gates_and_parameters_of_nothing_are_refused(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(problem)):
        RunPlan(**{"models": ("a",), "contexts": (256,), **settings})


def test_default_limits_of_tasks_that_do_not_run_are_no_gates() -> None:
    for task in ("kv-cache", "ruler", "needle"):
        RunPlan(models=("a",), contexts=(256,), tasks=(task,))
    RunPlan(
        models=("a",), contexts=(256,), tasks=("multikey",), thresholds=Thresholds(top_ranked=0.9)
    )


def test_many_seeds_are_checked_in_no_time() -> None:
    began = time.process_time()
    RunPlan(models=("a",), contexts=(256,), depths=1, seeds=tuple(range(100_000)))
    assert time.process_time() - began < 5


def test_thresholds_without_an_end_survive_being_written() -> None:
    night = parse_plan(NIGHT)
    unlimited = Thresholds(divergence=math.inf)
    plan = replace(night, tasks=(*night.tasks, "divergence"), thresholds=unlimited)
    assert parse_plan(format_plan(plan)) == plan


def test_the_keys_that_two_plans_differ_in_are_named() -> None:
    plan = parse_plan(NIGHT)
    assert changed_keys(plan, parse_plan(NIGHT)) == ()
    other = replace(plan, text="t.txt", haystack=Haystack(), seeds=tuple(range(99)))
    haystack, seeds, text = sorted(changed_keys(plan, other))
    assert (haystack, text) == ('haystack.kind "noise" -> "essay"', 'text nothing -> "t.txt"')
    assert seeds.startswith("seeds [1, 2] -> [0, 1, 2,")
    assert seeds.endswith("...")
    scaled = replace(plan, scalings=("none", ScalingRequest(scaling="yarn", beta_fast=0.0)))
    before, after = '["file", { scaling = "yarn", factor = 4.0 }]', '["none", { scaling = "yarn", '
    assert changed_keys(plan, scaled) == (f"scalings {before} -> {after}beta_fast = 0.0 }}]",)


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    with pytest.raises(StorageError, match=r"cannot read .*plan\.toml: No such file"):
        read_plan(path)
    path.write_text("name = 'x'\nmodels = ]\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"not TOML: .*line 2"):
        read_plan(path)
    path.write_bytes(b"name = '\xff'\n")
    with pytest.raises(RequestError, match=r"not UTF-8 text \(at byte 8\)"):
        read_plan(path)


def test_the_schema_covers_every_key() -> None:
    properties = plan_schema()["properties"]
    assert {"models", "contexts", "scalings", "kv", "thresholds"} <= set(properties)
    assert "q8_0" not in properties["kv"]["items"]
    yarn = properties["scalings"]["items"]["anyOf"][1]
    assert yarn["required"] == ["scaling"]


def test_the_schema_file_for_editors_is_current(root: Path) -> None:
    stored = json.loads((root / "ggufrope" / "runs" / "plan.schema.json").read_text("utf-8"))
    assert stored == plan_schema(), "write json.dumps(plan_schema(), indent=2) to the file"


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"contxts": [1]}, False),
        ({"tasks": ["neddle"]}, False),
        ({"scalings": [{"factor": 2}]}, False),
        ({"scalings": ["yarn", {"scaling": "linear", "factor": 2}]}, True),
        ({"depths": "all"}, False),
        ({"depths": [0, 50.5]}, True),
        ({"runtime": {"gpu_layers": 12}}, True),
        ({"runtime": {"gpu_layers": "some"}}, False),
        ({"thresholds": {"recall": 0.5}}, True),
    ],
)
def test_a_validator_of_schemas_and_the_reader_agree(
    change: dict[str, object], valid: bool
) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="schemas are checked with jsonschema")
    plain = {"models": ["a"], "contexts": [256], **change}
    errors = list(jsonschema.Draft202012Validator(plan_schema()).iter_errors(plain))
    assert (not errors) == valid
    if valid:
        decode(RunPlan, plain)
    else:
        with pytest.raises(RequestError):
            decode(RunPlan, plain)


def test_expansion_is_the_product_in_a_fixed_order() -> None:
    jobs = expand(parse_plan(NIGHT), models("a", "b"))
    assert len(jobs) == 2 * 2 * 2 * 2 * 2
    assert [job.model for job in jobs] == ["a"] * 16 + ["b"] * 16
    assert jobs[0].label == "a · file · f16 · needle · seed 1"
    assert [(c.context_tokens, c.depth_percent) for c in jobs[0].cells] == [
        (context, depth) for context in (4096, 8192) for depth in (0.0, 50.0, 100.0)
    ]
    assert len(jobs[2].cells) == 2
    assert jobs == expand(parse_plan(NIGHT), models("a", "b"))
    assert len({job.id for job in jobs}) == len(jobs)


def test_the_identity_of_a_job_is_its_content_and_the_file() -> None:
    plan = parse_plan(NIGHT)
    first = expand(plan, models("a", "b"))[0]
    other_file = ModelFile(name="a", path="a.gguf", file_size=2, header_sha256="a")
    assert expand(plan, (other_file,))[0].id != first.id
    moved = ModelFile(name="a", path="elsewhere/a.gguf", file_size=1, header_sha256="a")
    assert expand(plan, (moved,))[0].id == first.id
    whole = parse_plan('mode = "whole"\n' + NIGHT)
    assert expand(whole, models("a"))[0].id != first.id


def test_shards_are_disjoint_and_whole() -> None:
    jobs = expand(parse_plan(NIGHT), models("a", "b"))
    shards = [Selection.parse(shard=f"{i}/3").choose(jobs) for i in (1, 2, 3)]
    assert sorted(job.id for shard in shards for job in shard) == sorted(job.id for job in jobs)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_only_narrows_by_axis() -> None:
    jobs = expand(parse_plan(NIGHT), models("a", "b"))
    chosen = Selection.parse(("model=a", "task=needle", "kv=q8*", "kv=f16")).choose(jobs)
    assert {(j.model, j.task) for j in chosen} == {("a", "needle")}
    assert {str(j.kv) for j in chosen} == {"f16", "q8_0/q4_0"}


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x", "1/", "-1/2", "1/0"])
def test_a_malformed_shard_is_refused(shard: str) -> None:
    with pytest.raises(RequestError, match="expected I/N"):
        Selection.parse(shard=shard)


def test_a_term_on_no_axis_is_refused() -> None:
    with pytest.raises(RequestError, match="AXIS of model, scaling, kv, task, seed"):
        Selection.parse(("color=red",))


def _identify(name: str, path: Path) -> ModelFile:
    return ModelFile(name=name, path=str(path), file_size=0, header_sha256="")


def test_globs_are_expanded_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        (tmp_path / f"{name}.gguf").touch()
    found = resolve_models((str(tmp_path / "*.gguf"),), _identify)
    assert [model.name for model in found] == ["a", "b", "c"]


def test_models_of_one_name_are_named_by_path(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "m.gguf" for folder in ("x", "y")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    found = resolve_models(tuple(map(str, paths)), _identify)
    assert [model.name for model in found] == [str(path) for path in paths]


def test_models_that_are_not_there_or_there_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    name = str(tmp_path / "a.gguf")
    with pytest.raises(StorageError, match="No such file"):
        resolve_models((str(tmp_path / "b.gguf"),), _identify)
    with pytest.raises(RequestError, match="matches no file"):
        resolve_models((str(tmp_path / "*.bin"),), _identify)
    with pytest.raises(RequestError, match="the same file"):
        resolve_models((name, str(tmp_path / "*.gguf").replace("*", "?")), _identify)


def test_the_same_name_twice_is_refused_by_the_plan() -> None:
    with pytest.raises(RequestError, match="`models` has 'a' more than once"):
        RunPlan(models=("a", "a"), contexts=(256,))


@pytest.mark.parametrize(
    ("kind", "scaling", "kv", "base"),
    [
        ("reference", "file", "f16", None),
        ("reference", "file", "q8_0", "file · f16"),
        ("reference", "yarn", "q8_0", "yarn · f16"),
        ("reference", "yarn", "f16", "file · f16"),
        ("original", "file", "f16", "none · f16"),
        ("original", "file", "q8_0", "none · f16"),
        ("original", "yarn", "q8_0", "file · f16"),
    ],
)
def test_what_a_setting_is_compared_with(
    kind: BaseKind, scaling: ScalingName, kv: str, base: str | None
) -> None:
    found = base_of(kind, ScalingRequest(scaling=scaling), KvTypes.parse(kv))
    assert (found and f"{found[0].name} · {found[1]}") == base


CONTROLLED = NIGHT.replace("seeds = [1, 2]", "seeds = [1]").replace('"perplexity"', '"passkey"')


@pytest.mark.parametrize(
    ("native", "scalings", "change", "expected"),
    [
        # Beyond the native context, of a file that is not scaled: the file as it stands.
        (2048, ("file", "none"), {"scalings": '["yarn"]'}, ("file", 2048)),
        # Within it, at the longest context of the plan.
        (65536, ("file", "none"), {"scalings": '["yarn"]'}, ("file", 8192)),
        # A patched file without its scaling.
        (2048, ("none",), {}, ("none", 2048)),
        # Measured anyway: the file as it stands, or without a scaling, at the native context.
        (4096, ("file", "none"), {}, None),
        (4096, ("file", "none"), {"scalings": '["none"]'}, None),
        (4096, ("none",), {"scalings": '["none", "yarn"]'}, None),
        # Another cache or another scaling is not the same.
        (4096, ("file", "none"), {"kv": '["q8_0"]'}, ("file", 4096)),
        (4096, ("none",), {"scalings": '["file"]'}, ("none", 4096)),
        # No control.
        (None, ("file",), {}, None),
        (2048, ("file",), {"control": "false"}, None),
        (100, ("file",), {}, None),
    ],
)
def test_the_control_is_the_model_within_its_native_context(
    native: int | None,
    scalings: tuple[ScalingName, ...],
    change: dict[str, str],
    expected: tuple[str, int] | None,
) -> None:
    lines = [line for line in CONTROLLED.splitlines() if line.partition(" ")[0] not in change]
    plan = parse_plan("\n".join([*(f"{key} = {value}" for key, value in change.items()), *lines]))
    (model,) = models("a")
    jobs = expand(plan, (replace(model, native_context=native, native_scalings=scalings),))
    controls = [job for job in jobs if any(cell.control for cell in job.cells)]
    if expected is None:
        assert controls == []
        return
    assert [job.task for job in controls] == ["needle", "passkey"]
    assert list(jobs[:2]) == controls
    for job in controls:
        assert str(job.kv) == "f16"
        assert all(cell.control for cell in job.cells)
        assert {(cell.scaling, cell.context_tokens) for cell in job.cells} == {expected}
        assert len(job.cells) == 3
    assert not any(cell.control for job in jobs[2:] for cell in job.cells)


def kv_plan(**settings: Any) -> RunPlan:
    return RunPlan(models=("m.gguf",), contexts=(1024,), **settings)


def test_needles_of_kv_have_whole_prompts_only_where_recall_is_judged() -> None:
    def whole(**settings: Any) -> int:
        return kv_plan(**settings).settings_of("needle").whole_prompts

    assert whole(tasks=("kv",)) == 0
    assert whole(tasks=("kv", "needle")) == 44
    assert whole(tasks=("kv",), thresholds=Thresholds(recall=0.95)) == 44
    assert whole(tasks=("needle",)) == 44


def test_limits_of_kv_are_those_that_differ_from_the_defaults() -> None:
    limits = kv_plan(tasks=("kv",), thresholds=Thresholds(divergence=0.01)).limits
    assert limits.applied(kv_plan(tasks=("kv",)).measured) == ("divergence",)
    assert kv_plan(tasks=("needle",)).limits == Thresholds()


def test_a_limit_that_is_given_counts_also_where_it_is_the_default() -> None:
    text = 'models = ["m.gguf"]\ncontexts = [1024]\ntasks = ["kv"]\n'
    plan = parse_plan(f"{text}[thresholds]\nrecall = 0.9\n")
    for each in (plan, parse_plan(format_plan(plan))):
        assert each.limits.applied(each.measured) == ("recall",)
        assert each.settings_of("needle").whole_prompts
    bare = parse_plan(f"{text}[thresholds]\nallow_undecided = true\n")
    for each in (bare, parse_plan(format_plan(bare)), parse_plan(text)):
        assert each.limits.applied(each.measured) == ()
    with pytest.raises(RequestError, match="`given` loss: expected recall, "):
        Thresholds(given=("loss",))
    with pytest.raises(RequestError, match="`ruler_share` needs `tasks` ruler"):
        parse_plan(f"{text}[thresholds]\nruler_share = 0.85\n")
