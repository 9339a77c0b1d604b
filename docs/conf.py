"""How Sphinx builds this site: ``make docs``, warnings are errors."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

project = "fastloop"
author = "fastloop contributors"
copyright = author
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3
exclude_patterns = ["README.md"]

html_theme = "furo"
html_title = f"fastloop {version}"
html_show_sphinx = False
html_copy_source = False


def setup(app):
    app.connect("source-read", name_files)


def name_files(app, page, source):
    """Links to files of the repository that are no pages of this site become plain text."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])
