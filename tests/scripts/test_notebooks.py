"""The notebooks that are made of the tutorials have the blocks that the tests of the tutorials run."""

import runpy

import pytest

from tests import pages

pytest.importorskip("jupytext")
import nbformat

NOTEBOOKS = runpy.run_path(str(pages.DOCS / "site" / "notebooks.py"))
TUTORIALS = list(NOTEBOOKS["tutorials"]())


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_cells_of_a_notebook_are_the_blocks_of_its_page(page):
    text = page.read_text()
    notebook = NOTEBOOKS["notebook"](text)
    nbformat.validate(notebook)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    shown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not [line for line in shown.splitlines() if line.startswith("jax-speechlm ")]  # of a block without language
    shell = [cell.partition("\n")[2] for cell in cells if cell.startswith("%%bash")]
    files = dict(cell.split("\n", 1) for cell in cells if cell.startswith("%%writefile "))
    others = [cell for cell in cells if not cell.startswith("%%")]
    assert [f"{cell}\n" for cell in shell] == pages.blocks(text, "bash")
    programs = [block.rstrip("\n") for block in pages.blocks(text, "python")]
    assert [*others, *(content for name, content in files.items() if name.endswith(".py"))] == programs
    for name, content in files.items():
        assert content.startswith(f"# {name.split()[1]}")
        assert f"{content}\n```" in text
    assert shell


def test_links_lead_from_the_notebooks_to_the_pages(tmp_path):
    NOTEBOOKS["main"](tmp_path)
    assert {file.stem for file in tmp_path.iterdir()} == {page.stem for page in TUTORIALS}
    whisper = nbformat.read(tmp_path / "whisper.ipynb", as_version=4)
    text = "".join(cell.source for cell in whisper.cells if cell.cell_type == "markdown")
    assert "](../../docs/interchange.md#the-check-of-an-export)" in text
