"""Which keys and tensors each llama.cpp architecture reads, and what its graph does with them.

A table describes one llama.cpp: `tools/architectures.py` generates it from the source. Tables of
two come with ggufrope, a folder of the user may have more. In force is the table that was named
(`use_table`, or the variable GGUFROPE_ARCHITECTURES); else the one of the installed llama.cpp; else
that of the llama.cpp that ggufrope was tested with.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ggufrope._files import read_bytes, read_json
from ggufrope.errors import FileError, RequestError
from ggufrope.rope.keys import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VARIABLE = "GGUFROPE_ARCHITECTURES"
"""Names the table in force, or a folder of tables that stands for the user's own."""

RopeType: TypeAlias = Literal["none", "norm", "neox", "mrope", "imrope", "unknown"]
"""How dimensions pair: norm (2j, 2j+1), neox (j, j+n_rot/2); mrope and imrope pair as neox."""
Role: TypeAlias = Literal[
    "decoder",
    "encoder",
    "encoder-decoder",
    "draft",
    "diffusion",
    "vocoder",
    "projector",
    "classifier",
]
"""What comes out: the next token (decoder), or something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow:
    """Which layers of an architecture use a sliding window, and what RoPE it gives them.

    pattern: the period where the file declares none; None means that the file has to.
    dense_first: whether the global layer is the first of each period; otherwise it is the last.
    when: the files with such layers: all, those with a window, all but those with a window of 0, or
        those of 64 layers.
    base, scale: what these layers start from: the context's values, the file's own (which no
        runtime flag changes), or plain ones.
    reads_base: whether `rope.freq_base_swa` replaces the base.
    yarn: whether YaRN's blend and the attention factors apply to these layers.
    """

    pattern: int | None
    dense_first: bool = False
    when: Literal["always", "window", "unless-zero", "64-layers"] = "always"
    base: Literal["context", "file", "10000"]
    scale: Literal["context", "file", "1"]
    reads_base: bool = False
    yarn: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture as llama.cpp loads and runs it.

    known: whether the table has it; if not, these are the rules that all architectures share.
    role: what llama.cpp's graph of it does with tokens.
    rope: the rope type; with `mrope_by_sections`, mrope where the file has rope sections.
    full_head: whether it runs only if the rotary dimensions are the whole head.
    global_rot_divisor: its global layers rotate the declared dimensions divided by this.
    reads: RopeMetadata fields it reads in addition to those that every architecture reads.
    settings_act: whether its graph uses any setting; if not, it rotates with base 10000.
    magnitude: whether the attention factor of the keys acts: it may be cancelled by the graph, or
        undone by a norm after the rotation (in llama4 not for models of 128 experts).
    scores_by_factor: whether attention scores are multiplied by a function of the scaling factor,
        whatever the scaling type, as in deepseek2.cpp.
    temperature: where the floor of its attention temperature comes from, if it has one; "fixed" is
        8192 tokens, on layers that do not rotate.
    compressed: whether its layers of a compress ratio above 0 turn at a base of their own, and the
        others are plain sliding-window layers.
    beta_fast: its default of YaRN's beta_fast.
    log_multiplier_unit, mscale_pair: how yarn_log_multiplier becomes YaRN's mscales.
    tensors: the factor tensors it can load; with `tensors_by_type`, long and short only if the
        scaling type is longrope and rope_freqs only if it is not.
    factors_on: the layers whose rotation its graph divides by the factors.
    sliding: its sliding-window layers, if it has any.
    dense_rotate: whether its leading dense layers rotate although `no_rope` names them.
    no_rope: the layers it does not rotate: first or last of each `step` (without `step_always`,
        only where there are sliding layers), those that a pattern in the file names, or all, except
        in fine-tuned models or in models of 32 layers.
    recurrent: which layers have a recurrent state in place of attention.
    caveat: what a prediction of its rotation does not cover.
    """

    name: str
    known: bool = True
    rope: RopeType
    role: Role = "decoder"
    mrope_by_sections: bool = False
    full_head: bool = False
    global_rot_divisor: int = 1
    reads: tuple[
        Literal[
            "yarn_ext_factor",
            "yarn_attn_factor",
            "yarn_beta_fast",
            "yarn_beta_slow",
            "yarn_log_multiplier",
            "alpha",
        ],
        ...,
    ] = ()
    settings_act: bool = True
    magnitude: Literal["acts", "cancelled", "normalized", "normalized-unless-128-experts"] = "acts"
    scores_by_factor: bool = False
    temperature: Literal["none", "original-context", "temperature-length", "fixed"] = "none"
    compressed: bool = False
    beta_fast: float = 32.0
    log_multiplier_unit: float = 1.0
    mscale_pair: bool = False
    tensors: tuple[
        Literal["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"], ...
    ] = ()
    tensors_by_type: bool = False
    factors_on: Literal["all", "global", "none"] = "none"
    sliding: SlidingWindow | None = None
    no_rope: Literal[
        "none", "global", "last", "first", "pattern", "unless-finetuned", "unless-32-layers"
    ] = "none"
    dense_rotate: bool = False
    step: int = 0
    step_always: bool = False
    recurrent: Literal["none", "no-kv-heads", "interval", "all"] = "none"
    caveat: str | None = None

    def __post_init__(self) -> None:
        stepped = self.no_rope in ("first", "last") or self.recurrent == "interval"
        if self.step < (1 if stepped else 0):
            raise RequestError(f"step {self.step}: expected a number of layers, 1 or more")
        if self.global_rot_divisor < 1:
            raise RequestError(f"global_rot_divisor {self.global_rot_divisor}: expected 1 or more")
        for field in ("beta_fast", "log_multiplier_unit"):
            if not 0 < getattr(self, field) < float("inf"):
                raise RequestError(f"{field} {getattr(self, field):g}: expected a number above 0")

    @property
    def loads_factors(self) -> bool:
        """Whether a factor tensor in a file of this architecture has any effect."""
        return bool(self.tensors) and self.factors_on != "none"

    def loads(self, tensor: str, scaling_type: str) -> bool:
        """Return whether `tensor` loads in a file of `scaling_type`. Where it does not, llama.cpp
        refuses the file. One that the table does not have is taken to load what its files have."""
        if not self.known:
            return True
        if tensor not in self.tensors:
            return False
        if not self.tensors_by_type:
            return True
        return (tensor == ROPE_FREQS) == (scaling_type != "longrope")

    @property
    def no_factors(self) -> str:
        """Why no factor tensor is written into a file of an architecture without `loads_factors`,
        in words."""
        if self.known:
            return f"llama.cpp loads no factor tensors for {self.name}"
        return f"it is not known whether llama.cpp loads factor tensors for {self.name}"

    @property
    def has_long_short_factors(self) -> bool:
        """Whether it chooses between long and short factors by the length of the context."""
        return self.loads_factors and {ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT} <= set(self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a table was generated from: a commit or tag of llama.cpp, and its version of ggml."""

    commit: str
    package: str
    ggml: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """One table: `entries` are fields of Architecture by name, as in the file at `path`.

    `reason` says why it is in force.
    """

    source: Source
    path: Path
    reason: str
    entries: Mapping[str, Any]

    def entry(self, name: str) -> Architecture:
        """Return the entry of `name`. Raises FileError where it makes no sense."""
        fields = self.entries[name]
        if self.path in _SHIPPED:  # checked by the tests, which saves 15 ms
            return _as_written(name, **fields)
        from ggufrope._plain import decode

        plain = {"name": name, **fields} if isinstance(fields, dict) else fields
        try:
            return decode(Architecture, plain)
        except RequestError as error:
            raise FileError(f"{self.path}: the entry of {name!r}: {error}; {_AGAIN}") from None


def architecture(name: str) -> Architecture:
    """Return the entry of `name` (`general.architecture`) in the table in force; where it has none,
    the rules that all architectures share."""
    return _architecture(current_table(), name)


def architectures() -> Mapping[str, Architecture]:
    """Return every architecture of the table in force, by name."""
    return {name: architecture(name) for name in current_table().entries}


def source() -> Source:
    """Return the llama.cpp version that the table in force describes."""
    return current_table().source


def current_table() -> Table:
    """Return the table in force. Raises FileError where its file is no such table."""
    return _table(os.environ.get(VARIABLE, ""), os.environ.get(_LIBRARY_VARIABLE, ""))


@cache
def _architecture(table: Table, name: str) -> Architecture:
    if name in table.entries:
        return table.entry(name)
    return Architecture(
        name=name, known=False, rope="unknown", factors_on="all", caveat=_SHARED_RULES
    )


@cache
def _table(named: str, library: str) -> Table:
    """Return the table for what the two variables say."""
    if named and not Path(named).is_dir():
        return _read(Path(named), "that was named")
    found = _installed(library)
    if found is not None:
        commit, ggml = found
        for path in _tables():
            if _is_of(path, commit):
                return _read(path, f"made from the installed llama.cpp, {commit}")
        for each in map(_read, _SHIPPED):
            if each.source.ggml == ggml:
                return _read(each.path, f"of the same version as the installed one, ggml {ggml}")
    return _read(_SHIPPED[0], "of the llama.cpp that ggufrope was tested with")


def use_table(name: str | os.PathLike[str] | None) -> None:
    """Put a table in force, in this process and those that it starts: a file, a folder of tables,
    or a commit of which there is one. None goes back to the table of the installed llama.cpp.

    Raises FileError where there is no such table, or an entry of it makes no sense.
    """
    before = os.environ.pop(VARIABLE, None)
    if name is not None:
        os.environ[VARIABLE] = str(_find(os.fspath(name)).absolute())
    _table.cache_clear()
    try:
        for each in current_table().entries:
            current_table().entry(each)
    except FileError:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
        raise


def tables_with(name: str) -> Iterator[Source]:
    """Yield the sources of the tables at hand that have the architecture `name`."""
    for path in _tables():
        found = _read(path)
        if name in found.entries:
            yield found.source


def user_folder() -> Path:
    """Return the folder of the user's tables, each named for its commit, as in 0c1e570.json."""
    named = os.environ.get(VARIABLE, "")
    if named and Path(named).is_dir():
        return Path(named)
    if sys.platform == "win32":
        config = os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming"
    elif sys.platform == "darwin":
        config = Path.home() / "Library" / "Application Support"
    else:
        config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "ggufrope" / "architectures"


_SHIPPED = tuple(
    Path(__file__).with_name(f"architectures-{commit}.json") for commit in ("0c1e570", "b11434")
)
"""The one that ggufrope was tested with, then the newest."""
_AGAIN = "make the table again with the tools/architectures.py of this version of ggufrope"
_SHARED_RULES = (
    "not in the table: only the rules that all architectures share are applied; `ggufrope probe` "
    "measures what each layer does"
)
_LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"
"""Where llama-cpp-python, and `--llama-lib` of ours, look for another library."""
_MOST_BYTES = 1 << 24
_VERSIONS = re.compile(rb"\0(\d+\.\d+\.\d+)\0+([\w.+-]{1,60}?)(?:-dirty)?\0")
"""What ggml_version and ggml_commit return (ggml/src/ggml.c), one after the other in the library; a
build from a source package calls its commit unknown, or as whoever built it said."""


def _as_written(
    name: str,
    *,
    sliding: dict[str, Any] | None = None,
    reads: Sequence[Any] = (),
    tensors: Sequence[Any] = (),
    **fields: Any,
) -> Architecture:
    window = None if sliding is None else SlidingWindow(**sliding)
    return Architecture(
        name=name, sliding=window, reads=tuple(reads), tensors=tuple(tensors), **fields
    )


def _installed(folder: str) -> tuple[str, str] | None:
    """Return the commit and ggml's version of the llama.cpp in `folder`, else of the one that is
    installed, read from its file: to load it takes longer than a prediction."""
    if not folder:
        package = find_spec("llama_cpp")
        if package is None or package.origin is None:
            return None
        folder = str(Path(package.origin).with_name("lib"))
    for path in sorted(Path(folder).glob("*ggml-base*")):
        try:
            found = _VERSIONS.search(read_bytes(path))
        except FileError:
            continue
        if found is not None:
            return found[2].decode(), found[1].decode()
    return None


def _tables() -> tuple[Path, ...]:
    """Return the files of all tables at hand, the user's first."""
    return (*sorted(user_folder().glob("*.json")), *_SHIPPED)


def _is_of(path: Path, commit: str) -> bool:
    """Return whether a table is named for `commit`; either may be shortened."""
    name = _named_for(path)
    return min(len(name), len(commit)) >= 6 and (name.startswith(commit) or commit.startswith(name))


def _named_for(path: Path) -> str:
    return path.stem.removeprefix("architectures-")


def _find(name: str) -> Path:
    """Return the table that a person means by `name`."""
    if Path(name).is_dir() and not any(Path(name).glob("*.json")):
        raise FileError(f"{name}: no table in this folder, as COMMIT.json; {_AGAIN}")
    if Path(name).exists():
        return Path(name)
    paths = _tables()
    for path in paths:
        if _is_of(path, name):
            return path
    known = dict.fromkeys(_named_for(path) for path in paths)
    raise FileError(f"{name}: no such file, and no table of that commit ({', '.join(known)})")


def _read(path: Path, reason: str = "") -> Table:
    try:
        plain = read_json(path, most=_MOST_BYTES)
        known = isinstance(plain, dict) and isinstance(plain.get("architectures"), dict)
        if not known or not plain["architectures"]:
            raise RequestError(
                f'{path}: no table of architectures: expected "source" and "architectures"'
            )
        if path in _SHIPPED:
            source = Source(**plain["source"])
        else:
            from ggufrope._plain import decode

            source = decode(Source, plain.get("source"), where=f"{path}: source")
    except RequestError as error:
        raise FileError(f"{error}; {_AGAIN}") from None
    return Table(source=source, path=path, reason=reason, entries=plain["architectures"])
