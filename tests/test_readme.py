"""What the README and the book tell a user to type works."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hdlib.report import readme

ROOT = Path(__file__).parent.parent


def test_the_readmes_training_loop_runs():
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [alpha] = ast.literal_eval(done.stdout)
    assert 0 < alpha < 10 and alpha != 0.01  # it has moved, and stays sensible: the data are noise
    body = code.split("import SGDHD\n")[1].strip()
    assert len(body.splitlines()) <= 10


def test_the_readmes_figure_is_drawn_from_the_records():
    shown, drawn = (ROOT / readme.PLACE).read_text(), readme.drawn(ROOT / "results")
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("", shown) == number.sub("", drawn)
    ours, theirs = (np.array(number.findall(svg), dtype=float) for svg in (shown, drawn))
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_the_sweep_from_python_runs(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "book" / "rerun.md").read_text(), re.DOTALL)
    (tmp_path / "own.py").write_text(code)
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + 4  # a median for each width and rate
    assert len(list((tmp_path / "my-results").iterdir())) == 1


@pytest.mark.parametrize("page", ["README.md", "book/rerun.md"])
def test_the_make_targets_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", text, re.MULTILINE)) | set(re.findall(r"`make (\w+)`", text))
    assert named and named <= targets
