"""``python -m fastloop bench``: it measures, saves, draws, and says what it cannot do. Nothing here looks at times."""

import importlib.util
import json

import pytest

from fastloop._bench import loops, measures, report
from fastloop._bench.registry import load_workloads
from fastloop._bench.workloads import MODULES

SHORT = ["--rounds", "1", "--part", "0.001"]
# Others of the same process may have loaded the cases of the repository.
CASES = [name for name, case in load_workloads(MODULES).items() if case.run.__module__ in MODULES]
# Eager tasks are new in 3.12, and numpy is not everywhere.
CANNOT = {"create_task/eager"} | (set() if importlib.util.find_spec("numpy") else {"to_thread/numpy"})


def document(**samples):
    """Results of one case with these wall times."""
    measured = {loop: {"samples": [{"wall": value} for value in values]} for loop, values in samples.items()}
    result = {"case": "x", "group": "g", "unit": "call", "metrics": ["wall"], "n": 1, "loops": measured}
    return {"kind": "benchmarks", "machine": {"loops": "a, b", "python": "c", "cpu": "d"}, "results": [result]}


@pytest.mark.timeout(300, method="signal")
def test_every_case_runs_on_both_loops(programs, tmp_path):
    path = tmp_path / "results.json"
    result = programs.fast("bench", "--full", "--json", path, *SHORT, wait=280)
    assert result.status == 0, result.err
    results = json.loads(path.read_text())["results"]
    assert [each["case"] for each in results] == CASES
    cannot = {
        (each["case"], loop): outcome["cannot"]
        for each in results
        for loop, outcome in each["loops"].items()
        if "cannot" in outcome
    }
    assert {name for name, _ in cannot} <= CANNOT, cannot
    for each in results:
        for outcome in each["loops"].values():
            for sample in outcome["samples"]:
                assert set(each["metrics"]) <= set(sample)


def test_the_table(programs):
    result = programs.fast("bench", "--case", "call_soon/chain", "--loops", "asyncio,fastloop", *SHORT)
    assert (result.status, result.err) == (0, "call_soon/chain\n")
    lines = [line.split() for line in result.out.splitlines()]
    assert ["case", "metric", "for", "one", "asyncio", "fastloop", "gain"] in lines
    assert [line[:3] for line in lines if "wall" in line] == [["call_soon/chain", "wall", "callback"]]
    assert "fastloop against asyncio, first metric of 1 cases" in result.out


def test_a_loop_of_one_s_own(programs):
    programs.write("mine.py", "import asyncio\ndef make(): return asyncio.SelectorEventLoop()\n")
    result = programs.fast(
        "bench", "--case", "call_soon/chain", "--loops", "fastloop,mine:make", "--baseline", "mine:make", *SHORT,
        env={"PYTHONPATH": f"{programs.environment['PYTHONPATH']}:{programs.folder}"},
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "fastloop against mine:make" in result.out


def test_what_a_loop_cannot_do_is_said(programs):
    programs.write("mine.py", "def make(): raise OSError('no loop today')\n")
    result = programs.fast(
        "bench", "--case", "call_soon/chain", "--loops", "asyncio,mine:make", *SHORT,
        env={"PYTHONPATH": f"{programs.environment['PYTHONPATH']}:{programs.folder}"},
    )  # fmt: skip
    assert "- mine:make cannot do 1 of these: OSError: no loop today" in result.out


def test_list(programs):
    every, short = (programs.fast("bench", "--list", *more).out.splitlines() for more in (["--full"], []))
    assert [line.split()[1] for line in every] == CASES
    assert 10 < len(short) < len(every)
    chosen = programs.fast("bench", "--list", "--case", "call_*").out.splitlines()
    assert len(chosen) == sum(name.startswith("call_") for name in CASES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "nonsense"], "no case matches"),
        (["--loops", "nonsense"], "unknown loop nonsense"),
        (["--rounds", "0"], "at least 1 is needed"),
        (["--plot", "chart.txt"], "--plot writes .svg, .png, .pdf, not chart.txt"),
        (["--json", "no/such/folder/x.json"], "No such file"),
    ],
)
def test_nonsense(programs, arguments, message):
    result = programs.fast("bench", *arguments)
    assert result.status != 0 and message in result.err


def test_plot_without_matplotlib_says_how_to_get_it(programs):
    """With it: tests/ecosystem/test_bench_extra.py."""
    programs.write("sitecustomize.py", "import sys; sys.modules['matplotlib'] = None\n")
    path = f"{programs.folder}:{programs.environment['PYTHONPATH']}"
    result = programs.fast("bench", "--plot", "chart.svg", env={"PYTHONPATH": path})
    assert (result.status, result.err) == (1, "--plot needs matplotlib: python -m pip install matplotlib\n")


def test_terminal_table():
    made = document(asyncio=[1000, 2000, 3000], fastloop=[500, 1000, 1000])
    rows = [*report.terminal_rows(made["results"], ["asyncio", "fastloop"], "asyncio")]
    assert rows == [(["x", "wall", "call", "2 us ±50%", "1 us ±25%", "2.00x (2.00..3.00)"], ["green"])]
    assert [*report.summary(made["results"], "asyncio")] == [
        "fastloop against asyncio, first metric of 1 cases: better in every round of 1, worse in every round of 0, "
        "undecided in 0; geometric mean 2.00x"
    ]


def test_a_ratio_to_nothing_is_in_no_mean():
    """Such as to a timer that was not late at all; that it is a loss is shown."""
    made = document(asyncio=[0, 0], fastloop=[1, 0])
    assert [*report.summary(made["results"], "asyncio")] == []
    rows = [*report.terminal_rows(made["results"], ["asyncio", "fastloop"], "asyncio")]
    assert rows[0][0][3:] == ["0 ns", "0.5 ns ±100%", "0.00x"]


@pytest.mark.parametrize(("numbers", "colour"), [([90, 80], "green"), ([110, 120], "red"), ([90, 110], "")])
def test_a_colour_where_all_rounds_agree(numbers, colour):
    (result,) = document(asyncio=[100, 100], fastloop=numbers)["results"]
    assert report.judgement(result, "fastloop", "wall", "asyncio") == colour


def test_unknown_loops_are_told_from_modules():
    assert loops.find("json").module == "json"
    assert loops.find("json:loads").factory == "loads"
    with pytest.raises(KeyError):
        loops.find("no_such_module")


def test_memory_is_that_of_the_process():
    psutil = pytest.importorskip("psutil")
    assert measures.memory_bytes() == pytest.approx(psutil.Process().memory_full_info().uss, rel=0.1)
