"""Check and complete a bill of materials: ``python -m tests.sbom FILE``.

The tool takes the package's own description from pyproject.toml, which names no version.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import vbfmt
from tests.conftest import ROOT


def base_dependencies() -> set[str]:
    """Return the packages that pyproject.toml requires without any extra."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = text.split("\ndependencies = [")[1].split("]")[0]
    return {name.lower() for name in re.findall(r'"([A-Za-z0-9_.-]+)', listed)}


def main() -> int:
    """Run the command (see the module's docstring)."""
    file = Path(sys.argv[1])
    found = json.loads(file.read_text("utf-8"))
    found["metadata"]["component"]["version"] = vbfmt.__version__
    names = {component["name"].lower() for component in found["components"]}
    missing = base_dependencies() - names
    if missing:
        print(f"not in {file}: {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{len(names)} packages besides vbfmt {vbfmt.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
