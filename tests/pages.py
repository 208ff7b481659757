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
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands(page: str, program: str = "jax-speechlm") -> list[list[str]]:
    """The command lines of a program in a page's shell blocks, in words, without the program."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [re.sub(r"^(\w+=\S+ )+", "", line) for line in lines]  # without settings of the environment
    return [words[1:] for words in (shlex.split(line, comments=True) for line in found) if words[:1] == [program]]
