"""The conclusion: how far each setting holds, the best of them, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from ggufrope_cli.output import console
from ggufrope_cli.showing import View, show

from ggufrope.evals.results import Metric
from ggufrope.evals.thresholds import Thresholds
from ggufrope.patching.request import ScalingRequest
from ggufrope.report.conclusion import conclude, scaling_title
from ggufrope.report.evidence import judge_settings
from ggufrope.report.record import RunReport

Make = Callable[..., RunReport]
"""The invented model reaches 2048 tokens, with linear 4096, with YaRN 8192."""


def test_settings_are_ranked_by_how_far_they_hold(make_report: Make) -> None:
    report = make_report(tasks=("needle",), kv=("f16",), samples=8)
    found = conclude(report)
    assert [(each.name, each.holds_to, each.best) for each in found.settings] == [
        ("yarn ×4", 8192, True),
        ("linear ×4", 4096, False),
        ("as it stands", 2048, False),
    ]
    assert found.headline == "best: yarn ×4, 2048 → 8192: holds to 8192 tokens"
    assert found.judged == "needle recall, at least 90%"
    assert [each.as_trained for each in found.settings] == [False, False, True]
    assert {each.found + 0 for each in found.settings if each.best} == {160}
    assert dict(found.settings[1].lengths) == {
        1024: "pass",
        2048: "pass",
        4096: "pass",
        8192: "fail",
    }
    assert found.settings[0].keep == (
        "ggufrope patch models/invented.gguf -o models/invented-yarn-8192.gguf --scaling yarn "
        "--target-ctx 8192"
    )
    assert [each.keep for each in found.settings[1:]] == [None, None]


def test_of_equals_the_model_without_a_patch_is_best(make_report: Make) -> None:
    report = make_report(tasks=("needle",), kv=("f16",), samples=8, contexts=(1024, 2048))
    found = conclude(report)
    assert found.headline == (
        "best: as it stands: holds to 2048 tokens; as far: linear ×1, yarn ×1"
    )
    assert [each.keep for each in found.settings] == [None, None, None]


def test_a_single_setting_says_where_it_ends(make_report: Make) -> None:
    report = make_report(scalings=("linear",), tasks=("needle",), kv=("f16",), samples=8)
    assert conclude(report).headline == (
        "linear ×4, 2048 → 8192: holds to 4096 tokens, fails at 8192 tokens"
    )


def test_what_no_needle_shows_is_undecided_with_what_would_decide_it(make_report: Make) -> None:
    found = conclude(make_report(scalings=("yarn",), tasks=("needle",), kv=("f16",)))
    assert found.headline == (
        "yarn ×4, 2048 → 8192: may hold to 8192 tokens, undecided at 1024 tokens"
    )
    assert found.outcome == "undecided"
    assert found.decide == (
        "needle at 1024 tokens: 35 of 35 whole prompts would show 90%: `samples` 7",
    )
    assert found.settings[0].keep is None


def test_a_failure_of_the_model_is_not_the_scalings(make_report: Make) -> None:
    plan = {"tasks": ("needle",), "kv": ("f16",), "samples": 8, "contexts": (2048, 4096)}
    report = make_report(scalings=("file", "yarn"), **plan)
    worse = tuple(
        replace(r, metrics=(Metric(name="recall", value=float((r.cell.sample or 0) < 2)),))
        for r in report.cells
    )
    models = tuple(model.file for model in report.models)
    found = conclude(
        replace(report, cells=worse, verdicts=judge_settings(worse, report.plan, models))
    )
    assert found.headline == "none holds at 2048 tokens, the shortest length measured"
    alone = replace(report, verdicts=judge_settings(worse, report.plan, models)[1:])
    assert conclude(alone).headline == (
        "yarn ×2, 2048 → 4096: fails at 2048 tokens: the model, not the scaling"
    )


def test_other_checks_that_fail_are_named_and_nothing_is_kept(make_report: Make) -> None:
    strict = Thresholds(long_context_nll=0.0)
    report = make_report(
        scalings=("yarn",), kv=("f16",), samples=8, contexts=(2048, 8192), thresholds=strict
    )
    found = conclude(report)
    assert found.headline.startswith("yarn ×4, 2048 → 8192: holds to 8192 tokens")
    assert found.outcome != "pass"
    assert found.settings[0].keep is None


def test_without_recall_the_other_checks_say_how_far(make_report: Make) -> None:
    found = conclude(make_report(scalings=("file", "yarn"), tasks=("perplexity",), kv=("f16",)))
    assert found.judged == "every check"
    assert [(each.name, each.holds_to) for each in found.settings] == [
        ("yarn ×4", 8192),
        ("as it stands", 2048),
    ]


def test_measured_and_nothing_to_judge_is_no_failure(make_report: Make) -> None:
    report = make_report(tasks=("kv-cache",), scalings=("file",))
    assert conclude(report).headline == "measured; no threshold applies"
    assert conclude(report).judged is None
    assert (report.outcome, report.passed) == (None, True)
    unlimited = make_report(
        tasks=("perplexity",), scalings=("file",), thresholds=Thresholds(long_context_nll=None)
    )
    assert conclude(unlimited).headline == (
        "measured; no threshold applies (give `long_context_nll`)"
    )


def test_an_unfinished_run_says_so(make_report: Make) -> None:
    report = make_report(tasks=("needle",), kv=("f16",), samples=8)
    pending = tuple(replace(job, state="pending") for job in report.jobs)
    unfinished = replace(report, jobs=pending)
    assert conclude(unfinished).headline.startswith("the run is not complete; best: yarn")
    assert not unfinished.passed
    assert not unfinished.compared


def test_the_required_scaling_alone_decides(make_report: Make) -> None:
    def passed(**at: str | None) -> bool:
        report = make_report(
            tasks=("needle",),
            kv=("f16",),
            samples=8,
            thresholds=Thresholds(**at),  # type: ignore[arg-type]
        )
        assert report.compared
        return report.passed

    assert passed(require="yarn")
    assert not passed(require="linear")
    assert not passed()


@pytest.mark.parametrize(
    ("request_", "title"),
    [
        (ScalingRequest(scaling="yarn"), "yarn ×4, 2048 → 8192"),
        (ScalingRequest(scaling="yarn", factor=2.5), "yarn ×2.5, 2048 → 5120"),
        (ScalingRequest(scaling="ntk", target_context=4096), "ntk ×2, 2048 → 4096"),
        (ScalingRequest(scaling="yarn", label="ours"), "ours ×4, 2048 → 8192"),
        (ScalingRequest(scaling="none"), "unscaled"),
        (ScalingRequest(scaling="file"), "as it stands"),
    ],
)
def test_titles_have_the_factor_and_its_lengths(
    make_report: Make, request_: ScalingRequest, title: str
) -> None:
    report = make_report(tasks=("needle",), kv=("f16",), scalings=(request_,), contexts=(8192,))
    assert scaling_title(report, report.models[0].file.name, request_.name) == title


@pytest.mark.parametrize(
    ("factor", "title"),
    [
        ("4.0", "as it stands (yarn ×4), 2048 → 8192"),
        ("1.0", "as it stands"),
        ("nan", "as it stands"),
        ("inf", "as it stands"),
        ("four", "as it stands"),
    ],
)
def test_the_title_of_a_file_that_is_scaled_has_its_factor(
    make_report: Make, factor: str, title: str
) -> None:
    details = {
        "general.architecture": "llama",
        "llama.context_length": "8192",
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": factor,
    }
    report = make_report(
        scalings=("file",), kv=("f16",), contexts=(1024,), details=tuple(details.items())
    )
    assert scaling_title(report, report.models[0].file.name, "file") == title


@pytest.mark.parametrize("lengths", [3, 7, 8, 12])
def test_in_80_columns_no_line_of_many_lengths_is_broken(
    make_report: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lengths: int,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console.cache_clear()
    contexts = tuple(512 * n for n in range(1, lengths + 1))
    report = make_report(contexts=contexts, kv=("f16",), tasks=("needle",))
    show(report, View(json=False))
    text = capsys.readouterr().out
    lines = text[: text.index("recall: share")].splitlines()
    assert all(len(line) <= 80 for line in lines)
    names = {"as", "linear", "yarn", "metric", "recall"}
    firsts = [line.split()[0] for line in lines if line[:1] == " " and line.strip(" ─")]
    assert not {first for first in firsts if first.isalpha()} - names
