"""Which dialect a server speaks, found by asking it, and which of its models is meant.

The endpoints asked are those that only one kind of server has, the most particular first: KoboldCpp
and LM Studio have Ollama's or OpenAI's too. Asking changes nothing at the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ggufrope._plain import did_you_mean
from ggufrope.errors import RequestError
from ggufrope.server.client import ServerError
from ggufrope.server.dialect import (
    NO_LOG_PROBABILITIES,
    NO_REUSE,
    NO_TOKENS,
    Dialect,
    ServerInfo,
    items,
    number,
    part,
    text,
)
from ggufrope.server.llama_server import LlamaServer, props_of
from ggufrope.server.ollama import Ollama
from ggufrope.server.openai import LlamaCppPython, OpenAi, Vllm

if TYPE_CHECKING:
    from ggufrope.server.client import Client

_NAMES_SHOWN = 12
_LATEST = ":latest"
_UNRECOGNIZED = (
    "no known API: expected llama-server, Ollama, or a server with OpenAI's /v1/models; is the "
    "path of the address right?"
)


def connect(client: Client, name: str | None = None, *, num_ctx: int | None = None) -> Dialect:
    """Return the dialect of a server for its model of that name, or for its only one.

    Raises ServerError where none is recognized, RequestError where the model is not there, where
    there are several and none is named, and for `num_ctx` where it has no effect.
    """
    asked = _Asked(client)
    if "default_generation_settings" in (props := asked.object("/props")):
        found: Dialect = _llama_server(client, props, name)
    elif part(asked.object("/api/extra/version"), "result") == "KoboldCpp":
        found = _openai(client, partial(_kobold, client))
    elif isinstance(part(asked.object("/api/v0/models"), "data"), list):
        found = _openai(client, partial(_lm_studio, client, name))
    elif text(asked.object("/api/version").get("version")):
        models = _by("name", part(client.get("/api/tags"), "models"))
        names = [each.removesuffix(_LATEST) for each in models]
        return Ollama(client, _chosen(name and name.removesuffix(_LATEST), names), num_ctx)
    elif isinstance(part(asked.object("/v1/models"), "data"), list):
        found = _openai(client, partial(_listed, client, name))
    else:
        raise ServerError(asked.refusal or f"{client.address}: {_UNRECOGNIZED}")
    if num_ctx is not None:
        raise RequestError(
            f"`num_ctx` is for Ollama: {found.info.dialect} has the context it was started with"
        )
    return found


class _Asked:
    """Asks for objects, and remembers why there was none: a page in HTML, a key that is missing."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.refusal: str | None = None

    def object(self, path: str) -> dict[str, Any]:
        """Return the object at a path; an empty one where the server has nothing there.

        Raises ServerError where there is no server, or it refuses to say.
        """
        try:
            found = self._client.get(path)
        except ServerError as error:
            if error.status is None or error.status in (401, 403, 429, 503):
                raise
            if error.status not in (404, 405, 501):
                self.refusal = self.refusal or str(error)
            return {}
        return found if isinstance(found, dict) else {}


def _llama_server(client: Client, props: dict[str, Any], name: str | None) -> LlamaServer:
    if props.get("role") == "router":
        name = _chosen(name, list(_by("id", part(client.get("/v1/models"), "data"))))
        return LlamaServer(client, props_of(client, name), name)
    found = LlamaServer(client, props)
    if name is not None:
        known = [found.info.model, str(props.get("model_alias")), found.info.path or ""]
        if name not in known:
            raise _no_such_model(name, known[:1])
    return found


def _openai(client: Client, ask: Any) -> OpenAi:
    info: ServerInfo = ask()
    kind = {"llama-cpp-python": LlamaCppPython, "vLLM": Vllm}.get(info.dialect, OpenAi)
    return kind(client, info, ask)


def _kobold(client: Client) -> ServerInfo:
    model = text(part(client.get("/api/v1/model"), "result")) or "koboldcpp"
    return ServerInfo(
        dialect="KoboldCpp",
        model=model.removeprefix("koboldcpp/"),
        context_tokens=number(part(client.get("/api/extra/true_max_context_length"), "value")),
        build=text(part(client.get("/api/extra/version"), "version")),
        lacks=(NO_LOG_PROBABILITIES, NO_TOKENS),
    )


def _lm_studio(client: Client, name: str | None) -> ServerInfo:
    models = items(part(client.get("/api/v0/models"), "data"))
    language = [one for one in models if part(one, "type") in ("llm", "vlm", None)]
    loaded = [one for one in language if part(one, "state") == "loaded"]
    among = _by("id", language if name is not None else loaded or language)
    chosen = _chosen(name, list(among))
    entry = among[chosen]
    return ServerInfo(
        dialect="LM Studio",
        model=chosen,
        context_tokens=number(part(entry, "loaded_context_length")),
        trained_tokens=number(part(entry, "max_context_length")),
        lacks=(NO_LOG_PROBABILITIES, NO_TOKENS),
    )


def _listed(client: Client, name: str | None) -> ServerInfo:
    """Return what a server tells that has only OpenAI's list of models."""
    models = _by("id", part(client.get("/v1/models"), "data"))
    chosen = _chosen(name, list(models))
    entry = models[chosen]
    owner, context = entry.get("owned_by"), number(entry.get("max_model_len"))
    if owner == "vllm":
        return ServerInfo(
            dialect="vLLM", model=chosen, context_tokens=context, lacks=(NO_LOG_PROBABILITIES,)
        )
    if owner == "me" and "permissions" in entry:
        lacks = (NO_LOG_PROBABILITIES, "its context", NO_REUSE)
        return ServerInfo(dialect="llama-cpp-python", model=chosen, lacks=lacks)
    lacks = (NO_LOG_PROBABILITIES, NO_TOKENS, *(() if context else ("its context",)), NO_REUSE)
    return ServerInfo(
        dialect="OpenAI-compatible server", model=chosen, context_tokens=context, lacks=lacks
    )


def _by(key: str, models: Any) -> dict[str, dict[str, Any]]:
    """Return the models of a server's list by their names, without those that have none."""
    named = (one for one in items(models) if isinstance(part(one, key), str))
    return {one[key]: one for one in named}


def _chosen(name: str | None, names: Sequence[str]) -> str:
    """Return the name of the model that is meant. Raises RequestError, ServerError where there is
    none to mean."""
    if not names:
        raise ServerError("the server names no model")
    if name is not None:
        if name not in names:
            raise _no_such_model(name, names)
        return name
    if len(names) == 1:
        return names[0]
    raise RequestError(f"the server has {len(names)} models: name one of {_shown(names)}")


def _no_such_model(name: str, names: Sequence[str]) -> RequestError:
    near = did_you_mean(name, names)
    return RequestError(f"the server has no model {name!r}{near}; it has {_shown(names)}")


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
