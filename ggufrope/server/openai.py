"""Servers with OpenAI's completions and chat completions: LM Studio, KoboldCpp, vLLM, and
llama-cpp-python's own.

Prompts are text, and the score rests on what is generated. Some have a tokenizer beside the API;
vLLM takes tokens as prompts. How each is recognized, and what it tells of the context, is in
`ggufrope.server.connect`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggufrope.server.client import ServerError
from ggufrope.server.dialect import (
    Answer,
    OnTokens,
    Prompt,
    ServerInfo,
    UnsaidError,
    number,
    part,
    required,
    text,
    token_list,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ggufrope.server.client import Client, Json

_GREEDY = {"temperature": 0, "seed": 0, "frequency_penalty": 0, "presence_penalty": 0}
_FAILED = ("content_filter", "error", "abort")
"""Why an answer ended that says nothing of the model."""
_THOUGHTS = re.compile(
    r"\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|channel\|>(?:analysis|commentary))"
)
_THOUGHTS_END = re.compile(
    r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|channel\|>final<\|message\|>"
)
"""The marks around thoughts where a server leaves them in the answer: of DeepSeek, Qwen and others,
of Mistral, of gpt-oss."""


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
        generated = required(part(answer, "choices", 0, "text"), "text", str, path)
        if (finish := _finish(answer)) in _FAILED:
            raise ServerError(f"{path}: the server ended the answer ({finish})")
        return self._answer(answer, generated)

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
        return spoken(message, _finish(answer), self._answer(answer, ""), path)

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


def _finish(answer: Any) -> str | None:
    """Return why an answer ended."""
    return text(part(answer, "choices", 0, "finish_reason"))


def spoken(message: Json, finish: Any, counted: Answer, path: str) -> Answer:
    """Return what an assistant says after it has thought; `finish` is why its answer ended.

    Raises UnsaidError where it says nothing: it did not come to an end of its thoughts, it refuses
    or calls a tool, or the server ended the answer.
    """
    *thoughts, said = _THOUGHTS_END.split(_words(message.get("content")) or "")
    thought = any(text(message.get(key)) for key in ("reasoning_content", "reasoning", "thinking"))
    silent = not said.strip()
    if finish in _FAILED:
        why = f"the server ended the answer ({finish})"
    elif _THOUGHTS.match(said) or (silent and (thoughts or thought or finish == "length")):
        why = (
            "the model was still thinking when its answer had to end; turn thinking off at the "
            "server, or use `format` completion"
        )
    elif silent and text(message.get("refusal")):
        why = f"the model refuses: {text(message['refusal'])}"
    elif silent and (message.get("tool_calls") or message.get("function_call")):
        why = "the model calls a tool in the place of an answer"
    elif _words(message.get("content")) is None:
        why = "the answer has no text"
    else:
        return replace(counted, text=said)
    raise UnsaidError(f"{path}: {why}", counted)


def _words(content: Any) -> str | None:
    """Return the text of a message, which may come in parts; None where there is none."""
    if isinstance(content, list):
        parts = (part(one, "text") for one in content if part(one, "type") in (None, "text"))
        return "".join(each for each in parts if isinstance(each, str))
    return content if isinstance(content, str) else None
