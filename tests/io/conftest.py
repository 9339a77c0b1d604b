"""Fixtures of the I/O tests: connections in every way that a loop makes them."""

import pytest

import helpers


@pytest.fixture
def connect(request, loop, tmp_path, authority):
    """Connect a protocol to a Peer over each kind of endpoint; see helpers.Connector.

    `@pytest.mark.parametrize("connect", [...], indirect=True)` picks endpoints; `connect` alone runs on all.
    """
    connector = helpers.Connector(loop, request.param, tmp_path, authority)
    yield connector
    loop.run_until_complete(connector.finish())


def pytest_generate_tests(metafunc):
    chosen = [name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[0].split(",")]
    if "connect" in metafunc.fixturenames and "connect" not in chosen:
        metafunc.parametrize("connect", helpers.Connector.ENDPOINTS, indirect=True)
