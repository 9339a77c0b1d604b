"""What `import fastloop` brings along, and that it leaves the GIL off where it is off."""

import subprocess
import sys
import sysconfig

import pytest

pytestmark = pytest.mark.fastloop_only("importing fastloop itself")

#: Modules of the standard library that asyncio itself has not imported on some version.
STANDARD = {
    "_queue",
    "_signal",
    "_socket",
    "ast",
    "_ast",
    "dis",
    "gc",
    "inspect",
    "opcode",
    "_opcode",
    "queue",
    "selectors",
}


def python(source):
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout


def test_importing_needs_no_other_package_and_little_of_the_library():
    new = python(
        "import asyncio, sys; before = set(sys.modules); import fastloop; print(*sorted(set(sys.modules) - before))"
    ).split()
    assert "fastloop" in new
    foreign = [name for name in new if name.partition(".")[0] != "fastloop"]
    assert [name for name in foreign if name.partition(".")[0] not in sys.stdlib_module_names] == []
    assert set(foreign) <= STANDARD


@pytest.mark.left_out(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has a GIL")
def test_importing_does_not_switch_the_gil_on():
    assert python("import sys, fastloop; fastloop.Loop().close(); print(sys._is_gil_enabled())") == "False\n"
