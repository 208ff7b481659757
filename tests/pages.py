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

    Variables of the shell have their values. Settings of the environment before it and what its output goes to are left
    out, and synopses.
    """
    text = "".join([*blocks(page, "bash"), *blocks(page, "")]).replace("\\\n", " ")
    variables, found = {}, []
    for line in text.splitlines():
        line = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line)
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = assigned[2]
        elif command := re.match(rf"\s*(?:\w+=\S+ )*{program} (?!.*\[--)(.*?)(?:\s[>|].*)?$", line):
            found.append(shlex.split(command[1], comments=True))
    return found
