"""Servers with OpenAI's completions and chat completions: LM Studio, KoboldCpp, vLLM, and
llama-cpp-python's own.

Prompts are text, and the score rests on what is generated. Some have a tokenizer beside the API;
vLLM takes tokens as prompts. How each is recognized, and what it tells of the context, is in
`ggufrope.server.connect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ggufrope.server.client import ServerError
from ggufrope.server.dialect import (
    Answer,
    OnTokens,
    Prompt,
    ServerInfo,
    number,
    part,
    required,
    text,
    token_list,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.server.client import Client

_GREEDY = {"temperature": 0, "seed": 0, "frequency_penalty": 0, "presence_penalty": 0}


class OpenAi:
    """Text in, text out. `ask` returns what the server tells, when it is asked again."""

    tokenizes = False
    takes_tokens = False
    chats = True

    def __init__(self, client: Client, info: ServerInfo, ask: Callable[[], ServerInfo]) -> None:
        self._client = client
        self._ask = ask
        self.info = info

    def ask_again(self) -> ServerInfo:
        """Return what the server tells now."""
        return self._ask()

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Raise ServerError: there is no tokenizer in this API."""
        raise ServerError(f"{self.info.dialect} has no tokenizer")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Raise ServerError: there is no tokenizer in this API."""
        raise ServerError(f"{self.info.dialect} has no tokenizer")

    def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        lane: int = 0,
        forced: int | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Answer:
        """Return the greedy continuation of a prompt."""
        path = "/v1/completions"
        given = prompt if isinstance(prompt, str) else list(prompt)
        body = {"model": self.info.model, "prompt": given, "max_tokens": max_tokens, **_GREEDY}
        answer = self._client.post(path, body)
        generated = part(answer, "choices", 0, "text")
        return self._answer(answer, required(generated, "text", str, path))

    def chat(self, words: str, *, max_tokens: int) -> Answer:
        """Return the greedy answer to a user's words."""
        path = "/v1/chat/completions"
        messages = [{"role": "user", "content": words}]
        body = {
            "model": self.info.model,
            "messages": messages,
            "max_tokens": max_tokens,
            **_GREEDY,
        }
        answer = self._client.post(path, body)
        message = required(part(answer, "choices", 0, "message"), "message", dict, path)
        thought = part(message, "reasoning_content") or part(message, "reasoning")
        return self._answer(answer, thoughtless(message.get("content"), thought, path))

    def _answer(self, answer: Any, generated: str) -> Answer:
        usage = part(answer, "usage")
        return Answer(
            text=generated,
            prompt_tokens=number(part(usage, "prompt_tokens")),
            generated_tokens=number(part(usage, "completion_tokens")),
        )


class LlamaCppPython(OpenAi):
    """The server in llama-cpp-python: text prompts, and a tokenizer that adds BOS."""

    tokenizes = True

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Return the tokens of a text; special tokens in it are always read as such."""
        if not text and not beginning:
            return []
        path, body = "/extras/tokenize", {"model": self.info.model, "input": text}
        tokens = token_list(self._client.post(path, body), path)
        if beginning:
            return tokens
        body["input"] = ""
        first = token_list(self._client.post(path, body), path)
        return tokens[len(first) :]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        path = "/extras/detokenize"
        answer = self._client.post(path, {"model": self.info.model, "tokens": list(tokens)})
        return str(required(part(answer, "text"), "text", str, path))


class Vllm(OpenAi):
    """vLLM: prompts may be tokens."""

    tokenizes = True
    takes_tokens = True

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Return the tokens of a text; special tokens in it are always read as such."""
        body = {"model": self.info.model, "prompt": text, "add_special_tokens": beginning}
        return token_list(self._client.post("/tokenize", body), "/tokenize")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        path = "/detokenize"
        answer = self._client.post(path, {"model": self.info.model, "tokens": list(tokens)})
        return str(required(part(answer, "prompt"), "text", str, path))


def thoughtless(content: Any, thought: Any, path: str) -> str:
    """Return what an assistant says after it has thought.

    Raises ServerError where it did not come to an end of that.
    """
    said = content if isinstance(content, str) else ""
    _, ended, after = said.rpartition("</think>")
    if ended:
        return after
    if said.lstrip().startswith("<think>") or (not said and text(thought)):
        raise ServerError(
            f"{path}: the model was still thinking when its answer had to end; turn thinking off "
            "at the server, or use `format` completion"
        )
    return said
