"""Figure and table of docs/architecture.md derive from the floors and from the batch schema."""

import runpy
from pathlib import Path

from data_pipelines.batching import fields

DOCS = Path(__file__).parents[2] / "docs"


def test_the_drawing_shows_the_present_floors():
    script = runpy.run_path(str(DOCS / "draw_layout.py"))
    assert script["draw"]() == (DOCS / "layout.svg").read_text(), (
        "after a change on purpose: python docs/draw_layout.py"
    )
    assert len(script["boxes"]()) + 1 <= 10


def test_the_drawing_of_packed_rows_is_of_the_present_plans():
    script = runpy.run_path(str(DOCS / "draw_packing.py"))
    assert script["draw"]() == (DOCS / "packing.svg").read_text(), (
        "after a change on purpose: python docs/draw_packing.py"
    )


def test_the_drawings_of_concepts_are_what_their_script_draws():
    for figure in runpy.run_path(str(DOCS / "draw_concepts.py"))["FIGURES"]:
        assert figure() == (DOCS / "concepts" / f"{figure.__name__}.svg").read_text(), (
            "after a change on purpose: python docs/draw_concepts.py"
        )


def test_the_tables_of_batches_are_the_schema():
    page = (DOCS / "architecture.md").read_text()
    assert fields.table(fields.every_field()) in page
    assert fields.table(fields.every_packed_field()) in page
