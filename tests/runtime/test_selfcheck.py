"""The self-check on builds that behave otherwise: what is not read is said, and nothing crashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ggufrope._plain import decode
from ggufrope.runtime.selfcheck import SelfCheck, self_check
from ggufrope.runtime.states import KNOWN_STATES
from tests.runtime.stubs import NEEDS_COMPILER, stub

pytestmark = pytest.mark.llama

CHECK = """
import json, sys
from ggufrope._plain import encode
from ggufrope.runtime.engine import use_llama
from ggufrope.runtime.selfcheck import self_check
use_llama(sys.argv[1])
print(json.dumps(encode(self_check(), exact=True)))
"""
SILENT = "void llama_log_set(void *call, void *data) {}"
ABORTS = "#include <stdlib.h>\nint llama_decode(void *context, void *batch) { abort(); }"
REFUSES = "void *llama_init_from_model(void *model, void *parameters) { return 0; }"
NEXT_STATES = """
#include <stdio.h>
size_t llama_state_seq_save_file(void *context, const char *path, int sequence, void *t, size_t n) {
    unsigned head[] = {0x67677371, 5, 0};
    FILE *file = fopen(path, "wb");
    size_t written = fwrite(head, 1, sizeof head, file);
    fclose(file);
    return written;
}
"""


def check_of(folder: Path) -> SelfCheck:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, folder], capture_output=True, text=True, check=True
    )
    return decode(SelfCheck, json.loads(done.stdout))


def test_the_installed_llama_cpp_is_read_whole() -> None:
    check = self_check()
    assert (check.failure, check.unread) == (None, ())
    assert check.state_version in KNOWN_STATES
    assert check.rotation_right


@NEEDS_COMPILER
def test_a_build_whose_log_says_nothing_known(tmp_path: Path) -> None:
    check = check_of(stub(tmp_path / "silent", SILENT, linked=True))
    assert "the size of the cache" in check.unread
    assert "the hyperparameters" in check.unread
    assert check.state_version in KNOWN_STATES
    assert check.failure is not None
    assert "does not list the layers of its cache" in check.failure
    assert not check.rotation_right


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ABORTS, "it ended the process (SIGABRT)"),
        (REFUSES, "no context of 256 tokens"),
        (NEXT_STATES, "versions 3 and 4, and this llama.cpp writes version 5 of it"),
    ],
)
def test_a_build_that_fails_is_said_to(tmp_path: Path, source: str, words: str) -> None:
    check = check_of(stub(tmp_path / "failing", source, linked=True))
    assert check.failure is not None
    assert words in check.failure
    assert check.state_version is None
    assert not check.rotation_right


NEED = """
import sys
from ggufrope import ContextSettings, Model, use_llama
from ggufrope.runtime.memory import context_need, estimated_cache_bytes
use_llama(sys.argv[1])
with Model.open(sys.argv[2], gpu_layers=0) as model:
    settings = ContextSettings(n_ctx=1 << 20)
    (need,) = context_need(model, settings)
    print(need.device, need.size_bytes == estimated_cache_bytes(model, settings) > 1 << 29)
"""


@NEEDS_COMPILER
def test_a_cache_that_the_log_does_not_name_still_needs_memory(nano: Path, tmp_path: Path) -> None:
    folder = stub(tmp_path / "silent", SILENT, linked=True)
    words: list[str | Path] = [sys.executable, "-c", NEED, folder, nano]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "CPU True\n"
