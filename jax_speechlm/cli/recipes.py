"""`jax-speechlm recipes`."""

import itertools

from jax_speechlm.recipes import registry


def list_recipes() -> None:
    """Lists the shipped experiments by folder: name, title, result."""
    for _, names in itertools.groupby(registry.names(), lambda name: name.split("/")[0]):
        for name in names:
            print(f"{name:<30} {registry.title(name)}\n{'':<30} Result: {registry.result(name)}")
        print()
