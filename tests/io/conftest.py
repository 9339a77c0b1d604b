"""Fixtures of the I/O tests: connections in every way that a loop makes them."""

import os

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


@pytest.fixture(params=["native", "python"])
def path(request, monkeypatch):
    """Which way the bytes of TLS go on fastloop; `loop` is made after this. The stock loop runs once."""
    others = set(os.environ.get("FASTLOOP_DISABLE", "").split(",")) - {"", "tls"}
    monkeypatch.setenv("FASTLOOP_DISABLE", ",".join(others | {"tls"} if request.param == "python" else others))
    return request.param


def pytest_collection_modifyitems(config, items):
    twice = [
        item
        for item in items
        if (params := getattr(getattr(item, "callspec", None), "params", {})).get("loop_name") == "stock"
        and (params.get("disabled") or params.get("path") == "python")
    ]
    config.hook.pytest_deselected(items=twice)
    items[:] = [item for item in items if item not in twice]


def pytest_generate_tests(metafunc):
    chosen = [name for mark in metafunc.definition.iter_markers("parametrize") for name in mark.args[0].split(",")]
    if "connect" in metafunc.fixturenames and "connect" not in chosen:
        metafunc.parametrize("connect", helpers.Connector.ENDPOINTS, indirect=True)
