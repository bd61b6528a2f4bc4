"""Every public signature is checked while the tests run: jaxtyping shapes under beartype."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

install_import_hook("holdfast", "beartype.beartype")
torch.set_num_threads(1)
# The suite says the same thing twice; `make explore` looks for counterexamples where it did not look before.
settings.register_profile(
    "holdfast", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("explore", settings.get_profile("holdfast"), derandomize=False, max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "holdfast"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Layers that a test makes have the same weights every time, whatever ran before in the process."""
    torch.manual_seed(0)


@pytest.fixture
def unannotated():
    """Annotations are not checked, as in a program of a user: what is refused then, the code itself refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
