"""How models are loaded and evaluated: what a run, a search and a script give a backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVED_AS_IT_IS = "a server scales as it was started: give no `scaling` and no `kv` with `server`"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSettings:
    """How models are loaded and evaluated. What is None is left to the runtime."""

    llama_lib: str | None = field(
        default=None,
        metadata={"help": "folder of another build of llama.cpp's libraries"},
    )
    gpu_layers: Literal["all", "auto"] | int = "all"
    devices: tuple[str, ...] = field(
        default=(),
        metadata={"help": "CUDA devices, one worker for each; none: one for all"},
    )
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] = ()
    experts_on_cpu: Literal["all"] | int = field(
        default=0, metadata={"help": "layers whose experts stay on the CPU, from the first"}
    )
    rpc: tuple[str, ...] = field(
        default=(),
        metadata={"help": "llama.cpp's RPC servers, HOST:PORT; GPUs before those of this machine"},
    )
    offload_kqv: bool = field(
        default=True, metadata={"help": "keep the K/V cache of a layer on the device of the layer"}
    )
    flash_attention: bool | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    micro_batch_tokens: int | None = None
    server: str | None = field(
        default=None, metadata={"help": "address of a running server; `models` are models of it"}
    )
    timeout_seconds: float | None = field(
        default=None, metadata={"help": "longest silence of a server; none: half an hour"}
    )
    parallel: int | None = field(
        default=None, metadata={"help": "prompts at once to a server; none: as it has slots"}
    )
    num_ctx: int | None = field(
        default=None, metadata={"help": "context that requests to an Ollama server ask for"}
    )

    def rpc_problems(self) -> Iterator[str]:
        """Yield what is wrong with `rpc`."""
        if self.rpc:
            from ggufrope.runtime.rpc import address_problems

            yield from address_problems(self.rpc)
            if self.server is not None:
                yield "`rpc` is for models in this process, and `server` has its own"
            if len(self.devices) > 1:
                yield "`rpc` is for one worker, a server has one client: give one of `devices`"
