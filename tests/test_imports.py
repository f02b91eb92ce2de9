"""Imports go one way, and each part of the package imports no more than it says that it needs."""

import ast
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # of the parts of hdlib, each with the extra that it needs
    "optim": (set(), None),
    "tasks": (set(), "experiments"),
    "runs": ({"optim", "tasks"}, "experiments"),
    "report": ({"optim", "tasks", "runs"}, "book"),
    "cli": ({"optim", "tasks", "runs", "report"}, "book"),
}
ON_GPUS = {"triton"}  # comes with torch where there can be one


def imported(part):
    """Return the modules that a part of hdlib imports, anywhere in its files, by their full names."""
    path = ROOT / "hdlib" / part
    names = set()
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} has a relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def declared(extra):
    """Return the packages that pyproject.toml asks for with an extra, those of the extras that it includes too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = set()
    for wanted in map(Requirement, project["dependencies"] + project["optional-dependencies"].get(extra, [])):
        own = wanted.name == project["name"]
        found |= set().union(*map(declared, wanted.extras)) if own else {canonicalize_name(wanted.name)}
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part):
    parts = {name.split(".")[1] for name in imported(part) if name.startswith("hdlib.")} & MAY_IMPORT.keys()
    assert parts <= {part} | MAY_IMPORT[part][0]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_what_is_imported_is_declared(part):
    tops = {name.split(".")[0] for name in imported(part)} - sys.stdlib_module_names - ON_GPUS - {"hdlib"}
    packages = packages_distributions()
    needed = {canonicalize_name(packages[top][0]) for top in tops}
    assert needed and needed <= declared(MAY_IMPORT[part][1])


@pytest.mark.parametrize("command", [["--help"], ["run", str(ROOT / "notebooks" / "tuning.md"), "--parameters"]])
def test_the_command_imports_torch_with_the_first_optimiser_alone(command):
    """In a fresh process, since others have imported it."""
    code = f"""
import sys
from hdlib.__main__ import main
sys.argv = ["hdlib", *{command}]
try:
    main()
except SystemExit as ended:
    print([name for name in ("torch", "pandas", "seaborn") if name in sys.modules], ended.code)
import hdlib
print(hdlib.optim.AdamHD is hdlib.AdamHD, "AdamHD" in dir(hdlib), "torch" in sys.modules, hasattr(hdlib, "Adam"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-2:] == ["[] 0", "True True True False"]


def test_every_part_is_known():
    inside = (ROOT / "hdlib").iterdir()
    parts = {path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts == MAY_IMPORT.keys() | {"__init__", "__main__"}


def test_a_command_that_lacks_a_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "hdlib.cli", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("hdlib", run_name="__main__")
    assert ended.value.code == (
        "hdlib lacks typer: install it with its extra, pip install '.[book]' in the project's folder."
    )
