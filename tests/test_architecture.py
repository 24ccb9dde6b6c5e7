"""The house stays in order: what lies at the top, how long functions are, and that what the documents say is true."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn import draw_dataset, draw_shots, planes_in

from config import ColorConfig, GeneratorConfig, StudioConfig, TrainConfig
from fileio.images import read_image
from utils import UserError, read_flags

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
LONGEST = 60  # lines of a function
VARIABLES = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]  # which tell how threads wait


def test_the_scripts_can_be_seen():
    names = {path.name for path in ROOT.glob("*.py")}
    assert {"dataset_generator.py", "dataset.py", "networks.py", "train.py", "test.py", "utils.py"} <= names
    assert len(names) <= 8


def test_no_function_is_long():
    rooms = (ROOT / "editing", ROOT / "film", ROOT / "training", ROOT / "colorizer")
    for path in (*ROOT.glob("*.py"), *(path for room in rooms for path in room.glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST, f"{path.name}: {node.name}"


def test_the_readme_is_a_page():
    assert (ROOT / "README.md").stat().st_size <= 8000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", target.read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_have_flags_that_there_are(document):
    """Every call of a script in a document is one that the script takes."""
    settings = {"dataset_generator": GeneratorConfig, "train": TrainConfig, "test": ColorConfig, "studio": StudioConfig}
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for script, rest in re.findall(r"(?<![\w/])(dataset_generator|train|test|studio)\.py((?: +[^\s`|#]+)*)", text):
        words = [word for word in rest.replace("...", "").split() if word != "->"]
        try:
            read_flags(settings[script], words if words[:1] and words[0].startswith("--") else [], script)
        except UserError as error:
            pytest.fail(f"{document.name}: {script}.py{rest}: {error}")


def test_the_example_of_the_api_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
    example, = re.findall(r"```python\n(.*?)```", text, re.S)
    shutil.move(draw_dataset(tmp_path / "drawn", train=3, val=0, test=0), tmp_path / "dataset")
    draw_shots(tmp_path / "gray.mkv", [(60, 9), (200, 6)])
    monkeypatch.chdir(tmp_path)
    seen = {}
    exec(compile(example, "docs/API.md", "exec"), seen)
    assert len(seen["records"]) == 2 and seen["records"][1].start_time == pytest.approx(0.75)
    source, result = planes_in("gray.mkv"), planes_in("colored.mkv")
    assert len(source) == len(result) == 15
    assert read_image("colored.png").shape == seen["rgb"].shape
    again = seen["Predictor"].load("better.pt")
    assert again.config == seen["predictor"].config and again.config.mem_size > 4
    for name, tensor in seen["predictor"].colorizer.state_dict().items():
        assert torch.equal(again.colorizer.state_dict()[name], tensor), name


@pytest.mark.parametrize("script", ["train", "test", "studio"])
@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=str)
def test_threads_are_told_to_sleep_before_torch_is_imported(script, own):
    code = f"""
import os, sys
class Probe:
    def find_spec(self, name, *_):
        if name == "torch":
            print({{name: os.environ[name] for name in {VARIABLES} if name in os.environ}})
            os._exit(0)
sys.meta_path.insert(0, Probe())
import {script}
"""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | own
    told = subprocess.run([sys.executable, "-uc", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=120)
    assert told.stdout.strip() == str(own or {"GOMP_SPINCOUNT": "1000"})
