"""Build the wheel and the source distribution, and use each in a clean environment.

    python -m tools.distributions [FOLDER]

Both stay in FOLDER, default `dist`. Each is installed with what it depends on, and shows, patches
and compares the nano model. The source distribution must have everything that its wheel needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "fixtures" / "nano.gguf"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    _call(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    for path in sorted(folder.iterdir()):
        with tempfile.TemporaryDirectory() as name:
            use(path, Path(name))
        print(f"{path.name}: installed and used in a clean environment")


def use(distribution: Path, folder: Path) -> None:
    """Install a distribution in a new environment in `folder`, and run it there."""
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    _call(scripts / "python", "-m", "pip", "install", "--quiet", distribution)
    out = folder / "long.gguf"
    ggufrope = scripts / "ggufrope"
    _call(ggufrope, "--version", cwd=folder)
    _call(ggufrope, "inspect", NANO, cwd=folder)
    _call(
        *(ggufrope, "patch", NANO, "-o", out, "--scaling", "yarn", "--target-ctx", "1024"),
        cwd=folder,
    )
    _call(ggufrope, "verify", NANO, out, cwd=folder)


def _call(*words: str | Path, cwd: Path = ROOT) -> None:
    subprocess.run([str(word) for word in words], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
