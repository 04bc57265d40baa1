"""Servers of every dialect, scripted: the public fake model behind the APIs, and faults on order.

A stand-in is a handler for httpx's own mock transport. What it answers has the shape that the
documentation of each server gives; only llama-server and llama-cpp-python's are run for real.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal

import httpx

from ggufrope.backends.served import open_server
from ggufrope.backends.settings import RuntimeSettings
from ggufrope.runtime.batch import log_probabilities_of
from ggufrope.runtime.fake import FakeModel
from ggufrope.server.model import ServerModel

Kind = Literal["llama-server", "Ollama", "KoboldCpp", "LM Studio", "vLLM", "OpenAI"]
Beyond = Literal["refuse", "cut start", "cut middle", "cut end", "lie"]
_QUESTION = re.compile(r"What is t(he .*)\?$")
DROPPED = 599
"""As the status of a fault on loopback: the connection ends without an answer."""
ADDRESS = "http://server.test:8080"


class StandIn:
    """One server with one model, `name`, and a context of `n_ctx` tokens.

    `beyond` is what becomes of a longer prompt; one that lies cuts the start and counts all.
    `shifts` is whether an answer may go on beyond the context. `faults` are what answers the n-th
    generation, counted from 1, in the place of an answer. `tells` changes what it says of itself.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        n_ctx: int = 2048,
        beyond: Beyond = "refuse",
        shifts: bool = False,
        horizon: int | None = None,
        slots: int = 1,
        template: str | None = None,
        faults: Mapping[int, Callable[[httpx.Request], httpx.Response]] | None = None,
        completes: bool = True,
        count: Callable[[int], int | None] = lambda tokens: tokens,
    ) -> None:
        self.kind = kind
        self.name = "tiny"
        self.n_ctx = n_ctx
        self.model = FakeModel(horizon=horizon)
        self.requests: list[httpx.Request] = []
        self.generations = 0
        self.tells: dict[str, Any] = {}
        self._beyond = beyond
        self._shifts = shifts
        self._slots = slots
        self._template = template
        self._faults = dict(faults or {})
        self._completes = completes
        self._count = count

    def open(self, **settings: Any) -> ServerModel:
        """The model of this server, as a run opens it."""
        return open_server(
            RuntimeSettings(server=ADDRESS, **settings), transport=httpx.MockTransport(self)
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path, body = request.url.path, json.loads(request.content or b"null")
        if path in self.tells:
            return self.tells[path](request)
        found = self._about().get((request.method, path))
        if found is not None:
            return httpx.Response(200, json=found)
        match path, body:
            case "/tokenize", {"content": text, "add_special": first}:
                return httpx.Response(200, json={"tokens": self._tokens(text, first)})
            case "/tokenize", {"prompt": text, "add_special_tokens": first}:
                return httpx.Response(200, json={"tokens": self._tokens(text, first)})
            case "/detokenize", {"tokens": tokens}:
                text = self.model.detokenize(tokens)
                return httpx.Response(200, json={"content": text, "prompt": text})
            case "/completion", {"prompt": prompt} if self.kind == "llama-server":
                return self._generate(request, prompt, body["n_predict"], body)
            case "/v1/completions", {"prompt": prompt} if self._speaks_openai and self._completes:
                return self._generate(request, prompt, body["max_tokens"], body)
            case "/v1/chat/completions", {"messages": [message]} if self._speaks_openai:
                return self._generate(request, message["content"], body["max_tokens"], body)
            case "/api/generate", {"prompt": prompt, "raw": True} if self.kind == "Ollama":
                return self._generate(request, prompt, body["options"]["num_predict"], body)
            case "/api/chat", {"messages": [message]} if self.kind == "Ollama":
                prompt = message["content"]
                return self._generate(request, prompt, body["options"]["num_predict"], body)
        return httpx.Response(404, json={"error": "no such thing here"})

    @property
    def _speaks_openai(self) -> bool:
        return self.kind not in ("llama-server", "Ollama")

    def _about(self) -> dict[tuple[str, str], Any]:
        model: dict[str, Any] = {"id": self.name, "object": "model"}
        models = {"object": "list", "data": [model]}
        match self.kind:
            case "llama-server":
                model["meta"] = {"n_ctx_train": self.n_ctx, "size": 1000}
                return {
                    ("GET", "/v1/models"): models,
                    ("GET", "/props"): {
                        "default_generation_settings": {"n_ctx": self.n_ctx},
                        "total_slots": self._slots,
                        "model_path": f"/models/{self.name}.gguf",
                        "chat_template": self._template or "",
                        "build_info": "b1-test",
                    },
                }
            case "Ollama":
                facts = {
                    "general.architecture": "llama",
                    "llama.context_length": 131072,
                    "llama.rope.freq_base": 500000.0,
                }
                template = self._template or "{{ .Prompt }}"
                return {
                    ("GET", "/api/version"): {"version": "0.9.9"},
                    ("GET", "/api/tags"): {
                        "models": [{"name": f"{self.name}:latest", "digest": "0123456789ab"}]
                    },
                    ("GET", "/api/ps"): {"models": []},
                    ("POST", "/api/show"): {"template": template, "model_info": facts},
                }
            case "KoboldCpp":
                return {
                    ("GET", "/api/extra/version"): {"result": "KoboldCpp", "version": "1.99"},
                    ("GET", "/api/v1/model"): {"result": f"koboldcpp/{self.name}"},
                    ("GET", "/api/extra/true_max_context_length"): {"value": self.n_ctx},
                    ("GET", "/v1/models"): models,
                }
            case "LM Studio":
                entry = {
                    "id": self.name,
                    "type": "llm",
                    "state": "loaded",
                    "loaded_context_length": self.n_ctx,
                    "max_context_length": 131072,
                }
                other = {"id": "other", "type": "llm", "state": "not-loaded"}
                return {
                    ("GET", "/props"): {"error": "Unexpected endpoint or method. (GET /props)"},
                    ("GET", "/api/v0/models"): {"data": [other, entry]},
                }
            case "vLLM":
                model |= {"owned_by": "vllm", "max_model_len": self.n_ctx}
                return {("GET", "/v1/models"): models}
            case "OpenAI":
                return {("GET", "/v1/models"): models}

    def _tokens(self, text: str, beginning: bool = True) -> list[int]:
        return self.model.tokenize(text, beginning=beginning)

    def _generate(
        self, request: httpx.Request, prompt: str | list[int], most: int, body: Any
    ) -> httpx.Response:
        self.generations += 1
        if self.generations in self._faults:
            return self._faults[self.generations](request)
        if "messages" in body and (question := _QUESTION.search(str(prompt))):
            prompt = f"{prompt}\nAnswer: T{question[1]} is"  # a chat model begins by itself
            prompt = f"<|im_start|>user\n{prompt}"
        sent = self._tokens(prompt) if isinstance(prompt, str) else prompt
        n_ctx = self.n_ctx
        if self.kind == "Ollama":
            n_ctx = body["options"].get("num_ctx", n_ctx)
        if len(sent) >= n_ctx and self._beyond == "refuse":
            message = f"request ({len(sent)} tokens) exceeds the context size ({n_ctx} tokens)"
            return httpx.Response(400, json={"error": {"message": message, "n_ctx": n_ctx}})
        kept = self._cut(sent, n_ctx - 1)
        tokens, values = self._continue(kept, most, n_ctx, dict(body.get("logit_bias") or ()))
        counted = self._count(len(sent if self._beyond == "lie" else kept))
        return self._answer(tokens, values, counted, n_ctx, chat="messages" in body)

    def _cut(self, sent: list[int], most: int) -> list[int]:
        if len(sent) <= most:
            return sent
        half = most // 2
        return {
            "cut middle": sent[:half] + sent[len(sent) - (most - half) :],
            "cut end": sent[:most],
        }.get(self._beyond, sent[len(sent) - most :])

    def _continue(
        self, tokens: list[int], most: int, n_ctx: int, bias: Mapping[int, float]
    ) -> tuple[list[int], list[float]]:
        """The greedy continuation with its log-probabilities, to the end of the context unless
        that is shifted."""
        import numpy as np

        found: list[int] = []
        values: list[float] = []
        while len(found) < most and (self._shifts or len(tokens) + len(found) < n_ctx):
            logits = self.model.next_logits([*tokens, *found])
            token = int(next(iter(bias), logits.argmax()))
            value, _ = log_probabilities_of(logits[None], np.array([0]), np.array([token]))
            found.append(token)
            values.append(float(value[0]))
        return found, values

    def _answer(
        self, tokens: list[int], values: list[float], counted: int | None, n_ctx: int, *, chat: bool
    ) -> httpx.Response:
        said = self.model.detokenize(tokens)
        if self.kind == "llama-server":
            pieces: list[dict[str, Any]] = [
                {"content": "", "prompt_progress": {"total": counted, "processed": counted}}
            ]
            pieces += [
                {
                    "content": self.model.detokenize([token]),
                    "completion_probabilities": [{"id": token, "logprob": value}],
                }
                for token, value in zip(tokens, values, strict=True)
            ]
            end = {"content": "", "stop": True, "stop_type": "limit", "truncated": self._shifts}
            counts = {"tokens_evaluated": counted, "tokens_predicted": len(tokens)}
            lines = [f"data: {json.dumps(event)}\n\n" for event in [*pieces, {**end, **counts}]]
            return httpx.Response(200, text="".join(lines))
        if self.kind == "Ollama":
            message = {"message": {"content": said}} if chat else {"response": said}
            counts = {"prompt_eval_count": counted, "eval_count": len(tokens)}
            return httpx.Response(200, json={"done": True, **message, **counts})
        choice = {"message": {"content": said}} if chat else {"text": said}
        usage = {"prompt_tokens": counted, "completion_tokens": len(tokens)}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})


@contextmanager
def serving(server: StandIn, port: int = 0) -> Iterator[str]:
    """The address of a stand-in on loopback, for what opens its own connections."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def _pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            url = f"http://{self.headers['host']}{self.path}"
            headers = dict(self.headers.items())
            answer = server(httpx.Request(self.command, url, content=content, headers=headers))
            if answer.status_code == DROPPED:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            for name in ("content-type", "retry-after"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as listener:
        thread = Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()
