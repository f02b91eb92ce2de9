"""What the project is installed from agrees with itself, and what it commits is fit to be committed."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11.7", "3.12.4", "3.13.1", "3.14.0")

# in pieces, so that this file does not contain what it looks for
REGISTRIES = [
    a + b
    for a, b in [
        ("python", "hosted"),
        ("pypi", ".org"),
        ("pypi", ".python.org"),
        ("index", "-url"),
        ("index", "_url"),
        ("find", "-links"),
        ("trusted", "-host"),
        ("anaconda", ".org"),
        ("download.py", "torch.org"),
        ("registry.npm", "js"),
    ]
]


def direct_dependencies():
    """Return what pyproject.toml asks for, in all its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        asked += extra
    return [r for r in map(Requirement, asked) if r.name != project["name"]]


def pins():
    """Return the requirements of requirements.txt, each with its hashes."""
    joined = (ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]
    return [(Requirement(line.split(" --hash")[0].strip()), re.findall(r"--hash=(\S+)", line)) for line in lines]


def conda():
    """Return conda's own packages and pip's requirements of environment.yml."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (by_pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    return [entry for entry in listed if isinstance(entry, str)], by_pip


def version(requirements, name, python):
    """Return the one version that a list of pins gives a package on a Python, on Linux."""
    where = {"python_full_version": python, "python_version": python.rsplit(".", 1)[0], "sys_platform": "linux"}
    (pin,) = [
        r
        for r in requirements
        if canonicalize_name(r.name) == canonicalize_name(name) and (r.marker is None or r.marker.evaluate(where))
    ]
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("wanted", direct_dependencies(), ids=lambda r: r.name)
def test_a_direct_dependency_is_pinned_as_it_is_asked_for(wanted, python):
    assert wanted.specifier.contains(version([pin for pin, _ in pins()], wanted.name, python))


@pytest.mark.parametrize("python", PYTHONS)
def test_conda_users_get_the_same_versions(python):
    ours = [pin for pin, _ in pins()]
    theirs = [Requirement(line) for line in conda()[1] if not line.startswith("-")]
    names = {canonicalize_name(r.name) for r in theirs}
    assert names == {canonicalize_name(r.name) for r in direct_dependencies()}
    assert {n: version(theirs, n, python) for n in names} == {n: version(ours, n, python) for n in names}


def test_conda_users_get_a_python_that_the_project_takes_and_the_project_itself():
    own, by_pip = conda()
    assert [line for line in by_pip if line.startswith("-")] == ["--editable ."]
    (python,) = [Requirement(entry) for entry in own if entry.startswith("python ")]
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert lowest in str(python.specifier)
    assert all(python.specifier.contains(tried) for tried in PYTHONS)
    assert "pip" in own


def test_every_requirement_carries_its_hashes():
    listed = pins()
    assert len(listed) > 100
    assert [str(r) for r, hashes in listed if not hashes] == []
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for _, hashes in listed for h in hashes)


@pytest.fixture(scope="module")
def files():
    """The files that git tracks or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files here: {error}")
    paths = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert ROOT / "pyproject.toml" in paths
    return paths


def test_no_file_names_a_package_registry(files):
    pattern = re.compile("|".join(map(re.escape, REGISTRIES)).encode(), re.IGNORECASE)
    found = {str(path.relative_to(ROOT)): pattern.findall(path.read_bytes()) for path in files}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_no_file_is_large_and_all_records_stay_small_enough_to_travel(files):
    assert [str(path.relative_to(ROOT)) for path in files if path.stat().st_size > 5e6] == []
    assert sum(path.stat().st_size for path in files if path.suffix == ".parquet") < 30e6


def test_cleaning_leaves_what_took_long(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = ("_build/gpu/results/run.parquet", "_build/runs/mine.ipynb", "book/guide.md", "results/run.parquet")
    made = ("_build/html/index.html", "_build/.doctrees/x", "book/page.ipynb", "hdlib/__pycache__/x", ".mypy_cache/x")
    for name in (*kept, *made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=False, capture_output=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *kept}


def test_notebooks_are_markdown_alone(files):
    assert [str(path.relative_to(ROOT)) for path in files if path.suffix == ".ipynb"] == []
