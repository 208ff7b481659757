"""Named experiments, one module each: `config()` returns an `Experiment`, the docstring is its lab notebook."""

import difflib
import importlib
import importlib.util
import pkgutil
import traceback
from pathlib import Path

from jax_speechlm.recipes.experiment import Experiment


def names() -> list[str]:
    """The names of the experiments that ship with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Experiment:
    """An experiment by name, or from a user's own file: `.py` with a `config()`, or `.json`.

    Raises:
      ValueError: there is no such experiment, and the message names the nearest; or a user's own file fails.
    """
    if name.endswith(".json"):
        return Experiment.read(Path(name))
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            return module.config()
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{name}{_line(name, error)}: {type(error).__name__}: {error}") from error
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.3)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no experiment is named {name!r}. {hint}There are: {', '.join(names())}; or give a file.")
    return importlib.import_module(f"{__name__}.{name}").config()


def _line(name: str, error: Exception) -> str:
    """Returns ", line N" for the last line of a user's file that an error passed; nothing where it passed none."""
    if isinstance(error, SyntaxError):
        return ""  # its own message says the line
    numbers = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == Path(name).absolute()
    ]
    return f", line {numbers[-1]}" if numbers else ""


def docstring(name: str) -> str:
    """An experiment's lab notebook: how to run it, on what, how long it takes, what came out."""
    return importlib.import_module(f"{__name__}.{name}").__doc__
