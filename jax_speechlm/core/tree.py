"""Nested dicts of arrays ("pytrees"), addressed by the paths of their leaves: "encoder/layers/norm/scale"."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]


def name_of(path: tuple[Any, ...]) -> str:
    """Joins the keys of a path of `jax.tree_util`: "encoder/layers/norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: Tree) -> list[str]:
    """Returns the path of every leaf in the order of `jax.tree.leaves`."""
    return [name_of(path) for path, _ in jax.tree.leaves_with_path(tree)]


def is_below(path: str, prefix: str) -> bool:
    """Returns whether a path equals `prefix` or is below it; "encoder" does not match "encoder_norm/scale"."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def select(tree: Tree, prefixes: tuple[str, ...], *, complement: bool = False) -> Tree:
    """Returns the part of a tree below any of the prefixes, or with `complement` the remaining part."""

    def take(tree: Tree, parent: str) -> Tree:
        taken = {}
        for name, child in tree.items():
            path = f"{parent}/{name}" if parent else name
            if isinstance(child, dict):
                if below := take(child, path):
                    taken[name] = below
            elif any(is_below(path, prefix) for prefix in prefixes) != complement:
                taken[name] = child
        return taken

    return take(tree, "")


def overlay(base: Tree, part: Tree) -> Tree:
    """Returns `base` with the leaves of `part` added or replacing its own; copies only the dicts."""
    return base | {
        name: overlay(base.get(name, {}), child) if isinstance(child, dict) else child for name, child in part.items()
    }


def at(tree: Any, names: Sequence[str]) -> Any:
    """Returns the subtree or leaf at a path, or None if absent."""
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            return None
        tree = tree[name]
    return tree


def replace(tree: Tree, names: Sequence[str], leaf: Any) -> Tree:
    """Returns a copy of a tree with the leaf at an existing path replaced."""
    first, *rest = names
    return tree | {first: replace(tree[first], rest, leaf) if rest else leaf}


def insert(tree: Tree, names: Sequence[str], leaf: Any) -> None:
    """Inserts a leaf into a tree in place, creating missing parent dicts."""
    *parents, last = names
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf


def fingerprint(tree: Any, *texts: str) -> str:
    """Returns a hex digest of texts, and of all arrays of a tree: a name for what they decide."""
    digest = hashlib.sha256("".join(texts).encode())
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]
