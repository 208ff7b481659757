"""`jax-speechlm recipes`."""

import argparse
import itertools
from collections.abc import Sequence


def list_recipes(argv: Sequence[str], prog: str) -> None:
    """Prints the shipped experiments by folder: name, title, result."""
    argparse.ArgumentParser(prog=prog, description="Lists the shipped experiments with their results.").parse_args(argv)
    from jax_speechlm.recipes import registry

    for _, names in itertools.groupby(registry.names(), lambda name: name.split("/")[0]):
        for name in names:
            print(f"{name:<30} {registry.title(name)}\n{'':<30} Result: {registry.result(name)}")
        print()
