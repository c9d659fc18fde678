"""The Python blocks of documentation pages run, from top to bottom of each page."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if "Every block runs" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.filterwarnings("ignore")
def test_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    scope: dict = {}
    for block in blocks:
        exec(compile(block, name, "exec"), scope)


def test_there_are_pages_that_run():
    assert "nilearn.md" in PAGES
