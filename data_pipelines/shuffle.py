"""Keyed permutations of `range(size)` that are evaluated one index at a time.

A Feistel network over a square domain, walked until it falls back into the range (Black and Rogaway 2002,
"Ciphers with arbitrary finite domains", the cycle-walking and generalised Feistel constructions). Nothing is stored
and nothing is replayed: entry i of epoch e's permutation costs the same for every i and e, in every thread and host.
The mixing is for shuffling data, not for secrecy.
"""

import math

import numpy as np

_ROUNDS = 8  # tiny ranges need more rounds than the classical four to look shuffled


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64 that scatters nearby inputs."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """A 64-bit key from integers such as (seed, epoch, stream); the order of the parts matters."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key + np.uint64(0x9E3779B97F4A7C15) + mix(np.array([part & (2**64 - 1)], np.uint64)))
    return int(key[0])


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Images of `indices` under the permutation of range(size) that `key` names.

    Args:
      indices: integers in [0, size), any shape.
      size: number of elements that the permutation acts on.
      key: 64-bit key, see `derive_key`.

    Returns:
      int64 array of the shape of `indices`; over all of range(size) every value occurs exactly once.
    """
    side = np.uint64(math.isqrt(max(size - 1, 0)) + 1)  # side * side >= size, and hardly more: walks are short
    round_keys = mix(np.uint64(key) + np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    flat = np.array(indices, np.uint64).ravel()
    if flat.size and int(flat.max()) >= size:
        raise IndexError(f"index {int(flat.max())} is outside range({size})")
    outside = np.ones(flat.shape, bool)
    while outside.any():
        left, right = np.divmod(flat[outside], side)
        for round_key in round_keys:
            left, right = right, (left + mix(right ^ round_key)) % side
        flat[outside] = left * side + right
        outside = flat >= np.uint64(size)
    return flat.astype(np.int64).reshape(np.shape(indices))


def uniform(indices: np.ndarray, key: int) -> np.ndarray:
    """One float64 in [0, 1) for each of the non-negative integers `indices`, in their shape."""
    bits = mix(mix(np.asarray(indices, np.uint64) + np.uint64(key)) ^ np.uint64(key))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
