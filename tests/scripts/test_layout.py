"""The drawing in docs/architecture.md shows the floors that import-linter checks."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_drawing_shows_the_present_floors():
    script = runpy.run_path(str(DOCS / "draw_layout.py"))
    assert script["draw"]() == (DOCS / "layout.svg").read_text(), (
        "after a change on purpose: python docs/draw_layout.py"
    )
    assert len(script["boxes"]()) + 1 <= 10
