"""K-means against scikit-learn, from one step to a whole fit, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import make_blobs

from data_pipelines.core.errors import DataError
from jax_speechlm.parallel.mesh import MeshShape, batch_sharding, make_mesh
from jax_speechlm.units import kmeans
from jax_speechlm.units.kmeans import KMeans, State

ONE = make_mesh(MeshShape(data=1), jax.devices()[:1])
MANY = make_mesh(MeshShape(data=2, fsdp=2, replica=2))
SMALL = KMeans(num_units=20, batch_size=512, num_steps=60)


@pytest.fixture(scope="module")
def blobs():
    """Twenty clusters far apart."""
    return make_blobs(6000, 12, centers=20, cluster_std=0.5, random_state=3)[0].astype(np.float32)


@pytest.fixture(scope="module")
def clouds():
    """Heavy-tailed, correlated, without clusters: as features of speech are."""
    rng = np.random.default_rng(0)
    return (rng.standard_t(4, (6000, 8)) @ rng.normal(size=(8, 12))).astype(np.float32)


@pytest.mark.parametrize("scores", [2**18, 64])
def test_nearest_is_the_nearest_whatever_the_blocks(clouds, scores):
    x, centroids = clouds[:101], clouds[500:513]
    distance = np.square(x[:, None].astype(np.float64) - centroids).sum(-1)
    code, squared = kmeans.nearest(jnp.asarray(x), jnp.asarray(centroids), scores)
    np.testing.assert_array_equal(code, distance.argmin(-1))
    np.testing.assert_allclose(squared, distance.min(-1), rtol=1e-3, atol=1e-3)
    twice = jnp.asarray(np.concatenate([centroids, centroids]))
    np.testing.assert_array_equal(kmeans.nearest(jnp.asarray(x), twice, scores)[0], code)  # of equals the first


@pytest.mark.parametrize("mesh", [ONE, MANY], ids=["one", "many"])
def test_steps_are_those_of_scikit_learn(clouds, mesh):
    start = clouds[:10]
    peer = cluster.MiniBatchKMeans(10, init=start, n_init=1, reassignment_ratio=0)
    state = State(jnp.asarray(start), jnp.zeros(10, jnp.int32))
    with jax.set_mesh(mesh):
        for first in (0, 800, 1600):
            peer.partial_fit(clouds[first : first + 800])
            state = kmeans._update(state, jax.device_put(clouds[first : first + 800], batch_sharding(mesh)))
            np.testing.assert_allclose(state.centroids_KxD, peer.cluster_centers_, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(state.count_K, peer._counts)


def test_rows_stay_on_their_devices(clouds):
    with jax.set_mesh(MANY):
        state = State(jnp.asarray(clouds[:10]), jnp.zeros(10, jnp.int32))
        program = kmeans._update.lower(state, jax.device_put(clouds[:800], batch_sharding(MANY))).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_far_apart_are_all_found(blobs, seed):
    exact = cluster.KMeans(20, n_init=3, random_state=0).fit(blobs).inertia_ / len(blobs)
    assert kmeans.inertia(blobs, kmeans.fit_kmeans(blobs, SMALL.replace(seed=seed), ONE)) == pytest.approx(
        exact, rel=0.01
    )


def test_clouds_are_divided_as_well_as_by_scikit_learn(clouds):
    peers = [
        cluster.MiniBatchKMeans(
            20, batch_size=512, n_init=1, max_iter=5, max_no_improvement=None, random_state=seed
        ).fit(clouds)
        for seed in range(3)
    ]
    ours = [kmeans.inertia(clouds, kmeans.fit_kmeans(clouds, SMALL.replace(seed=seed), ONE)) for seed in range(3)]
    assert np.mean(ours) < 1.02 * np.mean([peer.inertia_ for peer in peers]) / len(clouds)


def test_inertia_is_the_mean_squared_distance(clouds):
    centroids = clouds[:7]
    peer = cluster.KMeans(7, init=centroids, n_init=1, max_iter=1).fit(centroids)  # its centres: the rows themselves
    expected = -peer.score(clouds) / len(clouds)
    assert kmeans.inertia(clouds, centroids) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_a_seed_names_the_result_on_every_mesh(clouds, init):
    config = SMALL.replace(init=init, num_steps=10)
    first = kmeans.fit_kmeans(clouds, config, ONE)
    np.testing.assert_array_equal(kmeans.fit_kmeans(clouds, config, ONE), first)
    np.testing.assert_allclose(kmeans.fit_kmeans(clouds, config, MANY), first, rtol=1e-3, atol=1e-3)
    assert not np.allclose(kmeans.fit_kmeans(clouds, config.replace(seed=1), ONE), first, atol=0.1)


def test_empty_units_are_put_where_frames_are_far(blobs, monkeypatch):
    """Most rows are one and the same, as in silence: a random start gives nearly all units to them."""
    silent = np.concatenate([np.zeros((60_000, 12), np.float32), blobs])
    config = SMALL.replace(init="random", num_steps=200)

    def used(centroids):
        return len(np.unique(kmeans._nearest(silent, centroids)[0]))

    centroids = kmeans.fit_kmeans(silent, config, ONE)
    monkeypatch.setattr(kmeans, "_reseed", lambda state, *_: state)
    without = kmeans.fit_kmeans(silent, config, ONE)
    assert used(without) < 8
    assert used(centroids) == 20
    assert kmeans.inertia(silent, centroids) < 0.3 * kmeans.inertia(silent, without)


def test_rows_that_are_all_alike_make_no_trouble():
    centroids = kmeans.fit_kmeans(np.ones((100, 4), np.float32), KMeans(num_units=3, batch_size=16, num_steps=20), ONE)
    np.testing.assert_array_equal(centroids, np.ones((3, 4)))


def test_fewer_frames_than_units_are_refused():
    with pytest.raises(DataError, match="5 frames cannot make 20 units"):
        kmeans.fit_kmeans(np.zeros((5, 3), np.float32), SMALL, ONE)
