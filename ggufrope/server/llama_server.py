"""llama-server: tokens in, tokens and log-probabilities out, prefixes reused, a slot per lane.

Written against llama.cpp's tools/server at commit 0c1e570 (README.md there): `/props`, `/tokenize`,
`/detokenize`, `/completion`.
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
    items,
    number,
    part,
    text,
    token_list,
)

if TYPE_CHECKING:
    from ggufrope.server.client import Client, Json

_FORCE = 1e4
"""A bias of logits that decides which token is generated."""
_GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "seed": 0}
"""Whatever penalties the server was started with, they are no part of these samplers."""
_DEFAULT_TEMPLATE = "{%- for message in messages -%}\n  {{- '<|im_start|>' + message.role + '\n'"
"""How the template begins that llama.cpp takes where a file has none."""


class LlamaServer:
    """The API of llama-server, for the model `name` where it is a router of several."""

    tokenizes = True
    takes_tokens = True
    chats = False

    def __init__(self, client: Client, props: Json, name: str | None = None) -> None:
        self._client = client
        self._name = name
        self.info = self._read(props)

    def ask_again(self) -> ServerInfo:
        """Return what the server tells now."""
        return self._read(props_of(self._client, self._name))

    def _read(self, props: Json) -> ServerInfo:
        entry = self._entry()
        template = text(props.get("chat_template"), 1 << 20)
        tokens = {name: text(props.get(name)) for name in ("bos_token", "eos_token")}
        return ServerInfo(
            dialect="llama-server",
            model=self._name or _label(entry, props),
            context_tokens=number(part(props, "default_generation_settings", "n_ctx")),
            trained_tokens=number(part(entry, "meta", "n_ctx_train")),
            slots=max(1, number(props.get("total_slots")) or 1),
            build=text(props.get("build_info")),
            path=text(props.get("model_path"), 4096),
            file_size=number(part(entry, "meta", "size")),
            chat_template=(
                None if template is None or template.startswith(_DEFAULT_TEMPLATE) else template
            ),
            special_tokens=tuple((name, found) for name, found in tokens.items() if found),
            lacks=("the types of the K and V cache", "flash attention", "the RoPE flags"),
        )

    def _entry(self) -> Any:
        """Return what the list of models says of this one; None where there is no such list."""
        try:
            models = part(self._client.get("/v1/models"), "data")
        except ServerError:
            return None
        mine = (one for one in items(models) if part(one, "id") == self._name)
        return next(mine, part(models, 0))

    def _named(self, **body: Any) -> dict[str, Any]:
        return body if self._name is None else {"model": self._name, **body}

    def tokenize(self, text: str, *, beginning: bool, special: bool) -> list[int]:
        """Return the tokens of a text."""
        body = self._named(content=text, add_special=beginning, parse_special=special)
        return token_list(self._client.post("/tokenize", body), "/tokenize")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        answer = self._client.post("/detokenize", self._named(tokens=list(tokens)))
        return str(part(answer, "content") or "")

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
        body = self._named(
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            n_predict=max_tokens,
            n_probs=1,
            return_tokens=True,
            cache_prompt=True,
            id_slot=lane % self.info.slots,
            stream=True,
            return_progress=True,
            **_GREEDY,
        )
        if forced is not None:
            body["logit_bias"] = [[forced, _FORCE]]

        def tell(event: Json) -> None:
            done = number(part(event, "prompt_progress", "processed"))
            if on_tokens is not None and done is not None:
                on_tokens(done)

        events = self._client.stream("/completion", body, tell)
        if not events or not events[-1].get("stop"):
            raise ServerError(f"{self._client.address}/completion: the stream ended early")
        return self._answer(events)

    def chat(self, words: str, *, max_tokens: int) -> Answer:
        """Raise ServerError: the template is known, and prompts are tokens."""
        raise ServerError("llama-server is asked in the template that it tells")

    def _answer(self, events: Sequence[Json]) -> Answer:
        end = events[-1]
        pieces = [event for event in events if "prompt_progress" not in event]
        found: list[Any] = []
        for event in pieces:
            found += items(part(event, "completion_probabilities"))
        if end.get("stop_type") == "eos":
            found = found[:-1]
        tokens = [number(part(one, "id")) for one in found]
        values = [part(one, "logprob") for one in found]
        prompt, generated = (
            number(end.get(name)) for name in ("tokens_evaluated", "tokens_predicted")
        )
        most = self.info.context_tokens
        # It says "truncated" also where the answer ended at the end of the context, all of it seen.
        cut = bool(end.get("truncated")) and most is not None
        cut = cut and (prompt or 0) + (generated or 0) > (most or 0)
        return Answer(
            text="".join(str(event.get("content") or "") for event in pieces),
            tokens=tuple(token for token in tokens if token is not None),
            log_probabilities=tuple(
                float(value)
                for value in values
                if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 48)
            ),
            prompt_tokens=prompt,
            generated_tokens=generated,
            cut=cut,
        )


def props_of(client: Client, name: str | None) -> Any:
    """Return `/props`, of one model where the server has several. Raises ServerError."""
    return client.get("/props") if name is None else client.get("/props", model=name)


def _label(entry: Any, props: Json) -> str:
    """Return the alias of the model, else the name of its file: its path is nobody's business."""
    path = text(props.get("model_path"), 4096) or ""
    alias = text(part(entry, "id")) or text(props.get("model_alias"))
    if alias is not None and alias != path:
        return alias
    return path.replace("\\", "/").rpartition("/")[2].removesuffix(".gguf") or "model"
