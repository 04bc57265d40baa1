"""Ollama: text in, text out, the context chosen by each request (`num_ctx`), long prompts cut.

Written against Ollama's docs/api.md: `/api/show`, `/api/ps`, `/api/tags`, `/api/generate` with
`raw`, `/api/chat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ggufrope.server.client import ServerError
from ggufrope.server.dialect import (
    NO_LOG_PROBABILITIES,
    NO_TOKENS,
    Answer,
    OnTokens,
    Prompt,
    ServerInfo,
    items,
    number,
    part,
    required,
    text,
)
from ggufrope.server.openai import spoken

if TYPE_CHECKING:
    from ggufrope.server.client import Client

_GREEDY = {"temperature": 0, "top_k": 1, "seed": 0, "repeat_penalty": 1.0}
_NO_TEMPLATE = ("", "{{ .Prompt }}")


class Ollama:
    """The API of Ollama for one model; `num_ctx` is the context that each request asks for, None
    for the server's own default."""

    tokenizes = False
    takes_tokens = False

    def __init__(self, client: Client, name: str, num_ctx: int | None) -> None:
        self._client = client
        self._name = name
        self._num_ctx = num_ctx
        self.chats = True
        self._thinks = False
        self.info = self.ask_again()

    def ask_again(self) -> ServerInfo:
        """Return what the server tells now."""
        shown = self._client.post("/api/show", {"model": self._name})
        facts = part(shown, "model_info")
        facts = facts if isinstance(facts, dict) else {}
        architecture = text(facts.get("general.architecture")) or ""
        self.chats = str(part(shown, "template") or "").strip() not in _NO_TEMPLATE
        self._thinks = "thinking" in items(part(shown, "capabilities"))
        rope = f"{architecture}.rope."
        return ServerInfo(
            dialect="Ollama",
            model=self._name,
            context_tokens=self._num_ctx or _num_ctx(shown) or self._loaded_context(),
            trained_tokens=number(facts.get(f"{architecture}.context_length")),
            build=text(part(self._client.get("/api/version"), "version")),
            digest=self._digest(),
            settings=tuple(
                (key, str(value)[:60])
                for key, value in sorted(facts.items())
                if key.startswith(rope) and isinstance(value, int | float | str)
            ),
            lacks=(NO_LOG_PROBABILITIES, NO_TOKENS),
        )

    def _loaded_context(self) -> int | None:
        """Return the context of the model where it is loaded and newer servers tell it."""
        entry = self._entry("/api/ps")
        return number(part(entry, "context_length"))

    def _digest(self) -> str | None:
        return text(part(self._entry("/api/tags"), "digest"))

    def _entry(self, path: str) -> Any:
        found = items(part(self._client.get(path), "models"))
        names = (self._name, f"{self._name}:latest")
        return next((one for one in found if part(one, "name") in names), None)

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Raise ServerError: Ollama has no tokenizer."""
        raise ServerError("Ollama has no tokenizer")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Raise ServerError: Ollama has no tokenizer."""
        raise ServerError("Ollama has no tokenizer")

    def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        lane: int = 0,
        forced: int | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Answer:
        """Return the greedy continuation of a text, without any template."""
        answer = self._post("/api/generate", max_tokens, prompt=prompt, raw=True)
        said = required(part(answer, "response"), "response", str, "/api/generate")
        return self._answer(answer, said)

    def chat(self, words: str, *, max_tokens: int) -> Answer:
        """Return the greedy answer to a user's words, in the model's template."""
        messages = [{"role": "user", "content": words}]
        more = {"think": False} if self._thinks else {}
        answer = self._post("/api/chat", max_tokens, messages=messages, **more)
        message = required(part(answer, "message"), "message", dict, "/api/chat")
        finish = text(part(answer, "done_reason"))
        return spoken(message, finish, self._answer(answer, ""), "/api/chat")

    def _post(self, path: str, max_tokens: int, **body: Any) -> Any:
        options: dict[str, Any] = {**_GREEDY, "num_predict": max_tokens}
        if self._num_ctx is not None:
            options["num_ctx"] = self._num_ctx
        answer = self._client.post(
            path, {"model": self._name, "stream": False, "options": options, **body}
        )
        if part(answer, "done") is not True:
            raise ServerError(f"{self._client.address}{path}: the answer ended early")
        return answer

    def _answer(self, answer: Any, said: str) -> Answer:
        return Answer(
            text=said,
            prompt_tokens=number(part(answer, "prompt_eval_count")),
            generated_tokens=number(part(answer, "eval_count")),
        )


def _num_ctx(shown: Any) -> int | None:
    """Return the `num_ctx` among the parameters of a model, which are lines of text."""
    for line in str(part(shown, "parameters") or "").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "num_ctx" and value.strip().isdecimal():
            return number(int(value.strip()[:12]))
    return None
