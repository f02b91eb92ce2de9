"""A forked kernel is as any other, but for the time that it takes to start."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from jupyter_client import AsyncKernelManager
from nbformat.v4 import new_code_cell, new_notebook
from processes import alive

from hdlib.report import notebooks
from hdlib.report.kernels import ForkedKernelManager

if sys.platform != "linux":
    pytest.skip("kernels are forked on Linux alone", allow_module_level=True)

PARAMETERS = new_code_cell("n = 1", metadata={"tags": ["parameters"]})
WHAT_IT_IS = """
import hashlib, os, signal, sys
import matplotlib.pyplot as plt

environment = sorted(item for item in os.environ.items() if not item[0].startswith("JPY_"))
print(hashlib.sha256(repr(environment).encode()).hexdigest(), os.environ.get("OF_THIS_MOMENT"))
print(os.getcwd(), __name__, sys.executable, os.getsid(0) == os.getpid())
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
print(plt.get_backend(), plt.rcParams["figure.dpi"])
plt.plot([0, n]);
"""
WHAT_IS_IMPORTED = "import sys\nprint(['torch' in sys.modules, 'hdlib.report.figures' in sys.modules])"
SLEEPS = "import os, time\nopen('kernel', 'w').write(str(os.getpid()))\ntime.sleep(600)"

PROGRAM = """
from pathlib import Path

from hdlib.report import notebooks
from hdlib.report.kernels import ForkedKernelManager

if __name__ == "__main__":
    here = Path()
    notebooks.execute(here / "code.ipynb", here / "out.ipynb", {}, here, kernels=ForkedKernelManager)
"""


def notebook(folder, code):
    nbformat.write(new_notebook(cells=[PARAMETERS, new_code_cell(code)]), folder / "code.ipynb")
    return folder / "code.ipynb"


def shown(source, kernels, n):
    """Execute a notebook, and return what its last cell shows."""
    output = source.with_name("out.ipynb")
    notebooks.execute(source, output, {"n": n}, source.parent, kernels=kernels)
    outputs = nbformat.read(output, as_version=4).cells[-1].outputs
    return [out.get("text") or sorted(out.data) for out in outputs]


def test_a_forked_kernel_has_what_one_of_its_own_has(tmp_path, monkeypatch):
    source = notebook(tmp_path, WHAT_IT_IS)
    shown(source, ForkedKernelManager, 1)  # what they are forked from is there
    monkeypatch.setenv("OF_THIS_MOMENT", "at this moment")
    own, forked = (shown(source, kernels, 2) for kernels in (AsyncKernelManager, ForkedKernelManager))
    assert "at this moment" in own[0] and own[-1] == ["image/png", "text/plain"]
    assert forked == own


def test_it_need_not_import_torch_and_reads_hdlib_itself(tmp_path):
    source = notebook(tmp_path, WHAT_IS_IMPORTED)
    assert shown(source, AsyncKernelManager, 1) == ["[False, False]\n"]
    assert shown(source, ForkedKernelManager, 1) == ["[True, False]\n"]


def test_it_ends_with_the_process_that_asked_for_it(tmp_path):
    notebook(tmp_path, SLEEPS)
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "kernel").exists() or not (tmp_path / "kernel").read_text():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    kernel = psutil.Process(int((tmp_path / "kernel").read_text()))
    assert alive([kernel])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while alive([kernel]):
        assert time.monotonic() < until
        time.sleep(0.1)
