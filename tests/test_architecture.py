"""Tests of the code structure (modules, layers, sizes) and of the documents (links, commands, the API example)."""

import ast
import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from drawn import draw_dataset, draw_shots, planes_in
from packaging.requirements import Requirement

from config import ColorConfig, GeneratorConfig, StudioConfig, TrainConfig
from fileio.images import read_image
from utils import UserError, read_flags

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
SCRIPTS = {"dataset_generator", "train", "test", "studio"}
LAYERS = [SCRIPTS, {"editing"}, {"film", "training"}, {"colorizer"}, {"networks"}, {"dataset"}, {"config"}, {"fileio"},
          {"utils"}]  # from top to bottom
PACKAGES = ("editing", "film", "training", "colorizer", "fileio")
MODULES = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
MAX_LINES = {ast.Module: 420, ast.ClassDef: 260, ast.FunctionDef: 60}
MAX_CONFIG_LINES = 480  # one line or two for each setting, without logic
THREAD_VARIABLES = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]  # environment variables that say how idle threads wait


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def layer_of(name):
    """Return the index in LAYERS of a module or package, None for third-party ones."""
    return next((i for i, layer in enumerate(LAYERS) if name.partition(".")[0] in layer), None)


def first_party_imports(path):
    """Yield the top-level names of the first-party modules and packages that a file imports."""
    for node in ast.walk(parse(path)):
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                 else [node.module] if isinstance(node, ast.ImportFrom) else [])
        yield from (name.partition(".")[0] for name in names if layer_of(name) is not None)


def test_the_top_level_has_only_the_documented_modules():
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS | {"dataset", "networks", "utils", "config"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_only_lower_layers(path):
    """import-linter checks the packages; this test includes the modules at the top level."""
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in first_party_imports(path):
        assert name == own or layer_of(name) > layer_of(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_classes_and_functions_are_short(path):
    limit = MAX_CONFIG_LINES if path.name == "config.py" else MAX_LINES[ast.Module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert node.end_lineno - node.lineno < MAX_LINES[type(node)], node.name


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_each_package_is_pinned_once_for_each_python(python):
    lines = [line.partition("#")[0].strip() for name in ("requirements.txt", "requirements-studio.txt",
                                                         "requirements-dev.txt")
             for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith("-r")]
    used = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    assert len(used) == len(set(used)) and set(used) >= {"numpy", "scipy", "scikit-image", "onnxruntime"}
    assert all(str(pin.specifier).startswith("==") for pin in pins)


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_have_a_target(document):
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
def test_commands_in_documents_have_valid_flags(document):
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
    names = {}
    exec(compile(example, "docs/API.md", "exec"), names)
    assert len(names["records"]) == 2 and names["records"][1].start_time == pytest.approx(0.75)
    source, result = planes_in("gray.mkv"), planes_in("colored.mkv")
    assert len(source) == len(result) == 15
    assert read_image("colored.png").shape == names["rgb"].shape
    loaded, predictor = names["Predictor"].load("better.pt"), names["predictor"]
    assert loaded.config == predictor.config and loaded.config.mem_size > 4
    for name, tensor in predictor.colorizer.state_dict().items():
        assert torch.equal(loaded.colorizer.state_dict()[name], tensor), name


@pytest.mark.parametrize("script", ["train", "test", "studio"])
@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}], ids=str)
def test_idle_threads_are_configured_before_torch_is_imported(script, own):
    """Variables that the user has set are not changed."""
    code = f"""
import os, sys
class Probe:
    def find_spec(self, name, *_):
        if name == "torch":
            print({{name: os.environ[name] for name in {THREAD_VARIABLES} if name in os.environ}})
            os._exit(0)
sys.meta_path.insert(0, Probe())
import {script}
"""
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES} | own
    process = subprocess.run([sys.executable, "-uc", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                             timeout=120)
    assert process.stdout.strip() == str(own or {"GOMP_SPINCOUNT": "1000"})


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_stats"),
                    reason="other C libraries have no arenas")
@pytest.mark.parametrize("own, arenas", [({}, 2), ({"MALLOC_ARENA_MAX": "4"}, 4)])
def test_threads_share_two_arenas_of_memory(own, arenas):
    """Without the limit, 8 threads that allocate memory have 9 arenas."""
    code = """
import ctypes, threading
import colorizer.threads
library, barrier = ctypes.CDLL(None), threading.Barrier(8)
def allocate():
    barrier.wait()
    for _ in range(1000):
        library.malloc(1000)
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.malloc_stats()
"""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | own
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                             timeout=120)
    assert process.returncode == 0 and process.stderr.count("Arena ") == arenas
