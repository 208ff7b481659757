"""DP-SGD: gradients clipped by example against a plain loop, the scale of the noise, and epsilon against integrals."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_speechlm.nn.functional import parameter
from jax_speechlm.objectives.base import Objective, weighted
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.optim.privacy import Privacy, epsilon_of_epochs, epsilon_of_samples, private_gradient
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import train
from jax_speechlm.training.state import make_trainer
from tests.training import tiny

ROWS, DIM = 8, 6
ALMOST_NONE = 1e-9  # a noise that no float shows
KEY = jax.random.key(3)


class Line(nnx.Module):
    """A linear regression."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.weight = parameter(rngs.params(), (DIM,), ("embed",), jax.nn.initializers.normal(1.0))


def squares(module, batch, key):
    error = batch["audio"] @ module.weight[...] - batch["y"]
    return weighted(batch["weight"], {"loss": error**2})


OBJECTIVE = Objective.of(lambda rngs: Line(rngs=rngs), squares)


def a_batch():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DIM)).astype(np.float32) * np.geomspace(0.01, 10, ROWS, dtype=np.float32)[:, None]
    weight = np.ones(ROWS, np.float32)
    weight[-1] = 0  # a filler row
    return jax.tree.map(jnp.asarray, {"audio": x, "y": rng.normal(size=ROWS).astype(np.float32), "weight": weight})


def gradient(params, batch):
    def loss(params):
        return OBJECTIVE.loss(params, batch, None)

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return grads, metrics


def by_loop(weight, batch, clip_norm):
    """The sum of clipped gradients of (x w - y)^2 over the real rows, by hand."""
    total, batch = np.zeros(DIM), jax.device_get(batch)
    for x, y, is_real in zip(batch["audio"], batch["y"], batch["weight"], strict=True):
        own = 2 * (x @ weight - y) * x * is_real
        total += own * min(1.0, clip_norm / max(np.linalg.norm(own), 1e-12))
    return total


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_each_example_is_clipped_whatever_the_micro_batches(parts):
    batch, weight = a_batch(), np.linspace(-1, 1, DIM).astype(np.float32)
    settings = Privacy(noise_multiplier=ALMOST_NONE, clip_norm=0.7)
    params = {"weight": jnp.asarray(weight)}
    grads, metrics = private_gradient(lambda rows: gradient(params, rows), batch, settings, KEY, parts)
    np.testing.assert_allclose(grads["weight"], by_loop(weight, batch, 0.7) / ROWS, rtol=1e-5)
    expected = OBJECTIVE.loss(params, batch, None)[1]["loss"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_an_example_without_a_finite_gradient_counts_as_none():
    batch, params = a_batch(), {"weight": jnp.ones(DIM)}
    broken = batch | {"audio": batch["audio"].at[2].set(jnp.nan)}
    without = batch | {"weight": batch["weight"].at[2].set(0)}
    settings = Privacy(noise_multiplier=0.5)
    found, metrics = private_gradient(lambda rows: gradient(params, rows), broken, settings, KEY)
    expected, _ = private_gradient(lambda rows: gradient(params, rows), without, settings, KEY)
    np.testing.assert_array_equal(found["weight"], expected["weight"])
    assert np.isfinite(metrics["loss"][0])


def test_the_noise_has_its_scale_and_differs_by_step_and_parameter():
    settings = Privacy(noise_multiplier=1.5, clip_norm=0.4)

    def nothing(rows):
        return {"a": jnp.zeros(40_000), "b": jnp.zeros(40_000)}, {}

    batch = {"audio": jnp.zeros((ROWS, 1))}
    first, _ = private_gradient(nothing, batch, settings, KEY)
    second, _ = private_gradient(nothing, batch, settings, jax.random.key(4))
    for noise in (first["a"], first["b"], second["a"]):
        np.testing.assert_allclose(np.std(noise), 1.5 * 0.4 / ROWS, rtol=0.02)  # five deviations
        assert abs(np.mean(noise)) < 5 * 1.5 * 0.4 / ROWS / 200
    assert abs(np.corrcoef(first["a"], first["b"])[0, 1]) < 0.03 > abs(np.corrcoef(first["a"], second["a"])[0, 1])


def test_the_step_is_the_same_on_every_mesh_and_with_micro_batches():
    batch, results = a_batch(), []
    for shape, parts in ((MeshShape(data=8), 1), (MeshShape(data=2, fsdp=4), 1), (MeshShape(data=4, fsdp=2), 2)):
        optimizer = Optimizer(
            kind="sgd", schedule=WarmupCosine(peak=1.0, warmup_steps=0), accumulate=parts, clip_norm=100.0,
            privacy=Privacy(noise_multiplier=0.3, clip_norm=0.7),
        )  # fmt: skip
        mesh = meshes.make_mesh(shape)
        with jax.set_mesh(mesh):
            trainer = make_trainer(OBJECTIVE, optimizer, 4, 0, mesh)
            state, metrics = trainer.step(
                trainer.init(jax.random.key(0)), meshes.shard_batch(mesh, jax.device_get(batch))
            )
        results.append((jax.device_get(state.params["weight"]), float(metrics["grad_norm"][0])))
    for weight, norm in results[1:]:
        np.testing.assert_allclose(weight, results[0][0], rtol=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-5)


def delta_by_integral(epsilon, ratio):
    """The hockey-stick divergence of N(ratio, 1) from N(0, 1)."""
    x = np.linspace(-12, 12 + ratio, 2_000_001)
    p, q = (np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi) for mean in (ratio, 0))
    return np.maximum(p - np.exp(epsilon) * q, 0).sum() * (x[1] - x[0])


@pytest.mark.parametrize(("noise", "epochs", "delta"), [(1.0, 1, 1e-5), (0.7, 9, 1e-6), (4.0, 2, 1e-3)])
def test_epsilon_of_epochs_gives_delta_by_an_integral(noise, epochs, delta):
    epsilon = epsilon_of_epochs(noise, epochs, delta)
    assert delta_by_integral(epsilon, epochs**0.5 / noise) == pytest.approx(delta, rel=1e-3)


def test_much_noise_costs_nothing_and_little_noise_is_finite():
    assert epsilon_of_epochs(1e6, 1, 1e-5) == 0
    assert 4e5 < epsilon_of_epochs(0.001, 1, 1e-5) < 6e5
    assert epsilon_of_epochs(1.0, 0, 1e-5) == 0


def test_the_accountant_of_samples_agrees_with_both_ends():
    """All examples in each step is one epoch a step; and the tutorial of TensorFlow Privacy states 2.92 by moments."""
    pytest.importorskip("dp_accounting")
    assert epsilon_of_samples(2.0, 4, 1, 1e-5) == pytest.approx(epsilon_of_epochs(2.0, 4, 1e-5), rel=1e-3)
    assert 2.3 < epsilon_of_samples(1.1, 14_063, 234, 1e-5) < 2.92


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("ctc", {}, "--data.packed False"),
        ("ctc", {"joined": 0.5, "packed": False}, "--data.joined 0"),
        ("wav2vec2", {"packed": False}, "needs a loss that is a sum over examples"),
    ],
)
def test_data_whose_rows_are_no_examples_are_refused(objective, changes, message):
    experiment = tiny.experiment(objective)
    optimizer = experiment.optimizer.replace(privacy=Privacy(noise_multiplier=1.0))
    with pytest.raises(ValueError, match=message):
        experiment.replace(optimizer=optimizer, data=experiment.data.replace(**changes))


def test_a_private_run_logs_epsilon_and_resumes_bit_for_bit(tmp_path, capsys):
    plain = tiny.experiment("ctc", num_steps=2, data=tiny.NOISE.replace(num_buckets=1, packed=False))
    optimizer = plain.optimizer.replace(privacy=Privacy(noise_multiplier=0.8), ema_decay=0.0)
    loop = plain.loop.replace(log_every=1, checkpoint_every=1)
    experiment = plain.replace(optimizer=optimizer, loop=loop)
    source = tiny.MemorySource.make(experiment, 8)
    train(experiment, tmp_path / "whole", source)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    epochs = -(-2 // source.plan.steps_per_epoch)
    logged = [line["epsilon"] for line in lines if "epsilon" in line]
    assert logged[-1] == pytest.approx(epsilon_of_epochs(0.8, epochs, 1e-5))
    assert "privacy of an utterance" in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(ckpt.find(tmp_path / "parts"))
    train(experiment, tmp_path / "parts", source)
    params = [ckpt.read(ckpt.find(tmp_path / name)).state["params"] for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *params)
