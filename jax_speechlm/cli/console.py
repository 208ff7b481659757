"""Sets the text encoding of a process and splits command lines into options."""

import codecs
import locale
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

_REPEATABLE = ("--from", "--vary")


class Option(NamedTuple):
    """An option of a command line: its name with underscores, its words, and the values among them."""

    name: str
    words: list[str]
    values: list[str]


def options(argv: Sequence[str]) -> list[Option]:
    """Splits a command line into its options, without knowing which exist; words before the first are named ""."""
    options = [Option("", [], [])]
    for word in argv:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options.append(Option(name.replace("-", "_"), [word], [value] if value else []))
        else:
            options[-1].words.append(word)
            options[-1].values.append(word)
    return options


def repeated_option(argv: Sequence[str]) -> str | None:
    """Returns an option that is repeated and may not be, or None. Words after a bare `--` are not checked."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    names = [f"--{option.name.replace('_', '-')}" for option in options(own)[1:]]
    return next((name for name in names if names.count(name) > 1 and name not in _REPEATABLE), None)


def use_utf8() -> None:
    """Restarts Python in UTF-8 mode if the locale differs; characters that the output lacks become escapes."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
