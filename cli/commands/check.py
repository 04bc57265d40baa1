"""`ggufrope check`: many files at once, one line each, for scripts and CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OptionError
from ..options import JsonOption, LlamaLibOption, WholeOption, option, token_option
from ..proof import ProveOption, prepare_proof, proof_payload
from ..values import output_path, require_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rich.text import Text

    from ggufrope.container.remote import Place
    from ggufrope.patching.check import CheckReport, ConfigCheck, FileCheck
    from ggufrope.proof import Proof
    from ggufrope.rope.lint import Finding


_SERVER = "A running server"


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE...",
            help="Models, here or elsewhere, and folders: every .gguf file below one; none with "
            "--server.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A Hugging Face config.json: say key by key whether each file is what it says.",
        ),
    ] = None,
    sarif: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the findings as SARIF 2.1.0 (for code scanning).",
            parser=output_path("--sarif"),
        ),
    ] = None,
    md: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a Markdown summary.", parser=output_path("--md")),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write JUnit XML, one test case per file.",
            parser=output_path("--junit"),
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            metavar="CARD", help="Say whether each file is the one that this card speaks of."
        ),
    ] = None,
    prove: ProveOption = False,
    llama_lib: LlamaLibOption = None,
    whole: WholeOption = False,
    server: Annotated[
        str | None,
        option("--server", "Measure what this running server really serves.", "URL", _SERVER),
    ] = None,
    model: Annotated[
        str | None, option("--model", "Model of it; default: its only one.", "NAME", _SERVER)
    ] = None,
    ctx: Annotated[
        int | None,
        token_option("--ctx", "Context that you need; default: what the server tells.", _SERVER),
    ] = None,
    num_ctx: Annotated[
        int | None,
        token_option("--num-ctx", "Context that requests to an Ollama server ask for.", _SERVER),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check files and folders, one line per file; or what a server serves.

    Exit code 1: a file has an error, or a server serves less; 3: a file cannot be read.
    """
    if server is not None:
        if files or config or sarif or prove or card or md or junit or llama_lib or whole:
            raise OptionError("--server: give no FILE and no option for files with it")
        from ggufrope.backends.settings import RuntimeSettings

        from ..served import check_server
        from ..values import server_address

        settings = RuntimeSettings(server=server_address(server), num_ctx=num_ctx)
        check_server(settings, model, ctx, json=json)
        return
    if not files:
        raise OptionError("missing FILE, a model or a folder; or --server, an address")
    if model is not None or ctx is not None or num_ctx is not None:
        raise OptionError("--model, --ctx and --num-ctx are for --server")
    from ggufrope.patching.check import check

    from ..errors import BAD_FILE, CHECK_FAILED
    from ..output import emit_json
    from ..values import say_reading

    prepare_proof(prove, llama_lib)
    proofs: dict[Place, Proof] = {}
    examiners = [_prover(proofs)] if prove else []
    examiners += [] if card is None else [_card_reader(card)]
    report = check(
        *files,
        config=config,
        examine=lambda place: [found for each in examiners for found in each(place)],
        whole=whole,
    )
    for each in report.files:
        say_reading(each.place)
    written = {"--sarif": sarif, "--md": md, "--junit": junit}
    read = [file.place for file in report.files]
    require_apart(written, [each for each in (*read, config, card) if isinstance(each, Path)])
    _write(report, sarif=sarif, md=md, junit=junit)
    if json:
        emit_json(payload(report, proofs), *(each.place for each in report.files))
    else:
        show(report)
        if prove:
            _show_proofs(proofs)
    if not report.passed:
        raise typer.Exit(BAD_FILE if report.unreadable_only else CHECK_FAILED)


def _write(report: CheckReport, *, sarif: Path | None, md: Path | None, junit: Path | None) -> None:
    """Write the findings to the files that are wanted."""
    from ggufrope._files import write_whole

    if sarif is not None:
        from ggufrope.patching.sarif import sarif as to_sarif

        write_whole(sarif, to_sarif(report))
    if md is not None or junit is not None:
        from ggufrope.report.checks import to_junit, to_markdown

        for path, form in ((md, to_markdown), (junit, to_junit)):
            if path is not None:
                write_whole(path, form(report))


def _card_reader(card: Path) -> Callable[[Place], Iterable[Finding]]:
    """Return a function that compares a model with a card, for `check`."""
    from ggufrope.report.card import matches, read_card

    from ..progress import plain_lines

    cards = read_card(card)

    def findings(place: Place) -> Iterable[Finding]:
        with plain_lines(lambda: f"hashing {place}"):
            return (matches(cards, card.name, place),)

    return findings


def _prover(proofs: dict[Place, Proof]) -> Callable[[Place], Iterable[Finding]]:
    """Return a function that proves a model, for `check`; it adds each proof to `proofs`."""
    from ggufrope.container.remote import local
    from ggufrope.proof import prove

    def findings(place: Place) -> Iterable[Finding]:
        proofs[place] = prove(local(place))
        return proofs[place].findings

    return findings


def _show_proofs(proofs: Mapping[Place, Proof]) -> None:
    """Print how many models were proved, and by whom."""
    from ..output import console

    names = {f"{one.name} {one.version}" for proof in proofs.values() for one in proof.witnesses}
    passed = sum(proof.passed for proof in proofs.values())
    by = " and ".join(sorted(names)) or "nobody"
    console().print(f"Proved: {passed} of {len(proofs)} readable, by {by}.", soft_wrap=True)


def payload(report: CheckReport, proofs: Mapping[Place, Proof]) -> dict[str, Any]:
    """Return the JSON object of `check`."""
    return {
        "files": [
            {
                "file": str(file.place),
                "name": file.name,
                "readable": file.readable,
                "architecture": file.architecture,
                "context_length": file.context_length,
                "scaling": file.scaling,
                "worst": file.worst,
                "findings": file.findings,
                "config": file.config,
                "proof": proof_payload(proofs.get(file.place)),
            }
            for file in report.files
        ],
        "summary": {"files": len(report.files), **report.counts},
    }


def show(report: CheckReport) -> None:
    """Print one line per file, the comparison with the config below it, and the counts."""
    from ..output import console, one_line
    from ..tables import shown, shown_path

    out = console()
    names = [
        shown_path(file.place) if file.name == str(file.place) else shown(file.name)
        for file in report.files
    ]
    facts = [
        (
            one_line(file.architecture or "—", 24),
            "—" if file.context_length is None else str(file.context_length),
            one_line(file.scaling or "—", 48),
        )
        for file in report.files
    ]
    widths = [max(map(len, column)) for column in zip(*facts, strict=True)]
    width = max(map(len, names))
    for file, name, words in zip(report.files, names, facts, strict=True):
        line = f"{name:<{width}}  " + "  ".join(
            f"{word:<{size}}" for word, size in zip(words, widths, strict=True)
        )
        _print_line(_mark(file), line, _message(file))
        if file.config is not None:
            _show_config(file.config)
    out.print(_summary(report))


def _print_line(*parts: Text | str) -> None:
    """Print one line of output: cut to the width of a terminal, whole where it goes elsewhere."""
    from rich.text import Text

    from ..output import console

    out = console()
    texts = [Text(part) if isinstance(part, str) else part for part in parts if part]
    line = Text("  ").join(texts)
    line.rstrip()
    if not out.is_terminal:
        out.print(line, soft_wrap=True)
        return
    if line.cell_len > out.width and len(texts) > 2:  # the message has a line of its own
        line, message = Text("  ").join(texts[:-1]), Text("         ") + texts[-1]
        line.rstrip()
        out.print(line, no_wrap=True, overflow="ellipsis")
        line = message
    out.print(line, no_wrap=True, overflow="ellipsis")


def _mark(file: FileCheck) -> Text:
    from rich.text import Text

    from ..tables import SEVERITY_STYLES

    worst = None if file.worst is None else file.worst.severity
    return Text(f"{worst or 'ok':<7}", style="green" if worst is None else SEVERITY_STYLES[worst])


def _message(file: FileCheck) -> str:
    from ..output import one_line

    worst = file.worst
    if worst is None:
        return ""
    from ..errors import with_flags

    others = len(file.findings) - 1
    more = f" (and {others} more)" if others else ""
    return f"{worst.code}: {one_line(with_flags(worst.message), 400)}{more}"


def _show_config(config: ConfigCheck) -> None:
    from rich.text import Text

    from ..tables import shown

    for row in config.keys:
        found, wanted = shown(row.file), shown(row.config)
        if row.agrees:
            _print_line(f"    {shown(row.key)} {found}", Text("as the config says", style="green"))
        else:
            differs = "differs" if not config.agrees else "written otherwise, with the same effect"
            _print_line(
                f"    {shown(row.key)} {found}, config {wanted}",
                Text(differs, style="yellow" if config.agrees else "bold red"),
            )
    for note in config.notes:
        _print_line(f"    {shown(note)}")
    if config.command is not None:
        _print_line(f"    {config.command}")


def _summary(report: CheckReport) -> str:
    counts = report.counts
    numbers = [
        (len(report.files), "file"),
        (counts["error"], "error"),
        (counts["warning"], "warning"),
    ]
    files, *rest = (f"{count} {word}{'s' * (count != 1)}" for count, word in numbers)
    return f"{files}: {', '.join(rest)}"
