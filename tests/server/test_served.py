"""What a server serves is measured to the token, whatever it says of itself."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufrope.errors import RequestError
from ggufrope.server.served import Served, measure_server
from tests.server.standin import Beyond, Kind, StandIn


def served(asked: int | None = 4096, kind: Kind = "Ollama", **changes: object) -> Served:
    return measure_server(StandIn(kind, **changes).open(), asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama-server", "Ollama", "LM Studio", "vLLM", "OpenAI"])
@pytest.mark.parametrize("n_ctx", [700, 1024])
def test_a_context_is_found_to_the_token_where_longer_prompts_are_refused(
    kind: Kind, n_ctx: int
) -> None:
    found = served(kind=kind, n_ctx=n_ctx)
    assert (found.behavior, found.exact, found.passed) == ("refused", True, False)
    assert (found.longest_prompt, found.serves) == (n_ctx - 1, n_ctx)
    assert "exceeds the context size" in (found.refusal or "")
    assert found.at_the_end == "stops"


@pytest.mark.parametrize("beyond", ["cut start", "cut middle", "cut end"])
@pytest.mark.parametrize("n_ctx", [700, 1024])
def test_a_cut_and_the_end_that_is_gone(beyond: Beyond, n_ctx: int) -> None:
    found = served(n_ctx=n_ctx, beyond=beyond, shifts=True)
    assert found.behavior == "cut"
    assert found.longest_prompt == n_ctx - 1
    assert found.dropped == beyond.removeprefix("cut ")
    assert found.dropped_tokens == 4095 - (n_ctx - 1)
    assert (found.dropped_bytes or 0) > 2 * (found.dropped_tokens or 0)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["llama-server", "Ollama", "vLLM"]),
    n_ctx=st.integers(300, 3000),
    asked=st.integers(256, 5000),
    beyond=st.sampled_from(["refuse", "cut start", "cut middle", "cut end"]),
)
def test_any_context_is_found_to_the_token(
    kind: Kind, n_ctx: int, asked: int, beyond: Beyond
) -> None:
    found = served(asked, kind=kind, n_ctx=n_ctx, beyond=beyond)
    assert found.passed is (asked <= n_ctx)
    assert found.longest_prompt == min(asked, n_ctx) - 1


@pytest.mark.parametrize("counted", [0, 1, 4096])
def test_counts_that_are_always_the_same_are_not_taken(counted: int) -> None:
    found = served(512, kind="OpenAI", n_ctx=1024, count=lambda tokens: counted)
    assert (found.behavior, found.exact, found.passed) == ("whole", False, True)
    assert "counts of the tokens of a prompt" in found.lacks
    assert not served(2048, kind="OpenAI", n_ctx=1024, count=lambda tokens: counted).passed


@pytest.mark.parametrize("status", [400, 404])
def test_a_server_that_only_chats_is_measured_by_its_counts_also_where_it_thinks(
    status: int,
) -> None:
    server = StandIn("OpenAI", n_ctx=700)
    chat = {"error": {"message": "this is a chat model"}}
    server.tells["/v1/completions"] = lambda request: httpx.Response(status, json=chat)
    assert measure_server(server.open(), 4096).longest_prompt == 699

    def thinking(request: httpx.Request) -> httpx.Response:
        del server.tells["/v1/chat/completions"]
        answer = server(request)
        server.tells["/v1/chat/completions"] = thinking
        if answer.is_success:
            found = answer.json()
            found["choices"] = [{"message": {"content": ""}, "finish_reason": "length"}]
            return httpx.Response(200, json=found)
        return answer

    server.tells["/v1/chat/completions"] = thinking
    found = measure_server(server.open(), 4096)
    assert (found.longest_prompt, found.knows_start) == (699, None)


def test_where_a_cut_leaves_no_room_for_an_answer_no_end_is_named() -> None:
    found = served(n_ctx=700, beyond="cut start")
    assert (found.behavior, found.longest_prompt, found.dropped) == ("cut", 699, None)


def test_a_server_that_counts_what_it_cuts_is_found_out_by_the_start_of_the_prompt() -> None:
    found = served(n_ctx=700, beyond="lie")
    assert found.behavior == "unanswered"
    # The start is a code and a sentence: it is lost token by token.
    assert abs((found.longest_prompt or 0) - 699) <= 20
    assert not found.passed


def test_a_model_that_reaches_no_further_shows_in_its_log_probabilities() -> None:
    found = served(n_ctx=8192, horizon=600)  # Ollama gives none: it may be cut
    assert found.behavior == "unanswered"
    assert (found.longest_prompt or 0) < 700


def test_where_the_start_reaches_a_model_that_does_not_find_it_the_prompt_is_whole() -> None:
    server = StandIn("llama-server", n_ctx=8192, horizon=600)
    reached = server.model.next_logits

    def slightly(tokens: list[int]) -> object:
        return reached(tokens) * (1 + sum(tokens[:40]) % 97 / 1e4)

    server.model.next_logits = slightly  # type: ignore[method-assign, assignment]
    found = measure_server(server.open(), 4096)
    assert (found.behavior, found.longest_prompt, found.knows_start) == ("whole", 4095, False)
    assert any("does not find what stands at its start" in line for line in found.remarks)


def test_what_fits_is_served() -> None:
    found = served(1024, n_ctx=2048)
    assert found.passed
    assert (found.behavior, found.longest_prompt, found.serves) == ("whole", 1023, 1024)
    assert found.knows_start is True


def test_a_context_that_is_shifted_at_its_end() -> None:
    assert served(n_ctx=700, shifts=True).at_the_end == "shifts"
    assert served(n_ctx=700, kind="llama-server", shifts=True).at_the_end == "shifts"


def test_a_context_that_is_told_is_not_believed() -> None:
    server = StandIn("LM Studio", n_ctx=700)
    entry = {"id": "tiny", "type": "llm", "state": "loaded", "loaded_context_length": 32768}
    server.tells["/api/v0/models"] = lambda request: httpx.Response(200, json={"data": [entry]})
    found = measure_server(server.open(), None)
    assert (found.asked, found.serves) == (32768, 700)
    assert any("reports a context of 32768 tokens; measured: 700" in line for line in found.remarks)


def test_without_counts_the_length_is_about_right() -> None:
    found = served(n_ctx=700, kind="OpenAI", count=lambda tokens: None, beyond="cut start")
    assert not found.exact
    assert found.behavior == "unanswered"
    assert 400 < (found.longest_prompt or 0) < 1100


def test_ranges_are_checked() -> None:
    with pytest.raises(RequestError, match="`context_tokens` 100 must be"):
        served(100)
    with pytest.raises(RequestError, match="give `context_tokens`"):
        served(None, kind="OpenAI")
