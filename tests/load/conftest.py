"""What the load tests share."""

import os

import pytest


@pytest.fixture(scope="session")
def long_mode():
    """True when FASTLOOP_LONG=1 asks for the full durations."""
    return os.environ.get("FASTLOOP_LONG") == "1"
