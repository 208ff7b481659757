"""Keyed permutations of `range(size)` that are evaluated one index at a time.

A Feistel network over a square domain, applied until the value is within the range (Black and Rogaway 2002, "Ciphers
with arbitrary finite domains": cycle walking and the generalised Feistel construction). Nothing is stored or replayed:
entry i of the permutation of epoch e costs the same for every i and e, in every thread and on every host. The mixing is
for shuffling data, not for secrecy.
"""

import numpy as np

_ROUNDS = 8  # tiny ranges need more rounds than the classical four to look shuffled


def mix(x: np.ndarray) -> np.ndarray:
    """Applies the finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64 that scatters nearby
    inputs.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """Returns a 64-bit key from integers such as (seed, epoch, stream); the order of the parts matters."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key + np.uint64(0x9E3779B97F4A7C15) + mix(np.array([part & (2**64 - 1)], np.uint64)))
    return int(key[0])


def keys_of(key: int, numbers: np.ndarray) -> np.ndarray:
    """Derives one key, uint64, for each of `numbers` from the key of their stream."""
    return mix(mix(np.asarray(numbers, np.uint64)) + np.full(np.shape(numbers), key, np.uint64))


def permute(indices: np.ndarray, size: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Computes the images of `indices` under the permutation of range(size) that belongs to `key`.

    Args:
      indices: integers in [0, size), any shape.
      size: number of elements that the permutation acts on; one for all indices, or one per index.
      key: 64-bit key, see `derive_key`; one for all indices, or one per index.

    Returns:
      int64 array of the shape of `indices`; over all of range(size) every value occurs exactly once.
    """
    flat = np.array(indices, np.uint64).ravel()
    sizes, keys = (np.broadcast_to(np.asarray(value, np.uint64).ravel(), flat.shape) for value in (size, key))
    if (flat >= sizes).any():
        first = int(np.argmax(flat >= sizes))
        raise IndexError(f"index {flat[first]} is outside range({sizes[first]})")
    sides = _sides(sizes)
    round_keys = mix(keys[:, None] + np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    outside = np.arange(len(flat))
    while len(outside):
        side = sides[outside]
        left, right = np.divmod(flat[outside], side)
        for round_key in round_keys[outside].T:
            left, right = right, (left + mix(right ^ round_key)) % side
        flat[outside] = left * side + right
        outside = outside[flat[outside] >= sizes[outside]]
    return flat.astype(np.int64).reshape(np.shape(indices))


def _sides(sizes: np.ndarray) -> np.ndarray:
    """Returns the sides of the smallest squares with at least `sizes` elements; hardly more, so walks are short."""
    below = np.maximum(sizes, 1) - np.uint64(1)
    root = np.sqrt(below.astype(np.float64)).astype(np.uint64)
    root -= root * root > below  # the float's rounding
    root += (root + np.uint64(1)) ** np.uint64(2) <= below
    return root + np.uint64(1)


def uniform(indices: np.ndarray, key: int) -> np.ndarray:
    """Returns one float64 in [0, 1) for each of the non-negative integers `indices`, in their shape."""
    bits = mix(mix(np.asarray(indices, np.uint64) + np.uint64(key)) ^ np.uint64(key))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
