"""Links of README, docs and walks lead to files and headings that exist; the site is built without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for path, anchor in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(f"{page.relative_to(ROOT)}: {path}{'#' if anchor else ''}{anchor}")
    return found


def test_every_relative_link_leads_to_a_file_and_a_heading() -> None:
    links = sum(len(_LINK.findall(page.read_text(encoding="utf-8"))) for page in PAGES)
    assert links > 20
    assert [link for page in PAGES for link in broken(page)] == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    text = "# A b, c\n[1](#a-b-c) [2](#a-b) [3](none.md) [4](page.md#a-b-c) [5](https://x/y#z)\n```\n[6](none)\n```\n"
    (tmp_path / "page.md").write_text(text)
    assert broken(tmp_path / "page.md") == ["page.md: #a-b", "page.md: none.md"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_holds_the_public_names(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    import inflate3d

    page = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in [*inflate3d.__all__, "AbstractDataset", "SupervisedTask", "register_flexible_unet", "EMA"]:
        assert f'id="{name.lower()}"' in page
