"""A text for the tasks that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.test_perplexity import TEXT


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    """The path of a file with the text of the tests of perplexity."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT.content, encoding="utf-8")
    return str(path)
