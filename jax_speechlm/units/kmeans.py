"""Minibatch k-means on the device: centroids replicated, the rows of a batch sharded over all devices.

Each step moves a centroid towards the mean of the rows assigned to it, at a rate inversely proportional to the number
of rows ever assigned (Sculley 2010, "Web-scale k-means clustering"). Initialisation is greedy k-means++ (Arthur and
Vassilvitskii 2007), as in scikit-learn.
"""

import functools
import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray
from pydantic import Field, PositiveInt

from data_pipelines.core.errors import DataError
from data_pipelines.storage.units import UNLABELLED
from jax_speechlm.core.batch import Seed, seed_key
from jax_speechlm.core.config import Config
from jax_speechlm.parallel import mesh as meshes

_CPU_SCORES, _DEVICE_SCORES = 2**18, 2**24
"""Scores (rows times centroids) of a block. On CPU a block fits into the cache of a core."""

_EXPECTED = 20
"""A centroid counts as empty if it gets no row in the time in which the average one gets this many."""


class KMeans(Config):
    """Settings of a k-means fit.

    Attributes:
      num_units: number of centroids.
      batch_size: rows of a step, drawn with replacement; rounded up to a multiple of the device count.
      num_steps: of minibatch updates.
      init: "k-means++" on three batches' worth of rows, or rows at "random".
      seed: of the initialisation and the batches.
    """

    num_units: Annotated[int, Field(ge=1, le=UNLABELLED)] = 100
    batch_size: PositiveInt = 10_000
    num_steps: PositiveInt = 1000
    init: Literal["k-means++", "random"] = "k-means++"
    seed: Seed = 0


class State(NamedTuple):
    """Centroids, and the number of rows ever assigned to them."""

    centroids_KxD: Float[Array, "units features"]
    count_K: Int32[Array, " units"]


def fit_kmeans(
    frames_NxD: Float[np.ndarray, "rows features"], config: KMeans, mesh: Mesh
) -> Float[np.ndarray, "units features"]:
    """Fits centroids to float32 rows in host memory; equal on other meshes up to rounding.

    A centroid that stays empty is moved to a row drawn in proportion to its squared distance from the nearest centroid.

    Raises:
      DataError: there are fewer rows than units.
    """
    num_rows = len(frames_NxD)
    if num_rows < config.num_units:
        raise DataError(f"{num_rows} frames cannot make {config.num_units} units: name more sets, or fit fewer units")
    batch_size = -(-config.batch_size // mesh.size) * mesh.size
    rng, key = np.random.default_rng(config.seed), seed_key(config.seed)
    first = rng.permutation(num_rows)[: max(3 * config.batch_size, 3 * config.num_units)]
    begin = _plus_plus if config.init == "k-means++" else _random
    with jax.set_mesh(mesh):
        centroids = begin(key, jnp.asarray(frames_NxD[first]), config.num_units)
        state = State(centroids, jnp.zeros(config.num_units, jnp.int32))
        check_every = math.ceil(_EXPECTED * config.num_units / batch_size)
        counted = np.zeros(config.num_units, np.int32)
        for step in range(config.num_steps):
            rows = frames_NxD[rng.integers(num_rows, size=batch_size)]
            batch = meshes.shard_batch(mesh, {"rows": rows})["rows"]
            state = _update(state, batch)
            if (step + 1) % check_every == 0 and step + check_every < config.num_steps:
                count = jax.device_get(state.count_K)
                if (empty := count == counted).any():
                    state = _reseed(state, batch, jnp.asarray(empty), jax.random.fold_in(key, step))
                    count = jax.device_get(state.count_K)
                counted = count
    return jax.device_get(state.centroids_KxD)


def nearest(
    x_NxD: Float[Array, "rows features"],
    centroids_KxD: Float[Array, "units features"],
    scores_per_block: int | None = None,
) -> tuple[Int32[Array, " rows"], Float[Array, " rows"]]:
    """Assigns rows to their nearest centroids, in blocks of at most `scores_per_block` rows times centroids.

    Computed in full float32 on every backend, so that units do not change when a model moves to another machine.

    Returns:
      The index of the nearest centroid (the first of ties), and the squared distance to it, per row.
    """
    num_rows, num_units = len(x_NxD), len(centroids_KxD)
    norm_K = 0.5 * jnp.sum(jnp.square(centroids_KxD), axis=-1)

    def block(x: Array) -> tuple[Array, Array]:
        score = jnp.matmul(x, centroids_KxD.T, precision=jax.lax.Precision.HIGHEST) - norm_K
        best = jnp.max(score, axis=-1, keepdims=True)
        # Two plain reductions: XLA's argmax is several times slower on CPU.
        code = jnp.min(jnp.where(score >= best, jnp.arange(num_units), num_units), axis=-1)
        return code, best[..., 0]

    scores_per_block = scores_per_block or (_CPU_SCORES if meshes.platform() == "cpu" else _DEVICE_SCORES)
    size = max(1, scores_per_block // num_units)
    blocks = -(-num_rows // size)
    size = -(-num_rows // blocks) if blocks else 1
    x = jnp.pad(x_NxD, ((0, blocks * size - num_rows), (0, 0))).reshape(blocks, size, x_NxD.shape[1])
    code, best = (result.reshape(-1)[:num_rows] for result in jax.lax.map(block, x))
    squared = jnp.sum(jnp.square(x_NxD), axis=-1) - 2 * best
    # A row that is not finite has no nearest centroid, but its index must be valid.
    return jnp.minimum(code, num_units - 1).astype(jnp.int32), jnp.maximum(squared, 0)


def inertia(
    frames_NxD: Float[np.ndarray, "rows features"], centroids_KxD: Float[np.ndarray, "units features"]
) -> float:
    """Returns the mean squared distance of rows from their nearest centroids."""
    total = 0.0
    for start in range(0, len(frames_NxD), 2**16):
        rows = frames_NxD[start : start + 2**16]
        total += float(np.asarray(_nearest(rows, centroids_KxD)[1]).sum(dtype=np.float64))
    return total / len(frames_NxD)


_nearest = jax.jit(nearest)


@functools.partial(jax.jit, donate_argnums=0)
def _update(state: State, x_NxD: Float[Array, "rows features"]) -> State:
    """Runs one step on a batch sharded over the current mesh; devices exchange only the sums per centroid."""
    rows = PartitionSpec(meshes.BATCH_AXES)

    def sums(centroids: Array, x: Array) -> tuple[Array, Array]:
        code, _ = nearest(x, centroids)
        total = (
            jax.ops.segment_sum(x, code, len(centroids)),
            jax.ops.segment_sum(jnp.ones_like(code), code, len(centroids)),
        )
        return jax.lax.psum(total, meshes.BATCH_AXES)

    centroids = state.centroids_KxD
    split = jax.shard_map(sums, in_specs=(PartitionSpec(), rows), out_specs=PartitionSpec(), check_vma=False)
    sum_KxD, chosen_K = split(centroids, x_NxD)
    count_K = state.count_K + chosen_K
    moved = (sum_KxD - chosen_K[:, None] * centroids) / jnp.maximum(count_K, 1)[:, None]
    return State(centroids + moved, count_K)


@jax.jit
def _reseed(state: State, x_NxD: Float[Array, "rows features"], empty_K: Array, key: PRNGKeyArray) -> State:
    """Moves empty centroids to distinct rows, drawn in proportion to their squared distances, with a count of zero."""
    centroids, count = state
    _, squared = nearest(x_NxD, centroids)
    chance = jnp.log(squared) + jax.random.gumbel(key, squared.shape)  # the greatest are a draw without replacement
    _, row_K = jax.lax.top_k(chance, min(len(centroids), len(x_NxD)))
    row_K = row_K[jnp.clip(jnp.cumsum(empty_K) - 1, 0, len(row_K) - 1)]
    return State(jnp.where(empty_K[:, None], x_NxD[row_K], centroids), jnp.where(empty_K, 0, count))


@functools.partial(jax.jit, static_argnums=2)
def _random(key: PRNGKeyArray, x_NxD: Float[Array, "rows features"], num_units: int) -> Array:
    return x_NxD[jax.random.permutation(key, len(x_NxD))[:num_units]]


@functools.partial(jax.jit, static_argnums=2)
def _plus_plus(key: PRNGKeyArray, x_NxD: Float[Array, "rows features"], num_units: int) -> Array:
    """Greedy k-means++: draws a few rows in proportion to squared distance and keeps the one with the lowest sum."""
    num_rows, num_features = x_NxD.shape
    num_candidates = 2 + int(math.log(num_units))
    norm_N = jnp.sum(jnp.square(x_NxD), axis=-1)

    def distances(c_CxD: Array) -> Float[Array, "candidates rows"]:
        product = jnp.matmul(c_CxD, x_NxD.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(norm_N - 2 * product + jnp.sum(jnp.square(c_CxD), axis=-1)[:, None], 0)

    def add(index: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centroids, closest_N = carry
        total_N = jnp.cumsum(closest_N)
        drawn = jax.random.uniform(jax.random.fold_in(key, index), (num_candidates,)) * total_N[-1]
        candidates = x_NxD[jnp.clip(jnp.searchsorted(total_N, drawn), 0, num_rows - 1)]
        after_CxN = jnp.minimum(closest_N, distances(candidates))
        best = jnp.argmin(jnp.sum(after_CxN, axis=-1))
        return centroids.at[index].set(candidates[best]), after_CxN[best]

    first = x_NxD[jax.random.randint(jax.random.fold_in(key, 0), (), 0, num_rows)]
    centroids = jnp.zeros((num_units, num_features), x_NxD.dtype).at[0].set(first)
    return jax.lax.fori_loop(1, num_units, add, (centroids, distances(first[None])[0]))[0]
