"""x-vectors and their margin: against numpy one row at a time, and no row's loss knows of padding or of other rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.augment import SPEC_AUGMENT
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.xvector import XVector, XVectorConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.speaker_verification import SpeakerModel, SpeakerVerification
from tests.objectives.test_classification import speech_batch

HEAD = XVectorConfig(channels=(6, 5, 9), kernels=(3, 2, 1), dilations=(2, 3, 1), dim=4)
CONFIG = SpeakerVerification(classes=("low", "middle", "high"), head=HEAD, scale=7.0, margin=0.3)
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3))
MODELS = {
    "conformer": ConformerConfig(input_dim=16, dim=8, num_layers=1, num_heads=2, kernel_size=3, left_max=4),
    "fast": FastConformerConfig(input_dim=8, dim=8, num_layers=1, num_heads=2, kernel_size=3, channels=4),
}
FRONTENDS = {"conformer": FRONTEND, "fast": FRONTEND.replace(mel=LogMel(num_mel_bins=8, stack=1))}


@functools.cache
def objective(kind: str):
    built = CONFIG.build(MODELS[kind], FRONTENDS[kind])
    return built, functional.init(built.make, jax.random.key(1)), jax.jit(built.loss)


def vector_of(params, hidden_TxD: np.ndarray, head: XVectorConfig = HEAD) -> np.ndarray:
    """The oracle: layer by layer and frame by frame, then numpy's own mean and deviation."""
    x = hidden_TxD.astype(np.float64) @ params["projector"]["kernel"] + params["projector"]["bias"]
    for number, (_, outputs, kernel, dilation) in enumerate(head.layers):
        weights = np.asarray(params["tdnn"][f"layer{number}"]["kernel"]).reshape(kernel, -1, outputs)
        made = []
        for start in range(len(x) - (kernel - 1) * dilation):
            taps = [x[start + tap * dilation] @ weights[tap] for tap in range(kernel)]
            made.append(np.maximum(sum(taps) + params["tdnn"][f"layer{number}"]["bias"], 0))
        x = np.array(made)
    pooled = np.concatenate([x.mean(0), x.std(0, ddof=1)])
    return pooled @ params["embedding"]["kernel"] + params["embedding"]["bias"]


def cosines_of(params, vector: np.ndarray) -> np.ndarray:
    out = vector @ params["output"]["kernel"] + params["output"]["bias"]
    speakers = np.asarray(params["speakers"], np.float64)
    return (out / np.linalg.norm(out)) @ (speakers / np.linalg.norm(speakers, axis=0))


@pytest.mark.parametrize("kind", MODELS)
def test_equals_each_row_alone_in_numpy(kind):
    _, params, run = objective(kind)
    batch, (model, frontend) = speech_batch(), (MODELS[kind], FRONTENDS[kind])
    loss, metrics = run(params, batch, None)
    graphdef = functional.declare(lambda rngs: SpeakerModel(model, HEAD, 3, rngs=rngs)).graphdef
    encode = jax.jit(lambda params, batch: functional.bind(graphdef, params).encoder(*features(batch, frontend, None)))
    vectors, frames = jax.jit(CONFIG.vectors(model, frontend))(params, batch)
    nll, hits, rows = [], [], np.flatnonzero((np.asarray(frames) >= HEAD.shortest) & (batch["weight"] > 0))
    assert 0 < len(rows) < batch["weight"].sum(), "no row was too short"
    for row in rows:
        one = {name: jnp.asarray(batch[name][row : row + 1]) for name in ("audio", "audio_length")}
        hidden = np.asarray(encode(params, one)[0])[0, : int(frames[row])]
        expected = vector_of(params["speaker"], hidden)
        np.testing.assert_allclose(vectors[row], expected, atol=1e-5)
        cosines, own = cosines_of(params["speaker"], expected), batch["label"][row]
        logits = 7 * (cosines - 0.3 * (np.arange(3) == own))
        nll.append(np.log(np.exp(logits).sum()) - logits[own])
        hits.append(cosines.argmax() == own)
    np.testing.assert_allclose(metrics["loss"], (sum(nll), len(rows)), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (sum(hits), len(rows)))
    np.testing.assert_allclose(metrics["too_short"], (batch["weight"].sum() - len(rows), batch["weight"].sum()))
    np.testing.assert_allclose(loss, np.mean(nll), rtol=1e-4)


def test_more_than_ten_layers_come_one_after_the_other():
    head = XVectorConfig(channels=(3,) * 12, kernels=(1,) * 12, dilations=(1,) * 12, dim=4)

    def make(rngs):
        return XVector(head, 8, 2, rngs=rngs)

    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.uniform(0.1, 0.9, leaf.shape), jnp.float32)

    params = jax.tree.map(draw, functional.declare(make).shapes)
    hidden = rng.uniform(size=(1, 5, 8)).astype(np.float32)
    found = functional.bind(functional.declare(make).graphdef, params)(jnp.asarray(hidden), jnp.array([5]))
    np.testing.assert_allclose(found[0, 0], vector_of(params, hidden[0], head), rtol=1e-5)


def test_a_speaker_who_was_not_trained_on_has_no_loss():
    _, params, run = objective("conformer")
    batch = speech_batch()
    strange = batch | {"label": np.where(batch["example_id"] == 8, -1, batch["label"])}
    without = batch | {"weight": batch["weight"] * (batch["example_id"] != 8)}
    found, expected = run(params, strange, None)[1], run(params, without, None)[1]
    np.testing.assert_array_equal(found["loss"], expected["loss"])
    np.testing.assert_array_equal(found["accuracy"], expected["accuracy"])


def test_a_channel_that_no_frame_excites_has_a_slope():
    built, params, _ = objective("conformer")
    layer = params["speaker"]["tdnn"]["layer2"]
    layer = layer | {"bias": layer["bias"] - 1e3}
    dead = params | {"speaker": params["speaker"] | {"tdnn": params["speaker"]["tdnn"] | {"layer2": layer}}}
    slopes = jax.jit(jax.grad(lambda params, batch: built.loss(params, batch, None)[0]))(dead, speech_batch())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert np.abs(slopes["speaker"]["embedding"]["bias"]).sum() > 0


def test_layers_of_other_numbers_are_refused():
    with pytest.raises(ValueError, match="one entry a layer, got 2, 3 and 3"):
        XVectorConfig(channels=(4, 4), kernels=(3, 1, 1), dilations=(1, 1, 1))
