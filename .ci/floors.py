"""Do imports go down the floors of the house, never in a circle? import-linter, by the contracts in pyproject.toml.

import-linter knows packages alone, and the top floor and the ground are single files. So it looks at a copy of all in
one package, ``house``, in which every import of ours has that name in front.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("editing", "film", "training", "colorizer")

files = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).glob("*.py"))]
ours = "|".join([*PACKAGES, *(path.stem for path in files if path.parent == ROOT)])
with tempfile.TemporaryDirectory() as folder:
    for path in files:
        copy = Path(folder, "house", path.relative_to(ROOT))
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        copy.write_text(re.sub(rf"^(\s*)(from|import) (?=({ours})\b)", r"\1\2 house.", text, flags=re.M), "utf-8")
    Path(folder, "house", "__init__.py").touch()
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache", "--config", ROOT / "pyproject.toml"], cwd=folder,
                          env={**os.environ, "PYTHONPATH": folder})
sys.exit(done.returncode)
