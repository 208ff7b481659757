"""Sets the text encoding of a process and finds repeated options."""

import codecs
import locale
import os
import sys
from collections.abc import Sequence

_REPEATABLE = ("--from",)


def repeated_option(argv: Sequence[str]) -> str | None:
    """Returns an option that is repeated and may not be, or None. Words after a bare `--` are not checked."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    names = [word.split("=")[0].replace("_", "-") for word in own if word.startswith("--")]
    return next((name for name in names if names.count(name) > 1 and name not in _REPEATABLE), None)


def use_utf8() -> None:
    """Restarts Python in UTF-8 mode if the locale differs; characters that the output lacks become escapes."""
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
