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


@pytest.fixture(params=["", "sockets", "tasks"], ids=["everything on", "without sockets", "without tasks"])
def disabled(request, monkeypatch):
    """What FASTLOOP_DISABLE switches off; the stock loop runs once."""
    monkeypatch.setenv("FASTLOOP_DISABLE", request.param)
    return request.param


def pytest_collection_modifyitems(config, items):
    twice = [
        item
        for item in items
        if (params := getattr(getattr(item, "callspec", None), "params", {})).get("disabled")
        and params.get("loop_name") == "stock"
    ]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]


def pytest_generate_tests(metafunc):
    chosen = [name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[0].split(",")]
    if "connect" in metafunc.fixturenames and "connect" not in chosen:
        metafunc.parametrize("connect", helpers.Connector.ENDPOINTS, indirect=True)
