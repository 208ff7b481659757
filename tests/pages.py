"""Blocks of the pages of docs/, which tests run."""

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def read(name: str) -> str:
    """The text of a page."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The texts of a page's blocks in a language."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [text for of, text in fenced if of == language]


def commands(page: str, program: str = "jax-speechlm") -> list[list[str]]:
    """The command lines of a program in a page's shell blocks and plain ones, in words, without the program.

    Settings of the environment before it and what its output goes to are left out, and synopses.
    """
    text = "".join([*blocks(page, "bash"), *blocks(page, "")]).replace("\\\n", " ")
    found = re.findall(rf"^\s*(?:\w+=\S+ )*{program} (?!.*\[--)(.*?)(?:\s[>|].*)?$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]
