"""What all tests share: one thread a process, and specs that train in a moment."""

import pytest
import torch

from hdlib.runs import RunSpec

torch.set_num_threads(1)


@pytest.fixture
def tiny() -> RunSpec:
    """Logistic regression on the digits, 24 iterations."""
    return RunSpec(task="digits", method="sgd_hd", alpha0=0.01, beta=1e-3, epochs=2)
