"""Prepares a process for a command: the text encoding, and options that are given twice."""

import codecs
import locale
import os
import sys
from collections.abc import Sequence

_REPEATABLE = ("--from",)


def repeated_option(argv: Sequence[str]) -> str | None:
    """Returns an option that a command line names twice, of those that may stand there once; None if there is none.

    What follows a bare `--` is another command's.
    """
    own = argv[: argv.index("--")] if "--" in argv else argv
    names = [word.split("=")[0].replace("_", "-") for word in own if word.startswith("--")]
    return next((name for name in names if names.count(name) > 1 and name not in _REPEATABLE), None)


def use_utf8() -> None:
    """Starts Python again in UTF-8 mode where the locale's encoding is another, so that arguments, files and output
    hold any text; what a terminal's own encoding lacks is written as an escape."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
