"""What tests of doors share."""

import jaxtyping
import pytest


@pytest.fixture
def as_users_run_it():
    """Without the checks of annotations, which stop what does not fit before it reaches the door."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
