"""The benchmarks run: each quick case on both loops with few operations, and the tables say what was measured.

Nothing here looks at how long anything took.
"""

import os
import threading

import pytest

from benchmarks import instructions, native, process
from benchmarks.suite import Suite
from benchmarks.workloads import MODULES
from fastloop._bench import compare, registry, report
from fastloop._bench.loops import LIBUV
from fastloop._bench.progress import Progress

FEW = 0.002
KNOWN = registry.load_workloads(MODULES)


def select(names=(), groups=(), tier=registry.DEFAULT):
    return registry.select(KNOWN.values(), names, groups, tier)


QUICK = [case.name for case in select(tier=registry.QUICK)]


@pytest.fixture(scope="session")
def programs():
    try:
        native.build()
    except SystemExit as error:
        pytest.skip(str(error))


def few(name):
    case = KNOWN[name]
    return case, max(1, int(case.n * FEW))


@pytest.mark.parametrize("loop", ["asyncio", "fastloop"])
@pytest.mark.parametrize("name", QUICK)
def test_case_gives_its_metrics(name, loop, programs):
    case, n = few(name)
    metrics = process.run(case, loop, n)
    assert set(case.metrics) <= set(metrics)
    assert metrics[case.metrics[0]] > 0


@pytest.mark.parametrize("name", ["tcp/protocol/1k/50", "unix/protocol/1k/50", "tls/protocol/1k/50",
                                  "udp/protocol/1k/50", "uvicorn/hello", "accept/tls/protocol"])  # fmt: skip
def test_bare_libuv_serves(name, programs):
    case, n = few(name)
    assert process.run(case, LIBUV, n)["cpu"] > 0


def test_every_module_is_listed():
    for package in ("benchmarks", "fastloop._bench"):
        folder = native.ROOT.joinpath(*package.split("."), "workloads")
        listed = {module.rpartition(".")[2] for module in MODULES if module.startswith(f"{package}.workloads.")}
        assert {path.stem for path in folder.glob("*.py")} == {*listed, "__init__"}


def test_selections_grow():
    sizes = [len(select(tier=tier)) for tier in (registry.QUICK, registry.DEFAULT, registry.FULL)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(KNOWN)


def test_patterns_choose_names_and_groups():
    assert [case.name for case in select(names=["call_soon/c*"])] == ["call_soon/chain"]
    assert {case.group for case in select(groups=["sync"])} == {"sync"}
    # A name chooses whatever its tier is, a group stays within the tier.
    assert [case.tier for case in select(names=["unix/buffered/1k/50"])] == [registry.FULL]
    assert select(groups=["echo udp"], tier=registry.QUICK)[0].name == "udp/protocol/1k/50"


def test_two_cases_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two cases are named call_soon/chain"):
        registry.case("call_soon/chain", group="scheduling", unit="callback", n=1)(len)


def failing_case(**options):
    """A case that no loop can do, because the worker does not know it."""
    return registry.Case(name="no such case", group="none", unit="operation", n=1, run=len, **options)


def test_what_a_loop_cannot_do_is_said():
    record = compare.measure(Suite(), failing_case(), 1, ["asyncio"], 2, Progress(2))
    assert record["loops"]["asyncio"] == {"samples": [], "cannot": "KeyError: 'no such case'"}
    assert "| KeyError |" in report.markdown(document(record))
    assert "- asyncio cannot do 1 of these: KeyError: 'no such case'" in report.markdown(document(record))


def test_load_refuses_a_wrong_echo(programs):
    case, n = few("tcp/protocol/1k/50")
    with process.listening("tcp") as (listener, address):
        listener.listen(case.load["connections"])
        shouting = threading.Thread(target=shout_back, args=[listener])
        shouting.start()
        with pytest.raises(process.CannotError, match="the echo differs from what was sent"):
            process.put_under_load(case, address, os.getpid(), n, is_warmed=True)
        shouting.join()


def shout_back(listener):
    """Answer the first client in capital letters."""
    client, _ = listener.accept()
    with client:
        client.sendall(client.recv(65536).upper())


def document(*results):
    return {"kind": "benchmarks", "machine": {"cpu": "slow"}, "results": list(results)}


def result(**loops):
    samples = {loop: {"samples": [{"wall": value} for value in values]} for loop, values in loops.items()}
    return {"case": "x", "group": "g", "unit": "call", "metrics": ["wall"], "n": 1, "loops": samples}


def test_table_has_medians_spreads_and_ratios_by_round():
    text = report.markdown(document(result(fastloop=[100, 200, 400], uvloop=[1000, 1000, 2000])), "uvloop")
    row = "| x (call) | wall | 200 (100..400) ns **5.00x** (5.00..10.00) | 1 (1..2) us |  |"
    assert row in text.splitlines()


@pytest.mark.parametrize("rival, verdict", [
    ([90, 90, 90], "**rloop 1.11x**"),
    ([90, 90, 110], "**about rloop 1.11x**"),
    ([110, 110, 110], ""),
])  # fmt: skip
def test_a_loss_is_marked(rival, verdict):
    assert report.verdict(result(fastloop=[100] * 3, uvloop=[300] * 3, rloop=rival), "wall") == verdict


def test_tables_replace_what_stands_between_the_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    report.save(path, document(result(uvloop=[1])))
    text = path.read_text()
    assert text.startswith("before\n<!-- benchmarks: begin -->\n- cpu: slow\n") and "old" not in text
    assert text.endswith("\n<!-- benchmarks: end -->\nafter\n")
    report.save(path, document(result(uvloop=[1])))
    assert path.read_text() == text


def test_instructions_are_a_difference(monkeypatch):
    monkeypatch.setattr(instructions, "count", lambda case, loop, n: 5_000_000 + 120 * n)
    assert instructions.per_operation(failing_case(), "asyncio", 1000) == {"instructions": 120}
