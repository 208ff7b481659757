"""Nested dicts of arrays ("pytrees"), by the paths of their leaves: "encoder/layers/norm/scale"."""

from collections.abc import Sequence
from typing import Any

import jax

Tree = dict[str, Any]


def name_of(path: tuple[Any, ...]) -> str:
    """Joins the keys of a path of `jax.tree_util`: "encoder/layers/norm/scale"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: Tree) -> list[str]:
    """Returns the path of every leaf in the order of `jax.tree.leaves`."""
    return [name_of(path) for path, _ in jax.tree.leaves_with_path(tree)]


def is_below(path: str, prefix: str) -> bool:
    """Returns whether a path is `prefix` or lies below it: "encoder" does not cover "encoder_norm/scale"."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def select(tree: Tree, prefixes: tuple[str, ...], *, complement: bool = False) -> Tree:
    """Returns the part of a tree that lies below any of the prefixes, or (`complement`) the part that does not."""

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
    """Returns `base` with the leaves of `part` in place of its own and beside them; copies only the dicts."""
    return base | {
        name: overlay(base.get(name, {}), child) if isinstance(child, dict) else child for name, child in part.items()
    }


def at(tree: Any, names: Sequence[str]) -> Any:
    """Returns the subtree or leaf at a path, or None where there is none."""
    for name in names:
        if not isinstance(tree, dict) or name not in tree:
            return None
        tree = tree[name]
    return tree


def replace(tree: Tree, names: Sequence[str], leaf: Any) -> Tree:
    """Returns a copy of a tree with another leaf at a path that exists."""
    first, *rest = names
    return tree | {first: replace(tree[first], rest, leaf) if rest else leaf}


def insert(tree: Tree, names: Sequence[str], leaf: Any) -> None:
    """Puts a leaf at a path of a tree that is being built, with the dicts that lead there."""
    *parents, last = names
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
