"""Every dialect is recognized by asking, and gives the same recall as far as it can be told."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from itertools import count, pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufrope.backends.served import open_server
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.errors import GgufRopeError, RequestError
from ggufrope.evals.formats import prompt_format
from ggufrope.evals.multikey import MULTIKEY
from ggufrope.evals.needle import NEEDLE
from ggufrope.evals.results import CellResult
from ggufrope.evals.ruler.task import RULER
from ggufrope.evals.task import RulerSettings, Task, TaskRequest, TaskSettings
from ggufrope.lm import Branch
from ggufrope.runtime.fake import FakeContext
from ggufrope.server.client import ServerError
from ggufrope.server.model import ServerModel
from tests.evals.bench import cells_of
from tests.server.standin import ADDRESS, Kind, StandIn

KINDS: tuple[Kind, ...] = (*("llama-server", "Ollama", "KoboldCpp", "LM Studio", "vLLM", "OpenAI"),)


def fill(
    model: Any, open_context: Any, task: Task, contexts: tuple[int, ...], **settings: Any
) -> list[CellResult]:
    """The results of a task, each needle in a whole prompt."""
    chosen = TaskSettings(mode="whole", **settings)
    request = TaskRequest(
        settings=chosen,
        model=model,
        open_context=open_context,
        cells=cells_of(task, chosen, contexts),
    )
    return list(task.run(request))


def at(server: ServerModel, task: Task, *contexts: int, **settings: Any) -> list[CellResult]:
    return fill(server, server.open, task, contexts, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["completion", "auto"])
def test_each_dialect_recalls_every_needle(kind: Kind, form: Any) -> None:
    server = StandIn(kind, template="{{ .System }}{{ .Prompt }}" if kind == "Ollama" else None)
    opened = server.open()
    results = at(opened, NEEDLE, 512, 1024, depths=3, samples=1, format=form)
    assert [result.value("recall") for result in results] == [1.0] * 6, results[0].reason
    kinds = {"OpenAI": "OpenAI-compatible server"}
    assert opened.info.dialect == kinds.get(kind, kind)
    assert opened.info.model == "tiny"
    chats = form == "auto" and kind != "llama-server"
    assert {dict(r.notes)["format"] for r in results} == {"chat" if chats else "completion"}
    for result in results:
        assert result.prompt_tokens is not None
        room = 112 * chats  # for the template, and what is said around an answer
        assert 0.75 * (result.cell.context_tokens - room) < result.prompt_tokens
        assert result.prompt_tokens <= result.cell.context_tokens


def test_llama_server_gives_what_the_model_in_this_process_gives() -> None:
    server = StandIn("llama-server", horizon=400)
    model = server.model
    settings: dict[str, Any] = {"depths": 5, "samples": 2, "distractors": 2}
    served = at(server.open(), NEEDLE, 512, **settings)
    local = fill(model, lambda n: FakeContext(model, n_ctx=n), NEEDLE, (512,), **settings)
    recalls = [result.value("recall") for result in local]
    assert 0.0 in recalls
    assert 1.0 in recalls
    for one, other in zip(served, local, strict=True):
        for name in ("recall", "rank", "measured_depth"):
            assert one.value(name) == other.value(name)
        assert one.value("log_probability") == pytest.approx(other.value("log_probability"))
        assert one.prompt_tokens == other.prompt_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_multikey_and_ruler_are_asked_of_a_server(kind: Kind) -> None:
    opened = StandIn(kind).open()
    found = at(opened, MULTIKEY, 512, depths=2, format="completion")
    assert [result.value("recall") for result in found] == [1.0, 1.0]
    assert (found[0].value("rank") == 1.0) is (kind == "llama-server")  # others rank nothing
    ruler = RulerSettings(tasks=("niah_single_1",))
    (score,) = at(opened, RULER, 512, ruler=ruler, format="completion")
    assert score.status == "ok", score.reason
    assert dict(score.notes)["output"]


def test_what_a_dialect_cannot_give_is_named() -> None:
    lacks = {kind: "; ".join(StandIn(kind).open().lacks) for kind in KINDS}
    assert "log-probabilities" not in lacks["llama-server"]
    assert "the RoPE flags" in lacks["llama-server"]
    for kind in KINDS[1:]:
        assert "log-probabilities" in lacks[kind]
    assert "tokenizer" in lacks["Ollama"]
    assert "tokenizer" not in lacks["vLLM"]
    assert "its context" in lacks["OpenAI"]


def test_a_server_without_counts_is_taken_by_characters_and_says_so() -> None:
    opened = StandIn("OpenAI", count=lambda tokens: None).open()
    assert "counts of the tokens of a prompt" in opened.lacks
    (result,) = at(opened, NEEDLE, 512, depths=1, samples=1)
    assert result.value("recall") == 1.0


def test_a_server_that_completes_nothing_is_measured_by_its_chat() -> None:
    opened = StandIn("OpenAI", completes=False).open()
    (result,) = at(opened, NEEDLE, 512, depths=1, samples=1)
    assert result.value("recall") == 1.0
    (refused,) = at(opened, NEEDLE, 512, depths=1, samples=1, format="completion")
    assert refused.status == "error"
    assert "/v1/completions: HTTP 404" in (refused.reason or "")


def test_ollama_is_asked_for_the_context_that_is_given() -> None:
    server = StandIn("Ollama", n_ctx=300)
    at(server.open(num_ctx=1024), NEEDLE, 512, depths=1, samples=1)
    assert b'"num_ctx":1024' in server.requests[-1].content
    server = StandIn("Ollama")
    at(server.open(), NEEDLE, 512, depths=1, samples=1)
    assert b"num_ctx" not in server.requests[-1].content
    with pytest.raises(RequestError, match="`num_ctx` is for Ollama: vLLM has"):
        StandIn("vLLM").open(num_ctx=1024)


def test_prompts_share_the_longest_beginnings_and_the_cache_is_asked_for() -> None:
    server = StandIn("llama-server")
    at(server.open(), NEEDLE, 1024, depths=5, samples=1)
    asked = [
        r
        for r in server.requests
        if r.url.path == "/completion" and b'"n_predict":1,' not in r.content
    ]
    assert len(asked) == 5
    prompts = [json.loads(request.content)["prompt"] for request in asked]
    assert all(json.loads(request.content)["cache_prompt"] for request in asked)
    shared = [
        next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        for one, two in pairwise(prompts)
    ]
    # The deepest needle first: each prompt keeps the haystack before its needle.
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > 700


@pytest.mark.parametrize("kind", ["llama-server", "OpenAI"])
def test_progress_comes_to_what_was_planned(kind: Kind) -> None:
    server = StandIn(kind).open()
    counts: dict[str, list[int]] = {"planned": [], "done": []}
    settings = TaskSettings(mode="whole", depths=3, samples=2, format="completion")
    request = TaskRequest(
        settings=settings,
        model=server,
        open_context=server.open,
        cells=cells_of(NEEDLE, settings, (512, 1024)),
        planned=counts["planned"].append,
        progress=counts["done"].append,
    )
    assert len(list(NEEDLE.run(request))) == 12
    assert sum(counts["planned"]) == sum(counts["done"]) > 12 * 40


def test_slots_are_used_side_by_side_and_the_order_stays() -> None:
    one, two = StandIn("llama-server"), StandIn("llama-server", slots=2)
    opened = two.open()
    assert opened.lanes == 2
    assert StandIn("llama-server", slots=2).open(parallel=1).lanes == 1
    settings: dict[str, Any] = {"depths": 5, "samples": 2}
    assert at(opened, NEEDLE, 512, **settings) == at(one.open(), NEEDLE, 512, **settings)
    slots = {
        b'"id_slot":1' in request.content
        for request in two.requests
        if request.url.path == "/completion"
    }
    assert slots == {False, True}


@pytest.mark.parametrize("kind", ["Ollama", "OpenAI", "LM Studio"])
def test_a_model_that_is_not_there_is_an_error_that_lists_those_that_are(kind: Kind) -> None:
    with pytest.raises(RequestError, match="has no model 'tinny'; did you mean 'tiny"):
        open_server(
            RuntimeSettings(server=ADDRESS),
            "tinny",
            transport=httpx.MockTransport(StandIn(kind)),
        )


def test_of_several_models_one_must_be_named() -> None:
    server = StandIn("OpenAI")
    several = {"data": [{"id": "a"}, {"id": "b"}]}
    server.tells["/v1/models"] = lambda request: httpx.Response(200, json=several)
    with pytest.raises(RequestError, match="has 2 models: name one of a, b"):
        server.open()


def saying(message: Any, finish: str | None = None) -> ServerModel:
    """A server whose chat always says the same."""
    server = StandIn("OpenAI")
    choice = {"message": message, "finish_reason": finish}
    server.tells["/v1/chat/completions"] = lambda request: httpx.Response(
        200, json={"choices": [choice], "usage": {"prompt_tokens": 500}}
    )
    return server.open()


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ({"content": None, "reasoning_content": "hm"}, None, "still thinking"),
        ({"content": "", "reasoning": "hm"}, "stop", "still thinking"),
        ({"content": ""}, "length", "still thinking"),
        ({"content": " <think>hm"}, "length", "still thinking"),
        ({"content": "<thinking>hm"}, "length", "still thinking"),
        ({"content": "[THINK]hm"}, "length", "still thinking"),
        ({"content": "<|channel|>analysis<|message|>hm"}, "length", "still thinking"),
        ({"content": "<think>hm</think>"}, "length", "still thinking"),
        ({"content": None, "refusal": "I cannot"}, "stop", "the model refuses: I cannot"),
        ({"content": None, "tool_calls": [{}]}, "tool_calls", "calls a tool"),
        ({"content": ""}, "content_filter", r"ended the answer \(content_filter\)"),
        ({"content": ""}, "error", r"ended the answer \(error\)"),
        ({"content": None}, "stop", "the answer has no text"),
        ({"content": 5}, "stop", "the answer has no text"),
    ],
)
def test_a_chat_that_gives_no_answer_says_why(
    message: Any, finish: str | None, reason: str
) -> None:
    (result,) = at(saying(message, finish), NEEDLE, 512, depths=1, samples=1)
    assert result.status == "error"
    assert re.search(reason, result.reason or "")


@pytest.mark.parametrize(
    "content",
    [
        "It is {}.",
        "**{}**",
        "<think>1 or 2?</think>{}",
        "<|channel|>analysis<|message|>hm<|channel|>final<|message|>{}",
        [{"type": "text", "text": "It is "}, {"type": "text", "text": "{}"}],
    ],
)
def test_an_answer_in_a_chat_counts_in_other_words(content: Any) -> None:
    (asked,) = at(saying({"content": ""}), NEEDLE, 512, depths=1, samples=1)
    said = json.loads(json.dumps(content).replace("{}", dict(asked.notes)["answer"]))
    (result,) = at(saying({"content": said}, "stop"), NEEDLE, 512, depths=1, samples=1)
    assert result.value("recall") == 1.0
    (silent,) = at(saying({"content": ""}, "stop"), NEEDLE, 512, depths=1, samples=1)
    assert silent.value("recall") == 0.0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("47 - 24 = 23", True),
        ("47 - 24 = 23, as 23 + 24 is 47", True),
        ("23", True),
        ("It is 23.", True),
        ("47 - 24 = 1234567890", False),
        ("47 - 24 = -23", False),
        ("1,023", False),
        ("23.5", False),
        ("22, 23 or 24", False),
        ("47 - 24 = 24, not 23", False),
        ("", False),
    ],
)
def test_a_chat_gives_one_answer_or_none(said: str, right: bool) -> None:
    model = saying({"content": said}, "stop")
    form = prompt_format(model)
    branch = Branch(
        prompt=(*form.beginning, *form.ending("What is 47 - 24?", " 47 - 24 =")),
        answers=tuple(tuple(model.tokenize(answer)) for answer in (" 23", " 22", " 24")),
    )
    (scores,) = model.open(512).score([branch])
    assert scores[0].greedy is right
    assert sum(score.greedy for score in scores) <= 1


def test_a_completion_that_goes_on_with_more_digits_is_another_number() -> None:
    server = StandIn("OpenAI")
    (asked,) = at(server.open(), NEEDLE, 512, depths=1, samples=1, format="completion")
    answer = dict(asked.notes)["answer"]
    for more, right in (("", 1.0), (".", 1.0), ("0", 0.0)):
        choice = {"text": f" {answer}{more}"}
        server.tells["/v1/completions"] = lambda request, choice=choice: httpx.Response(
            200, json={"choices": [choice]}
        )
        (result,) = at(server.open(), NEEDLE, 512, depths=1, samples=1, format="completion")
        assert result.value("recall") == right


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["id", "name", "logprob", "content", "message", "error"]), inner
        )
    ),
    max_leaves=6,
)


def spoiled(found: Any, data: st.DataObject) -> Any:
    """What a server sends, with anything in the place of a part of it."""
    if not isinstance(found, dict | list) or not found or data.draw(st.booleans()):
        return data.draw(Json)
    copy: Any = found.copy()
    at = data.draw(st.sampled_from(sorted(copy) if isinstance(copy, dict) else range(len(copy))))
    copy[at] = spoiled(copy[at], data)
    return copy


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), first=st.integers(0, 12), data=st.data())
def test_whatever_json_a_server_sends_ends_in_an_error_of_ours(
    kind: Kind, first: int, data: st.DataObject
) -> None:
    server, answers = StandIn(kind, n_ctx=700), count()

    def answer(request: httpx.Request) -> httpx.Response:
        honest = server(request)
        if not honest.is_success or next(answers) < first:
            return honest
        if not honest.text.startswith("data: "):
            return httpx.Response(200, text=json.dumps(spoiled(honest.json(), data)))
        events = [json.loads(line[6:]) for line in honest.text.split("\n\n") if line]
        lines = (json.dumps(event) for event in [*events[:-1], spoiled(events[-1], data)])
        return httpx.Response(200, text="".join(f"data: {line}\n\n" for line in lines))

    with suppress(GgufRopeError):
        opened = open_server(RuntimeSettings(server=ADDRESS), transport=httpx.MockTransport(answer))
        at(opened, NEEDLE, 512, depths=1, samples=1)


@pytest.mark.parametrize("models", [[], [{}], [{"id": None}], [{"id": 5}], 5, None])
def test_a_server_without_a_model_that_can_be_named_says_so(models: Any) -> None:
    for kind, path in (("OpenAI", "/v1/models"), ("LM Studio", "/api/v0/models")):
        server = StandIn(kind)  # type: ignore[arg-type]
        server.tells[path] = lambda request: httpx.Response(200, json={"data": models})
        with pytest.raises(ServerError, match=r"names no model|no known API"):
            server.open()


def test_an_unknown_server_is_refused() -> None:
    nothing = httpx.MockTransport(lambda request: httpx.Response(404, text="no"))
    with pytest.raises(ServerError, match="no known API"):
        open_server(RuntimeSettings(server=ADDRESS), transport=nothing)


def test_the_refusal_of_an_unknown_server_has_its_address_once() -> None:
    failing = httpx.MockTransport(lambda request: httpx.Response(500, text="no"))
    with pytest.raises(ServerError) as caught:
        open_server(RuntimeSettings(server=ADDRESS), transport=failing)
    assert str(caught.value).count(ADDRESS) == 1
