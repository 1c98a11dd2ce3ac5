"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str) -> None:
    names: dict[str, object] = {}
    exec(snippet, names)
    if "interests" in names:
        assert names["interests"].shape == (32, 8, 64)


def test_there_are_snippets() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("page", sorted([README, *README.parent.glob("docs/*.md")]), ids=lambda page: page.name)
def test_pages_are_finished_and_their_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
