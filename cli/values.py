"""Words of the command line as values of the library: numbers, sizes, times, and files."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ggufrope.container.remote import Place
    from ggufrope.container.strategies import Strategy


_MOST_DIGITS = 18
"""Of a whole number in an option: it fits in 64 bits."""


def model_path(name: str) -> Path:
    """Return the file of the model called `name`; wait for an edit of it, repair one that was
    interrupted."""
    from ggufrope.container.location import locate
    from ggufrope.container.shards import needs_recovery

    path = locate(name)
    if not needs_recovery(path):
        return path
    from ggufrope.container.reader import EDIT_SECONDS
    from ggufrope.container.recovery import recover

    repaired = recover(path, patience=EDIT_SECONDS)
    if repaired is not None:
        from ggufrope._format import safe

        from .output import stderr_console

        stderr_console().print(safe(repaired.message), style="yellow")
    return path


@contextmanager
def model_place(name: str, *, whole: bool) -> Iterator[Place]:
    """Find the model called `name`: its file, as `model_path` does, or on a server.

    How much was read from a server is said on stderr at the end.
    """
    from ggufrope.container.location import find

    place = find(name, whole=whole)
    yield model_path(name) if isinstance(place, Path) else place
    say_reading(place)


def say_reading(place: Place) -> None:
    """Say on stderr how much of a file on a server was read."""
    from ggufrope._format import byte_size, safe
    from ggufrope.container.remote import RemoteFile

    from .output import stderr_console

    if isinstance(place, RemoteFile) and place.size is not None:
        requests = f"{place.requests} request{'s' * (place.requests != 1)}"
        line = f"read {byte_size(place.bytes_read)} of {byte_size(place.size)} in {requests}"
        stderr_console().print(f"{safe(str(place))}: {line}", style="dim", soft_wrap=True)


def output_path(option: str) -> Callable[[str], Path]:
    """Return the parser of `option`, the name of a file to write.

    The parser raises OptionError for a folder's, and for `-`, by which others mean their output.
    """

    def parse(text: str) -> Path:
        if text.endswith(("/", os.sep)):
            raise OptionError(f"{option} {text}: a folder; name a file in it")
        if text == "-":
            raise OptionError(f"{option} -: name a file; ./- is one of that name")
        return Path(text)

    return parse


def require_apart(written: Mapping[str, Path | None], read: Iterable[Path]) -> None:
    """Raise OptionError where two options name one file, or one names a file that was read."""
    taken = {path.resolve(): "a file that is read" for path in read}
    for name, path in written.items():
        # What is no regular file, such as a terminal, takes one text after the other.
        if path is not None and (path.is_file() or not path.exists()):
            if other := taken.get(path.resolve()):
                raise OptionError(f"{name} {path}: {other} too; name another file to write")
            taken[path.resolve()] = f"the file of {name}"


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet; where that fails, none is left."""
    from ggufrope._files import storage, write_whole
    from ggufrope.errors import StorageError

    if path.exists():
        raise StorageError(f"{path} exists already: name a new file")
    with storage("write", path):
        path.open("xb").close()  # nobody else takes the name meanwhile
    try:
        write_whole(path, data)
    except BaseException:
        path.unlink()
        raise


def word(text: str, option: str, known: Sequence[str], *, other: str | None = None) -> str:
    """Return the known word that `text` is, in any case; OptionError names the nearest one.

    `other` is what the message says the option takes besides.
    """
    meant = {_folded(each): each for each in known}.get(_folded(text))
    if meant is None:
        from ggufrope._plain import did_you_mean

        expected = ", ".join(known) if other is None else f"{', '.join(known)}, or {other}"
        raise OptionError(f"{option} {_said(text)}: expected {expected}{did_you_mean(text, known)}")
    return meant


def words(text: str, option: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the known words in a list such as `yarn,ntk`."""
    return tuple(word(each, option, known) for each in text.split(","))


def cache_type(text: str, option: str) -> str:
    """Return a KV cache type, or a pair such as `q8_0/q4_0`, as the library writes it."""
    return "/".join(word(kind, option, kv_types()) for kind in text.split("/"))


def _said(text: str) -> str:
    """Return what a person gave as a message shows it, nothing as two quotes."""
    return text.strip() or "''"


def _folded(text: str) -> str:
    return text.strip().casefold().replace("_", "-")


def llama_lib(*named: str | None) -> str | None:
    """Return the first folder that is named, by an option or a plan, else by the variable that
    llama-cpp-python reads: so the record of a run has it."""
    return next(filter(None, (*named, os.environ.get("LLAMA_CPP_LIB_PATH"))), None)


def guards() -> tuple[str, ...]:
    """Return the names that --force takes."""
    from ggufrope.container.guards import GUARDS

    return GUARDS


def schemes() -> tuple[str, ...]:
    """Return the scaling schemes."""
    from ggufrope.patching.request import SCHEMES

    return SCHEMES


def forced(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the guards that --force names."""
    return tuple(word(name, "--force", guards()) for name in names or ())


def strategies() -> tuple[str, ...]:
    """Return the names that --strategy takes."""
    from ggufrope.container.strategies import Strategy

    return tuple(strategy.value for strategy in Strategy)


def tools() -> tuple[str, ...]:
    """Return the names of the tools that settings are exported for."""
    from ggufrope.rope.export import Tool

    return get_args(Tool)


def kv_types() -> tuple[str, ...]:
    """Return the KV cache types."""
    from ggufrope.container.ggml import CACHE_TYPES

    return tuple(CACHE_TYPES)


def completion(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what completes the last word of a list in the shell; `known` is not called before."""

    def complete(incomplete: str) -> list[str]:
        start = max(incomplete.rfind(","), incomplete.rfind("/")) + 1
        last = _folded(incomplete[start:])
        return [incomplete[:start] + each for each in known() if _folded(each).startswith(last)]

    return complete


def strategy_named(text: str | None) -> Strategy | None:
    """Return the store strategy called `text`; OptionError where there is none."""
    from ggufrope.container.strategies import Strategy

    return None if text is None else Strategy(word(text, "--strategy", strategies()))


def tokens(option: str) -> Callable[[str], int]:
    """Return the parser of `option`, a number of tokens: `4096`, or `4k`, `1M` by powers of 1024.

    The parser raises OptionError where the text is none.
    """

    def parse(text: str) -> int:
        number = text.strip().lower()
        scale = {"k": 1 << 10, "m": 1 << 20}.get(number[-1:], 1)
        whole, _, part = (number if scale == 1 else number[:-1]).partition(".")
        if whole.isdecimal() and (whole + part).isdecimal() and len(number) <= _MOST_DIGITS:
            unit: int = 10 ** len(part)
            count, rest = divmod(scale * int(whole + part), unit)
            if count and not rest:
                return count
        raise OptionError(f"{option} {_said(text)}: expected tokens such as 16384, 16k or 1M")

    return parse


def token_counts(text: str, option: str) -> tuple[int, ...]:
    """Return `4096,8k,16k` as numbers of tokens; OptionError names the word that is none."""
    return tuple(map(tokens(option), text.split(",")))


def share(option: str) -> Callable[[str], float]:
    """Return the parser of `option`, a share: `0.9` or `90%`. It raises OptionError."""

    def parse(text: str) -> float:
        number, percent, rest = text.strip().partition("%")
        try:
            if rest:
                raise ValueError(rest)
            return float(number) / (100 if percent else 1)
        except ValueError:
            raise OptionError(f"{option} {text}: expected a share such as 0.9 or 90%") from None

    return parse


def byte_count(option: str) -> Callable[[str], int]:
    """Return the parser of `option`, a size: `24GiB`, `512 MiB`, `8GB` or a number of bytes.

    The parser raises OptionError where the text is none.
    """
    units = {"": 1, "b": 1}
    for power, letter in enumerate("kmgt", start=1):
        units |= {letter: 1024**power, f"{letter}ib": 1024**power, f"{letter}b": 1000**power}

    def parse(text: str) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip().lower())
        if found is None or found[2] not in units:
            raise OptionError(f"{option} {text}: expected a size such as 24GiB or 512MiB")
        count = float(found[1]) * units[found[2]]
        if count >= 2**63:
            raise OptionError(f"{option} {text}: expected a size that a machine can have")
        return int(count)

    return parse


def seconds(text: str, option: str) -> float:
    """Return `90s`, `45m`, `1h 30m` or a plain number as seconds; OptionError where it is none."""
    pattern = r"(?:([\d.]+)h)? ?(?:([\d.]+)m)? ?(?:([\d.]+) ?s?)?"
    found = re.fullmatch(pattern, text.strip().lower())
    try:
        hours, minutes, rest = map(float, found.groups("0")) if found is not None else (0, 0, 0)
        count = 3600 * hours + 60 * minutes + rest
    except ValueError:
        count = 0.0
    if not 0 < count < 1e9:
        raise OptionError(f"{option} {text}: expected a time such as 90s, 45m or 1h 30m")
    return count


def experts(text: str) -> int | Literal["all"]:
    """Return `all` or a number of layers; OptionError for others."""
    if text.lower() == "all":
        return "all"
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise OptionError(f"--experts-on-cpu {text}: expected all or a number")
    return int(text)


def servers(text: str | None) -> tuple[str, ...]:
    """Return the addresses in a list such as `host-a:50052,host-b:50052`."""
    return () if text is None else tuple(each.strip() for each in text.split(","))


def server_address(text: str) -> str:
    """Return the address of a server; a user name and a password in it are kept for this process
    and its workers, and nowhere else."""
    from ggufrope.server.address import LOGIN_VARIABLE, normal_address, split_login

    address, login = split_login(text)
    if login is not None:
        os.environ[LOGIN_VARIABLE] = login
    return normal_address(address)


def layers(text: str) -> int | Literal["all", "auto"]:
    """Return `all`, `auto` (as many as fit) or a number of layers; OptionError for others."""
    if text.lower() in ("all", "auto"):
        return cast("Literal['all', 'auto']", text.lower())
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise OptionError(f"--gpu-layers {text}: expected all, auto or a number")
    return int(text)
