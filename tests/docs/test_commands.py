"""What the documents show runs as written.

Each shell and Python block of the pages below is run, unless a comment before it says otherwise. Comments that stand before a block, one a line:

    <!-- not run: REASON -->        what cannot be run here
    <!-- file: NAME -->             it is a file that later blocks of the section use; before the first section, all
    <!-- prints: TEXT -->           its output has this text
    <!-- exits: STATUS -->          its exit status, if that is not 0
    <!-- serves: URL TEXT -->       it serves until it is stopped, and answers at the URL with a text that has TEXT
    <!-- needs: MODULE, ... -->     it is skipped where one of these cannot be imported
    <!-- python: 3.12 -->           it is left out on older versions of Python

The blocks of a section (##) run one after the other in a folder of their own, in which examples/, benchmarks/ and tests/
are those of the source tree. Port 8000 is replaced by a free one.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fastloop
import helpers
from fastloop import switches

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("examples", "benchmarks", "tests")
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
OWN = [ROOT / name / "README.md" for name in ("examples", "benchmarks", "tests/conformance", "src")]
PAGES = [*FRONT, *OWN, *sorted((ROOT / "docs").glob("*.md"))]
RUN = ("shell", "python")
MARKS = ("not run", "file", "prints", "exits", "serves", "needs", "python")
# Set by `make ecosystem`, which installs all of it.
STRICT = os.environ.get("FASTLOOP_REQUIRE_ALL", "").lower() in ("1", "true")
SECONDS = 100


@dataclass
class Block:
    """A fenced block: its language, text and marks, and the line in which it begins."""

    language: str
    text: str
    line: int
    marks: dict = field(default_factory=dict)


def sections(text):
    """The blocks of a page by the title of their section; those before the first section belong to each of them."""
    found, title = {"": []}, ""
    marks, block = {}, None
    for number, line in enumerate(text.splitlines(), 1):
        if block is not None:
            if line.rstrip() == "```":
                found[title].append(block)
                marks, block = {}, None
            else:
                block.text += line + "\n"
        elif line.startswith("```"):
            block = Block(line[3:].strip(), "", number, marks)
        elif mark := re.fullmatch(r"<!-- ([a-z ]+): (.*) -->", line):
            if mark[1] in MARKS:
                marks[mark[1]] = mark[2]
        elif line.startswith("## "):
            title = line[3:]
            found[title] = []
        elif line.strip():
            marks = {}
    assert block is None, f"a block that begins in line {block.line} does not end"
    return found


def runnable():
    """(page, title, blocks) of each section that has a block to run."""
    for page in PAGES:
        if not page.exists():
            continue
        found = sections(page.read_text())
        common = found.pop("")
        if any(is_run(block) for block in common):
            yield pytest.param(common, id=f"{name_of(page)}-top")
        for title, blocks in found.items():
            if any(is_run(block) for block in blocks):
                files = [block for block in common if "file" in block.marks]
                yield pytest.param([*files, *blocks], id=f"{name_of(page)}-{title}")


def name_of(page):
    return str(page.relative_to(ROOT)).removeprefix("docs/")


def is_run(block):
    return block.language in RUN and not {"not run", "file"} & block.marks.keys() and is_for_this_python(block)


def is_for_this_python(block):
    return sys.version_info >= tuple(map(int, block.marks.get("python", "3.11").split(".")))


class Place:
    """A folder in which the blocks of a section run."""

    def __init__(self, folder):
        self.folder = folder
        for name in FOLDERS:
            (folder / name).symlink_to(ROOT / name)
        packages = str(Path(fastloop.__file__).resolve().parents[1])
        path = filter(None, [packages, os.environ.get("PYTHONPATH", "")])
        programs = [os.path.dirname(sys.executable), os.environ["PATH"]]
        self.environment = {name: value for name, value in os.environ.items() if name != "FASTLOOP_DISABLE"}
        self.environment |= {"PATH": os.pathsep.join(programs), "PYTHONPATH": os.pathsep.join(path)}
        self.environment["PYTHONDONTWRITEBYTECODE"] = "1"
        self.server = None

    def run(self, block):
        """Run a block as its marks say."""
        if "not run" in block.marks or not is_for_this_python(block):
            return
        text = block.text.replace("8000", str(self.port()))
        if "file" in block.marks:
            path = self.folder / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif block.language in RUN:
            name = f"block-{block.line}{'.py' if block.language == 'python' else '.sh'}"
            program = self.folder / name
            program.write_text(text)
            words = [sys.executable, name] if block.language == "python" else ["bash", "-euo", "pipefail", name]
            if "serves" in block.marks:
                self.serve(words, *block.marks["serves"].split(maxsplit=1))
            else:
                self.run_to_the_end(words, block)

    def port(self):
        if not hasattr(self, "free_port"):
            self.free_port = helpers.free_port()
        return self.free_port

    def start(self, words):
        return subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip

    def run_to_the_end(self, words, block):
        with self.start(words) as process:
            try:
                output, _ = process.communicate(timeout=SECONDS)
            finally:
                end(process)
        assert process.returncode == int(block.marks.get("exits", 0)), f"line {block.line}:\n{output}"
        assert block.marks.get("prints", "") in output, f"line {block.line}:\n{output}"

    def serve(self, words, url, expected):
        url = url.replace("8000", str(self.port()))
        with self.start(words) as process:
            try:
                answer = ask(url, process)
            finally:
                # The whole group, which is the server with its workers.
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    output, _ = process.communicate(timeout=20)
                finally:
                    end(process)
        assert answer is not None and expected in answer, f"{answer}\n{output}"
        assert "Traceback" not in output, output


def ask(url, process):
    """What the server answers, once it is there; None if it never does."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + SECONDS / 2
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(url, timeout=10) as response:
                return response.read().decode()
        except OSError:
            time.sleep(0.05)
    return None


def end(process):
    """Kill what is left of a process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def is_installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # A part of what is not there.
        return False


def missing(block):
    """Why a block cannot be run here, or None."""
    names = [name.strip() for name in block.marks.get("needs", "").split(",")]
    absent = [name for name in names if name and not is_installed(name)]
    return f"{', '.join(absent)} is not installed" if absent else None


@pytest.mark.timeout(300, method="signal")
@pytest.mark.parametrize("blocks", [*runnable()])
def test_section(blocks, tmp_path):
    place = Place(tmp_path)
    reasons = []
    for block in blocks:
        reason = missing(block)
        if reason is None:
            place.run(block)
        else:
            reasons.append(reason)
    assert not (STRICT and reasons), reasons
    if reasons:
        pytest.skip("; ".join(dict.fromkeys(reasons)))


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=name_of)
def test_blocks_are_marked(page):
    """Each block names its language, and no command hides in an indented one."""
    for blocks in sections(page.read_text()).values():
        for block in blocks:
            assert block.language, f"{page.name}:{block.line}: the block has no language"
            assert not block.text.startswith("$ "), f"{page.name}:{block.line}: no prompts"
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (?:python|pip|make|uvicorn|gunicorn)\b.*", outside, re.MULTILINE)
    assert indented == []


@pytest.mark.parametrize("page", [*FRONT, *OWN], ids=name_of)
def test_links_of_the_pages_outside_of_the_site(page):
    """Those of the other pages are checked by `make docs`."""
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_named_is_there(page):
    """Targets of make, and files and folders of the source."""
    text = page.read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)} <= {*targets}
    # Those of the reader's own program are files of the page.
    own = {*re.findall(r"<!-- file: .*?([\w.-]+) -->", text)}
    paths = {*re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:c|h|py|md|sh|svg|cfg|supp))?)`", text)}
    places = [ROOT, ROOT / "src", ROOT / "fastloop", page.parent]
    gone = [path for path in paths if not any((place / path).exists() for place in places)]
    # What is made.
    made = {"build/", "dist/"}
    assert [path for path in gone if path not in made and Path(path).name not in own] == []


def test_every_switch_is_told():
    text = (ROOT / "docs" / "going-back.md").read_text()
    assert [part for part in switches.PARTS if f"| `{part}` |" not in text] == []


def test_pages_are_there():
    assert len(PAGES) > 10
    assert len([*runnable()]) > 10


def test_the_picture_is_that_of_the_tables():
    command = [sys.executable, ROOT / "tools" / "draw_results.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
def test_the_worked_change_applies():
    (change,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    done = subprocess.run(["patch", "--dry-run", "-p1"], cwd=ROOT, input=change, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


PLANTED = """\
# Title
<!-- file: a.txt -->
```text
one
```
## First
<!-- prints: one -->
<!-- exits: 3 -->
```shell
cat a.txt
exit 3
```
text takes marks away
<!-- not run: it would not end -->

```shell
sleep 1000
```
"""


def test_planted_page(tmp_path):
    found = sections(PLANTED)
    assert [(block.language, block.line, block.marks) for block in found["First"]] == [
        ("shell", 9, {"prints": "one", "exits": "3"}),
        ("shell", 16, {"not run": "it would not end"}),
    ]
    place = Place(tmp_path)
    for block in [*found[""], *found["First"]]:
        place.run(block)
    for text, marks in (("exit 1", {}), ("true", {"exits": "1"}), ("echo a", {"prints": "b"})):
        with pytest.raises(AssertionError):
            place.run(Block("shell", text, 1, marks))
