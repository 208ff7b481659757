"""Named experiments: one module each in a folder of this package, "demo/pretrain" for `demo/pretrain.py`.

`config()` of a module returns its `Experiment`; its docstring is the lab notebook, whose paragraph "Result: ..." holds
the figures that `jax-speechlm recipes` and the folder's README show. A module that is present is listed; nothing else
registers it.
"""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

from jax_speechlm import recipes
from jax_speechlm.recipes.experiment import Experiment

_OLD_NAMES = {
    "spoken_en_sources": "text_en/sources",
    "librispeech_100_gpu": "librispeech/ctc_100_gpu",
    "librispeech_960_v5e16": "librispeech/best_rq_960_v5e16",
    "librispeech_960_ctc_v5e16": "librispeech/ctc_960_v5e16",
    "conformer_2b_v5e256": "scaling/conformer_2b_v5e256",
    "lm_8b_h100x64": "scaling/lm_8b_h100x64",
    "lm_8b_v5p512": "scaling/lm_8b_v5p512",
    "speech_lm_10b_v5p512": "scaling/speech_lm_10b_v5p512",
}
"""Names up to version 0.1 that are not the folder's and the module's, joined by "_"."""


def names() -> list[str]:
    """Returns the names of the experiments that ship with the package, sorted."""
    return sorted(
        f"{folder.name}/{module.name}"
        for folder in pkgutil.iter_modules(recipes.__path__)
        if folder.ispkg
        for module in pkgutil.iter_modules([f"{path}/{folder.name}" for path in recipes.__path__])
    )


def load(name: str) -> Experiment:
    """Returns an experiment by its name, or from a user's file: `.py` with a `config()`, or `.json`.

    An old name prints a note with the new one to stderr.

    Raises:
      ValueError: no experiment has this name (the message suggests the nearest), or a user's file fails.
    """
    if name.endswith(".json"):
        return Experiment.read(Path(name))
    if not name.endswith(".py"):
        return _module(name).config()
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.config()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{name}{_line(name, error)}: {type(error).__name__}: {error}") from error


def docstring(name: str) -> str:
    """Returns an experiment's lab notebook: command, machine, time, result."""
    return _module(name).__doc__


def title(name: str) -> str:
    """Returns the first line of an experiment's docstring."""
    return docstring(name).splitlines()[0]


def result(name: str) -> str:
    """Returns the result of an experiment: the paragraph after "Result:" of its docstring, as one line."""
    _, _, rest = docstring(name).partition("\nResult: ")
    return " ".join(rest.split("\n\n")[0].split())


def run_name(name: str) -> str:
    """Returns the name of a run's folder: `debian_best_rq` for --config debian/best_rq, `mine` for a/mine.py."""
    return Path(name).stem if name.endswith((".py", ".json")) else name.replace("/", "_")


def _module(name: str) -> ModuleType:
    shipped = names()
    if name not in shipped:
        new = _OLD_NAMES.get(name) or {run_name(known): known for known in shipped}.get(name)
        if new is None:
            near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.3)
            hint = f"Did you mean {near[0]!r}?" if near else f"Available: {', '.join(shipped)}."
            raise ValueError(f"no experiment is named {name!r}. {hint} See jax-speechlm recipes, or give a file")
        print(f"note: the recipe {name} is now called {new}; the old name works for one version", file=sys.stderr)
        name = new
    return importlib.import_module(f"{recipes.__name__}.{name.replace('/', '.')}")


def _line(name: str, error: Exception) -> str:
    """Returns ", line N" for the last line of a user's file in an error's traceback; empty where there is none."""
    if isinstance(error, SyntaxError):
        return ""  # its own message has the line
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(name).absolute()]
    return f", line {lines[-1]}" if lines else ""
