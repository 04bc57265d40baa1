"""What is installed is what is in the folders."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the oldest supported Python
    tomllib = pytest.importorskip("tomli", reason="TOML is read with tomli before Python 3.11")


def test_package_list_matches_the_folders(root: Path) -> None:
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(init.parent.relative_to(root).parts).replace("cli", "ggufrope_cli", 1)
        if init.is_relative_to(root / "cli")
        else ".".join(init.parent.relative_to(root).parts)
        for top in ("ggufrope", "cli")
        for init in (root / top).rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == found


def test_wheel_works_in_a_clean_environment(root: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(root)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        str(path.relative_to(root)).replace("cli/", "ggufrope_cli/", 1)
        if path.is_relative_to(root / "cli")
        else str(path.relative_to(root))
        for top in ("ggufrope", "cli")
        for path in (root / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names

    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import ggufrope_cli.app as app; print(app.__file__)\n"
        "app.main(['--version'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    module, version = result.stdout.splitlines()
    assert Path(module).is_relative_to(site)
    assert version.startswith("ggufrope ")


def test_importing_ggufrope_is_cheap() -> None:
    script = "import sys, ggufrope; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"numpy", "gguf", "rich", "typer", "llama_cpp"} & set(loaded)
