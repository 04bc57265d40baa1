"""Fail where a room has less than a share of its lines covered.

    python -m tools.line_coverage PERCENT FOLDER…

Reads the data that `coverage run` left. `coverage report` counts branches with the lines; here only
lines count. The lines that no test reaches are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from coverage import Coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("percent", type=float)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "coverage.json"
        data = Coverage()
        data.load()
        data.json_report(outfile=str(output))
        files: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))["files"]
    low = False
    for folder in options.folders:
        room = {path: of for path, of in files.items() if Path(path).is_relative_to(folder)}
        lines = sum(of["summary"]["num_statements"] for of in room.values())
        covered = sum(of["summary"]["covered_lines"] for of in room.values())
        share = 100 * covered / lines if lines else 0.0
        low |= share < options.percent
        print(f"{folder}: {share:.1f} % of {lines} lines (at least {options.percent:g} %)")
        for path, of in room.items():
            if of["missing_lines"]:
                print(f"  {path}: {', '.join(map(str, of['missing_lines']))}")
    sys.exit(low)


if __name__ == "__main__":
    main()
