"""Needles through a real llama-server, and the same needles in this process, cell by cell.

    python -m benchmarks.servers SERVER [MODEL.gguf]

SERVER is a llama-server of the llama.cpp that the package describes (target `llama-server` of its
source distribution). It is started on loopback again and again: with a scaling as `export` prints
it and in a patched file, with a context that is too short, with and without context shift, with two
slots, with quantized caches. Through each, whole prompts are asked as in this process, and a few
answers are generated; the context that it serves is measured.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import RESULTS
from ggufrope import RunPlan, RuntimeSettings, run
from ggufrope.backends.opened import open_model
from ggufrope.backends.served import open_server
from ggufrope.container.ggml import KvTypes
from ggufrope.errors import BackendError
from ggufrope.evals.needle_prompts import NeedleGrid, NeedlePlan
from ggufrope.evals.results import CellResult
from ggufrope.patching.exporting import export_model
from ggufrope.patching.plan import apply, plan_patch
from ggufrope.patching.request import ScalingName, ScalingRequest
from ggufrope.rope.architectures import source
from ggufrope.server.served import Served, measure_server

PORT = 18978
ADDRESS = f"http://127.0.0.1:{PORT}"
SECONDS = 60
THREADS = 1
SCHEMES: tuple[ScalingName, ...] = ("linear", "ntk", "yarn")
DEPTHS, SAMPLES = 6, 2
GENERATED_PROMPTS, GENERATED_TOKENS = 6, 24
AS_IT_IS = ScalingRequest(scaling="file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to start the server, and what it has to equal: the model file in this process under a
    request, None where the server cannot serve the length."""

    name: str
    arguments: tuple[str, ...]
    tokens: int
    equals: tuple[Path, ScalingRequest] | None
    kv: str = "f16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case; `farthest` is the largest difference of a log-probability, in nat."""

    case: Case
    served: Served
    cells: tuple[CellResult, ...]
    recalled: int
    recalled_here: int | None = None
    same: int | None = None
    farthest: float | None = None
    generated: tuple[int, int] = field(default=(0, 0))

    @property
    def right(self) -> bool:
        """Whether every answer, and every generated text, is that of this process."""
        if self.case.equals is None:
            return all(cell.status == "error" for cell in self.cells)
        return self.same == len(self.cells) and self.generated[0] == self.generated[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", type=Path)
    parser.add_argument("model", type=Path, nargs="?", default=Path("fixtures/nano.gguf"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes = []
        for number, case in enumerate(cases(options.model, folder)):
            print(case.name, flush=True)
            outcomes.append(carried_out(options.server, case, folder / f"run-{number}"))
    path = RESULTS / "servers.md"
    path.write_text(page(options.model, outcomes, folder), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    if wrong := [outcome.case.name for outcome in outcomes if not outcome.right]:
        raise SystemExit(f"not as in this process: {', '.join(wrong)}")


def cases(model: Path, folder: Path) -> Iterator[Case]:
    """Yield every way to start the server."""
    file = ("-m", str(model))
    yield Case(
        name="as it is", arguments=(*file, "-c", "256"), tokens=256, equals=(model, AS_IT_IS)
    )
    yield Case(
        name="beyond its context, no flags",
        arguments=(*file, "-c", "1024"),
        tokens=1024,
        equals=None,
    )
    yield Case(
        name="beyond its context, the length overridden, no scaling",
        arguments=(*file, "-c", "512", "--override-kv", "llama.context_length=int:512"),
        tokens=512,
        equals=(model, AS_IT_IS),
    )
    for scheme in SCHEMES:
        request = ScalingRequest(scaling=scheme, target_context=1024)
        made = export_model(model, "llama-server", request=request)
        flags = tuple(shlex.split(made.text)[1:])
        yield Case(
            name=f"{scheme}, as exported", arguments=flags, tokens=1024, equals=(model, request)
        )
        copy = folder / f"{model.stem}-{scheme}.gguf"
        apply(plan_patch(model, request, output=copy))
        patched = ("-m", str(copy))
        yield Case(
            name=f"{scheme}, in a patched file",
            arguments=(*patched, "-c", "1024"),
            tokens=1024,
            equals=(copy, AS_IT_IS),
        )
    yield Case(
        name="yarn, in a patched file, -c smaller than asked",
        arguments=(*patched, "-c", "512"),
        tokens=1024,
        equals=None,
    )
    yield Case(
        name="the same with context shift",
        arguments=(*patched, "-c", "512", "--context-shift"),
        tokens=1024,
        equals=None,
    )
    yield Case(
        name="yarn, in a patched file, two slots",
        arguments=(*patched, "-c", "2048", "-np", "2"),
        tokens=1024,
        equals=(copy, AS_IT_IS),
    )
    for kv in ("q8_0", "q4_0"):
        yield Case(
            name=f"yarn, in a patched file, {kv} caches",
            arguments=(*patched, "-c", "1024", "-ctk", kv, "-ctv", kv, "-fa", "on"),
            tokens=1024,
            equals=(copy, AS_IT_IS),
            kv=kv,
        )


def carried_out(server: Path, case: Case, folder: Path) -> Outcome:
    """Run a case through the server, and in this process."""
    with started(server, case.arguments):
        settings = RuntimeSettings(server=ADDRESS)
        with closing(open_server(settings)) as opened:
            served = measure_server(opened, case.tokens)
            said = tuple(answers(opened, opened.open(case.tokens), case.tokens))
        cells = run(plan(case, (), settings), folder / "served").cells
    recalled = sum(cell.value("recall") == 1 for cell in cells)
    if case.equals is None:
        return Outcome(case=case, served=served, cells=cells, recalled=recalled)
    path, request = case.equals
    here = RuntimeSettings(threads=THREADS)
    local = run(plan(case, (str(path),), here, request), folder / "here").cells
    with closing(open_model(path, here)) as model:
        contexts = model.contexts(request, KvTypes.parse(case.kv), largest=case.tokens)
        with closing(contexts(case.tokens)) as context:
            texts = tuple(answers(model.model, context, case.tokens))
    pairs = list(zip(cells, local, strict=True))
    differences = [
        abs(a - b)
        for one, other in pairs
        if (a := one.value("log_probability")) is not None
        and (b := other.value("log_probability")) is not None
    ]
    return Outcome(
        case=case,
        served=served,
        cells=cells,
        recalled=recalled,
        recalled_here=sum(cell.value("recall") == 1 for cell in local),
        same=sum(one.value("recall") == other.value("recall") is not None for one, other in pairs),
        farthest=max(differences, default=None),
        generated=(sum(a == b for a, b in zip(said, texts, strict=True)), len(texts)),
    )


def plan(
    case: Case,
    models: tuple[str, ...],
    settings: RuntimeSettings,
    request: ScalingRequest = AS_IT_IS,
) -> RunPlan:
    """Return the needles of a case as a plan, in whole prompts."""
    return RunPlan(
        models=models,
        contexts=(case.tokens,),
        depths=DEPTHS,
        samples=SAMPLES,
        mode="whole",
        control=False,
        scalings=(request,),
        kv=("f16",) if settings.server else (case.kv,),
        runtime=settings,
    )


def answers(model, context, tokens: int) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """Yield what is generated after a few prompts, "" where they are refused."""
    depths = tuple(round(100 * i / (GENERATED_PROMPTS - 1), 3) for i in range(GENERATED_PROMPTS))
    needles = NeedlePlan(lengths=(tokens - GENERATED_TOKENS,), depths=depths, seed=7)
    grid = NeedleGrid(model, needles)
    for point in needles.points:
        question = grid.question(point)
        whole = question.whole(grid.haystack(point.context_tokens))
        context.rewind(0)
        context.extend(whole.trunk)
        try:
            said = context.generate(whole.branch.prompt, max_tokens=GENERATED_TOKENS)
        except BackendError:
            yield ""
        else:
            yield model.detokenize(said)


@contextmanager
def started(server: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Run the server inside the block."""
    command = [str(server), *arguments, "--host", "127.0.0.1", "--port", str(PORT)]
    command += ["-t", str(THREADS)]
    if "-np" not in arguments:
        command += ["-np", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                with closing(open_server(RuntimeSettings(server=ADDRESS))):
                    break
            except BackendError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def page(model: Path, outcomes: Sequence[Outcome], folder: Path) -> str:
    """Return the results as a page."""
    right = sum(outcome.right for outcome in outcomes)
    lines = [
        "# Needles through a real llama-server",
        "",
        (
            f"`python -m benchmarks.servers SERVER`: llama-server of {source().commit[:9]} "
            f"({source().package}), {model.name}, {DEPTHS * SAMPLES} whole prompts at the length "
            f"asked, and {GENERATED_PROMPTS} answers of {GENERATED_TOKENS} tokens. In {right} of "
            f"{len(outcomes)} cases every answer is that of this process, or the length is refused "
            "where it is not served."
        ),
        "",
        (
            "| started with | asked | serves (measured) | at the end of the context | recalled by "
            "the server | in this process | same answers | largest difference, nat | same texts |"
        ),
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in outcomes:
        served = one.served
        words = "all of it" if served.passed else f"{served.serves}, longer ones {served.behavior}"
        farthest = "–" if one.farthest is None else f"{one.farthest:.1g}"
        same = "–" if one.same is None else f"{one.same} of {len(one.cells)}"
        here = "–" if one.recalled_here is None else f"{one.recalled_here} of {len(one.cells)}"
        texts = "–" if one.case.equals is None else f"{one.generated[0]} of {one.generated[1]}"
        asked = sum(cell.status == "ok" for cell in one.cells)
        recalled = f"{one.recalled} of {asked}" if asked else "refused"
        row = (
            *(one.case.name, one.case.tokens, words, served.at_the_end or "–", recalled),
            *(here, same, farthest, texts),
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines += ["", "The arguments, in the same order:", ""]
    lines += [
        f"- `{shlex.join(one.case.arguments)}`".replace(f"{folder}/", "").replace(
            str(model), model.name
        )
        for one in outcomes
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
