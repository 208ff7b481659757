"""The objective of acoustic models: targets of pitch and energy by numpy, its errors, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.acoustic import ENERGY_CENTER, PITCH_HERTZ, PITCH_RANGE, token_energy, token_pitch
from tests.contracts.objectives import TOYS
from tests.objectives import text
from tests.training import tiny

TOY = TOYS["tts fastspeech2"]


def matrix(index, tokens):
    return jnp.asarray(np.array(index)[None, :, None] == np.arange(tokens), jnp.float32)


def test_pitch_is_the_mean_over_the_voiced_frames_of_a_token():
    hertz = np.array([[100, 0, 200, 0, 0, np.nan, 320]], np.float32)
    pitch = token_pitch(jnp.asarray(hertz), matrix([0, 0, 0, 1, 1, 1, 2, -1], 4))
    expected = [np.log(np.sqrt(100 * 200) / PITCH_HERTZ) / PITCH_RANGE, 0, np.log(320 / PITCH_HERTZ) / PITCH_RANGE, 0]
    np.testing.assert_allclose(pitch[0], expected, atol=1e-5)


def test_energy_is_the_mean_log_norm_of_the_amplitudes():
    mel = np.random.default_rng(0).normal(-2, 1, (1, 6, 5)).astype(np.float32)
    energy = token_energy(jnp.asarray(mel), matrix([0, 0, 1, 1, 1, -1], 2))
    norm = np.log10(np.linalg.norm(10.0 ** mel[0].astype(np.float64), axis=-1)) - ENERGY_CENTER
    np.testing.assert_allclose(energy[0], [norm[:2].mean(), norm[2:5].mean()], atol=1e-5)


def test_binarisation_begins_at_its_step_and_grows():
    config = TOY.config.replace(binarisation_start=10, binarisation_ramp=4)
    shares = [float(config._share_of_binarisation({"step": jnp.int32(step)})) for step in (0, 9, 10, 12, 13, 99)]
    np.testing.assert_allclose(shares, [0, 0, 0.25, 0.75, 1, 1])
    assert config._share_of_binarisation({}) == 1


def test_utterances_with_fewer_frames_than_tokens_are_left_out_and_counted():
    metrics = TOY.evaluate(TOY.batch)
    # Of seven utterances the one of 0.03 s is shorter than its two tokens and the boundaries.
    np.testing.assert_allclose(metrics["infeasible"], (1, 7))
    frames = TOY.frontend.mel.num_frames(np.delete(TOY.batch["audio_length"], 4))
    assert metrics["loss"][1] == frames.sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontend": FrontEnd(mel=tiny.MELS["tts"], augment=Augment(gain_db=3.0))}, "would learn the augmentation"),
        ({"model": TOY.model.replace(num_mel_bins=20)}, "set --model.num-mel-bins 16"),
        ({"tokenizer": None}, "needs a tokenizer"),
        ({"frontend": FrontEnd(mel=tiny.MEL)}, "set --frontend.mel.variant speecht5"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    parts = {"model": TOY.model, "frontend": FrontEnd(mel=tiny.MELS["tts"]), "tokenizer": text.TOKENIZER} | changes
    with pytest.raises(ValueError, match=message):
        TOY.config.build(**parts)


def test_the_language_model_is_a_language_models_transformer():
    reader, model = TOYS["tts with a language model"], TOYS["causal_lm transformer"]
    voice, trained = (functional.declare(toy.objective.make).shapes for toy in (reader, model))
    assert model.model == reader.model.text_lm.transformer
    assert jax.tree.map(lambda leaf: leaf.shape, voice["transformer"]) == jax.tree.map(
        lambda leaf: leaf.shape, trained["transformer"]
    )


def test_speed_perturbation_is_refused():
    with pytest.raises(ValueError, match=r"set data.speeds to 1.0"):
        tiny.experiment("tts", data=tiny.NOISE.replace(speeds=(0.9, 1.0)))


def test_parameters_of_the_acoustic_model_do_not_depend_on_the_weight_of_alignment():
    def gradients(weight):
        objective = TOY.config.replace(alignment_weight=weight).build(TOY.model, TOY.frontend, TOY.tokenizer)
        loss = lambda params: objective.loss(params, jax.tree.map(jnp.asarray, TOY.batch), None)[0]  # noqa: E731
        return jax.jit(jax.grad(loss))(TOY.params)

    one, two = gradients(0.1), gradients(0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one["acoustic"], two["acoustic"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, atol=1e-4), one["aligner"], two["aligner"])


@pytest.mark.slow
def test_the_loss_falls():
    params, batch = functional.init(TOY.objective.make, jax.random.key(0)), jax.tree.map(jnp.asarray, TOY.batch)
    step = jax.jit(jax.value_and_grad(lambda params: TOY.objective.loss(params, batch, None)[0]))
    losses = []
    for _ in range(60):
        loss, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.003 * jnp.sign(g), params, gradient)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
