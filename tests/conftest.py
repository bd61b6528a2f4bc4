"""Every public signature is checked while the tests run: jaxtyping shapes under beartype."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

install_import_hook("holdfast", "beartype.beartype")
torch.set_num_threads(1)
settings.register_profile("holdfast", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")
