"""A pytest plugin for checks that slow everything down: --patience N gives each test and child N times its time."""

import os

import pytest


def pytest_addoption(parser):
    parser.addoption("--patience", type=float, default=1, metavar="N", help="multiply the time limit of each test by N")


def pytest_configure(config):
    os.environ["FASTLOOP_PATIENCE"] = str(config.getoption("--patience"))


# After conftest.py, which gives every test a limit.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        limit = item.get_closest_marker("timeout")
        if limit is not None and limit.args:
            seconds = limit.args[0] * config.getoption("--patience")
            # The marker in front is the closest one.
            item.add_marker(pytest.mark.timeout(seconds, *limit.args[1:], **limit.kwargs), append=False)
