"""Writes the tutorials as notebooks; the pages are their only source.

python docs/site/notebooks.py [FOLDER]

Shell blocks become cells of bash. A block that begins with a comment with the name of a file writes that file. What
the pages show as output, or leave without a language, stays text.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "notebooks"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.(?:py|yaml))\b.*\n")
_SERVER = re.compile(r"jax-speechlm serve |--serve\b")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def tutorials() -> Iterator[Path]:
    """Yields the pages that the site lists under Tutorials."""
    for section in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]:
        for entry in section.get("Tutorials", ()):
            yield from (ROOT / "docs" / page for page in entry.values())


def notebook(page: str) -> nbformat.NotebookNode:
    """Returns the notebook of a page in Markdown, to be opened in `build/notebooks`."""
    parts, end = [], 0
    for fence in _FENCE.finditer(page):
        parts += [_LINK.sub(r"](../../docs/\1)", page[end : fence.start()]), _cell(*fence.groups()) or fence[0]]
        end = fence.end()
    text = "".join(parts) + _LINK.sub(r"](../../docs/\1)", page[end:])
    made = jupytext.reads(text, fmt={"extension": ".md", "format_name": "markdown"})
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def _cell(language: str, text: str) -> str | None:
    """Returns the block of a code cell; None of a block that is shown only."""
    if file := _FILE.match(text):
        magic = f"%%writefile {file[1]}\n"
    elif language == "bash":
        magic = "%%bash --bg\n" if _SERVER.search(text) else "%%bash -e\n"
    elif language == "python":
        magic = ""
    else:
        return None
    return f"```python\n{magic}{text}```"


def main(folder: Path = FOLDER) -> None:
    """Writes a notebook for each tutorial."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in tutorials():
        nbformat.write(notebook(page.read_text(encoding="utf-8")), folder / f"{page.stem}.ipynb")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
