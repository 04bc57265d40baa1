"""The proof card: what it says, that it is read back, and that it knows its file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ggufrope._files import sha256_of
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import RequestError
from ggufrope.evals.task import Haystack
from ggufrope.report.card import VERSION, make_card, matches, read_card
from ggufrope.report.card_markdown import card_text, to_block
from ggufrope.report.record import RunReport
from ggufrope.runs.models import identify
from ggufrope.runs.plan import RunPlan, parse_plan
from tests.report.conftest import NATIVE
from tests.report.test_caches import kv_report

pytest.importorskip("scipy", reason="intervals need scipy, of the extra 'report'")

Make = Callable[..., RunReport]


@pytest.fixture
def report(make_report: Make) -> RunReport:
    return make_report(
        contexts=(2048, 8192),
        scalings=("yarn",),
        samples=7,
        tasks=("needle", "perplexity", "kv-cache"),
    )


@pytest.fixture
def small(make_report: Make) -> RunReport:
    return make_report(contexts=(8192,), scalings=("yarn",), kv=("f16",), samples=1)


def of_file(report: RunReport, path: Path, sha256: str | None) -> RunReport:
    """The report, as if of this file."""
    file = identify(report.models[0].file.name, path)
    record = replace(report.models[0], file=file, sha256=sha256)
    return replace(report, models=(record,))


def written(report: RunReport, path: Path) -> Path:
    path.write_text(card_text(report, path), encoding="utf-8")
    return path


def test_a_card_says_how_far_a_model_reaches(report: RunReport) -> None:
    (model,) = make_card(report).models
    best = model.settings[0]
    assert (model.effective_context, model.native_context) == (8192, NATIVE)
    assert best.scaling == "yarn ×4, 2048 → 8192"
    recall = {m.context_tokens: m for m in best.measured if m.metric == "recall"}
    assert recall.keys() == {2048, 8192}
    assert recall[8192].low is not None
    assert 0.9 < recall[8192].low < recall[8192].value == 1
    block = to_block(report)
    assert "Effective context: 8,192 tokens (yarn ×4, 2048 → 8192, f16 cache); needle" in block
    assert "KV cache types under yarn ×4, 2048 → 8192:" in block
    assert re.search(r"\| q8\\?_0 +\| 8,192 +\|", block)
    assert "llama.cpp commit 0c1e57098" in block
    assert "Cost in short prompts: not measured" in block


def test_a_control_is_told(make_report: Make) -> None:
    report = make_report(contexts=(NATIVE, 8192), scalings=("file", "yarn"), kv=("f16",), samples=1)
    (model,) = make_card(report).models
    assert [(m.context_tokens, m.value) for m in model.control] == [(NATIVE, 1.0)]
    assert "Control, the unscaled model (native context 2,048): needle recall at 2,048" in to_block(
        report
    )


def test_the_answer_about_caches_is_in_the_card(make_report: Make, tmp_path: Path) -> None:
    report = kv_report(make_report)
    path = written(report, tmp_path / "README.md")
    (card,) = read_card(path)
    assert [(c.kv, c.safety, c.kept, c.answered) for c in card.models[0].caches] == [
        ("f16", "base", 100, 100),
        ("q8_0", "safe", 100, 100),
        ("q4_0", "unsafe", card.models[0].caches[2].kept, 100),
    ]
    text = path.read_text(encoding="utf-8")
    assert "KV cache types at 2,048 tokens (file), compared with f16:" in text
    assert re.search(r"\| q8\\_0 \| [\d.]+ MiB \| [\d.]+ \| 100 of 100 \| safe \|", text)
    assert "llama-server -m invented.gguf -c 2048 --cache-type-k q8_0" in text


def test_what_a_server_has_is_no_file(small: RunReport) -> None:
    server = RuntimeSettings(server="http://127.0.0.1:8080")
    plan = RunPlan(contexts=(8192,), tasks=("needle",), mode="whole", runtime=server)
    with pytest.raises(RequestError, match="a card is of a file"):
        make_card(replace(small, plan=plan))


def test_a_model_that_holds_nowhere(make_report: Make) -> None:
    report = make_report(contexts=(8192,), scalings=("linear",), kv=("f16",))
    (model,) = make_card(report).models
    assert model.effective_context is None
    assert "Effective context: none is shown" in to_block(report)


def test_nothing_measured_is_no_card(small: RunReport) -> None:
    report = replace(small, cells=(), summary=(), verdicts=())
    with pytest.raises(RequestError, match="nothing was measured"):
        make_card(report)


def test_a_card_is_read_back(report: RunReport, tmp_path: Path) -> None:
    path = written(report, tmp_path / "README.md")
    assert read_card(path) == (make_card(report),)
    windows = tmp_path / "windows.md"
    windows.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_card(windows) == read_card(path)


def test_the_plan_of_a_card_runs_beside_the_file(make_report: Make) -> None:
    report = make_report(contexts=(8192,), scalings=("yarn",), kv=("f16",), samples=7)
    plan = replace(
        report.plan,
        models=("/home/somebody/models/invented.gguf", "hf:owner/repo/m.gguf"),
        haystack=Haystack(kind="text", file="/home/somebody/text.txt"),
        runtime=RuntimeSettings(threads=3),
    )
    record = replace(
        report.models[0], file=replace(report.models[0].file, path="C:\\models\\invented.gguf")
    )
    card = make_card(replace(report, plan=plan, models=(record,)))
    read = parse_plan(card.plan)
    assert read.models == ("invented.gguf", "hf:owner/repo/m.gguf")
    assert read.files == ("text.txt",)
    assert read.runtime == RuntimeSettings()
    block = to_block(replace(report, plan=plan, models=(record,)))
    assert "somebody" not in block
    assert "C:" not in block
    assert "ggufrope patch invented.gguf -o invented-yarn-8192.gguf" in block


def test_the_metadata_is_what_the_hub_reads(report: RunReport, tmp_path: Path) -> None:
    text = card_text(report, tmp_path / "README.md")
    front = yaml.safe_load(text.split("---\n")[1])
    results = front["model-index"][0]["results"]
    assert {result["metrics"][0]["type"] for result in results} == {"accuracy", "perplexity"}
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(text)
    assert card.data.model_name == report.models[0].file.name
    recalls = [r for r in card.data.eval_results if r.metric_type == "accuracy"]
    assert [r.metric_value for r in recalls] == [1.0] * 2
    assert recalls[-1].dataset_name == "ggufrope needle, 8192 tokens"


def test_only_the_block_of_a_model_card_is_renewed(
    small: RunReport, make_report: Make, tmp_path: Path
) -> None:
    report = make_report(contexts=(4096,), scalings=("yarn",), kv=("f16",), samples=1)
    path = tmp_path / "README.md"
    before, after = "---\nlicense: mit\n---\n# Mine\n\n", "\n## More of mine\n"
    path.write_text(before + to_block(small) + after, encoding="utf-8")
    written(report, path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(before)
    assert text.endswith(after)
    assert read_card(path) == (make_card(report),)


@pytest.mark.parametrize("cards", [0, 2])
def test_a_file_without_one_card_is_not_touched(
    small: RunReport, tmp_path: Path, cards: int
) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Mine\n\n" + cards * to_block(small), encoding="utf-8")
    with pytest.raises(RequestError, match=f"has {cards or 'no'} card"):
        card_text(small, path)


def test_a_name_ends_neither_the_block_nor_its_json(make_report: Make, tmp_path: Path) -> None:
    name = "<!-- end of the ggufrope card --> ``` \n```\n---\n\"'| <script>"
    report = make_report(model=name, contexts=(8192,), scalings=("yarn",), kv=("f16",), samples=1)
    path = written(report, tmp_path / "README.md")
    (card,) = read_card(path)
    assert card.models[0].name == name
    assert "<script>" not in path.read_text(encoding="utf-8")
    front = yaml.safe_load(path.read_text(encoding="utf-8").split("\n---\n")[0])
    assert front["model-index"][0]["name"] == name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "", "no card of ggufrope in it"),
        (lambda text: text.replace(f"card {VERSION} -->", "card 2 -->"), "a card of version 2"),
        (lambda text: text.replace("```json", "```"), "no JSON in it"),
        (lambda text: text.replace('"ggufrope_card": 1,', ""), "ggufrope_card"),
        (lambda text: text.replace('"headline"', '"headlines"'), "headlines"),
        (lambda text: text.replace('"ggufrope_card"', "{"), "the JSON of the card cannot be read"),
        (lambda text: re.sub("```json.*?```", "```json\n" + "[" * 99999 + "\n```", text,
                             flags=re.DOTALL), "the JSON of the card cannot be read"),
    ],
)  # fmt: skip
def test_cards_that_cannot_be_read(
    small: RunReport, tmp_path: Path, change: Callable[[str], str], says: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text(change(to_block(small)), encoding="utf-8")
    with pytest.raises(RequestError, match=says):
        read_card(path)


def test_a_card_knows_its_file(small: RunReport, nano: Path, tmp_path: Path) -> None:
    cards = (make_card(of_file(small, nano, sha256_of(nano))),)
    copy = Path(shutil.copy(nano, tmp_path / "renamed.gguf"))
    assert matches(cards, "README.md", copy).code == "card-matches"
    content = bytearray(nano.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    found = matches(cards, "README.md", copy)
    assert (found.code, found.severity) == ("card-differs", "error")
    assert "and its data is not" in found.message
    content[-1] ^= 1
    copy.write_bytes(content + b"\0")
    assert matches(cards, "README.md", copy).code == "card-differs"
    unread = (make_card(of_file(small, nano, None)),)
    assert matches(unread, "README.md", nano).code == "card-header-matches"
