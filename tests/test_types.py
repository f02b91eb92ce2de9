"""The optimisers' types hold, as strictly as pyproject.toml asks."""

import subprocess
import sys
from pathlib import Path


def test_mypy_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
