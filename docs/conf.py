"""How Sphinx builds this site: ``make docs``, warnings are errors."""

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
