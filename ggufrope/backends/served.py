"""Models at a server: found by their names, and taken as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufrope.backends.settings import SERVED_AS_IT_IS
from ggufrope.errors import RequestError

if TYPE_CHECKING:
    from httpx import BaseTransport

    from ggufrope.backends.settings import RuntimeSettings
    from ggufrope.container.ggml import KvTypes
    from ggufrope.lm import OpenContext
    from ggufrope.patching.request import ScalingRequest
    from ggufrope.server.model import ServerModel


def open_server(
    settings: RuntimeSettings,
    name: str | None = None,
    *,
    transport: BaseTransport | None = None,
) -> ServerModel:
    """Return the model of that name at the server of the settings, or its only one.

    `transport` takes the place of the network, for tests. Raises ServerError where it does not
    answer, RequestError where it has no such model, MissingDependencyError without httpx.
    """
    from ggufrope.server.address import Credentials, normal_address
    from ggufrope.server.client import TIMEOUT_SECONDS, Client
    from ggufrope.server.connect import connect
    from ggufrope.server.model import ServerModel

    client = Client(
        normal_address(settings.server or ""),
        credentials=Credentials.from_environment(),
        timeout_seconds=settings.timeout_seconds or TIMEOUT_SECONDS,
        transport=transport,
    )
    try:
        dialect = connect(client, name, num_ctx=settings.num_ctx)
        return ServerModel(client, dialect, lanes=settings.parallel)
    except BaseException:
        client.close()
        raise


class ServedModel:
    """A model at a server; an `OpenedModel`. It rotates as the server was started."""

    def __init__(self, model: ServerModel) -> None:
        self._model = model

    @property
    def model(self) -> ServerModel:
        """The model."""
        return self._model

    @property
    def details(self) -> dict[str, str]:
        """What the server tells, and what it cannot give."""
        info = self._model.info
        known = {
            "server": info.dialect,
            "server build": info.build,
            "server context": info.context_tokens,
            "prompts at once": self._model.lanes,
            "not given by the server": "; ".join(self._model.lacks),
        }
        return {name: str(value) for name, value in known.items() if value}

    def contexts(
        self, request: ScalingRequest, kv: KvTypes, *, largest: int, nudged: bool = False
    ) -> OpenContext:
        """Return a function that opens contexts. Raises RequestError for any change."""
        if nudged or not request.is_file:
            raise RequestError(SERVED_AS_IT_IS)
        return self._model.open

    def close(self) -> None:
        """Close the connections."""
        self._model.close()
