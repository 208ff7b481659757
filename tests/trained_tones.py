"""A recognizer that has really learnt a language, of three tones and pauses, in seconds: for tests of what is heard."""

import fcntl
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel, log_mel
from jax_speechlm.models.conformer import ConformerConfig, draw_chunk
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.experiment import Experiment, Speech
from tests.evaluation.runs import save_run

RATE = 16_000
TONES = {"a": 300.0, "b": 800.0, "c": 1900.0}  # Hz
LETTER, GAP = 0.16, 0.2  # seconds of a letter, and between words
QUIET = 20.0  # RMS of what is heard between words
TOKENIZER = CharTokenizer("abc ")
MEL = LogMel(num_mel_bins=16, stack=4)
MODEL = ConformerConfig(input_dim=MEL.input_dim, dim=32, num_layers=1, num_heads=2, kernel_size=7)
EXPERIMENT = Experiment(
    data=Speech(sets=("tones",)), objective=CTC(), frontend=FrontEnd(mel=MEL), model=MODEL, num_steps=1
)
STREAMING = EXPERIMENT.replace(
    frontend=FrontEnd(mel=MEL.replace(normalize="running")),
    model=MODEL.replace(chunk_lengths=(2, 4), left_context=8),
)
_ROWS, _SECONDS, _STEPS = 6, 6, 100
FRAME = MEL.frame_samples / RATE  # seconds


def speak(text: str, seed: int = 0, gap: float = GAP) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """A text as int16 samples at 16 kHz, and its words with the seconds at which they begin and end."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(LETTER * RATE)) / RATE
    parts, words, at = [np.zeros(int(gap * RATE))], [], gap
    for word in text.split():
        parts += [np.sin(2 * np.pi * TONES[letter] * time) for letter in word] + [np.zeros(int(gap * RATE))]
        words.append((word, at, at + len(word) * LETTER))
        at = words[-1][2] + gap
    samples = np.concatenate(parts)
    return (9000 * samples + QUIET * rng.normal(size=len(samples))).astype(np.int16), words


def random_text(rng: np.random.Generator, num_words: int) -> str:
    """Words of two to five letters, no letter twice in a row."""
    words = []
    for _ in range(num_words):
        word = ""
        while len(word) < rng.integers(2, 6):
            word += rng.choice([letter for letter in TONES if not word.endswith(letter)])
        words.append(word)
    return " ".join(words)


def trained_run(experiment: Experiment = EXPERIMENT) -> Path:
    """The folder of a run that spells tones, trained once a session by whichever process needs it first."""
    shared = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "trained_tones"
    shared = shared / ("streaming" if experiment is STREAMING else "whole")
    shared.mkdir(exist_ok=True, parents=True)
    folder = shared / "tones"
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "done").exists():
            save_run(folder, experiment, TOKENIZER, params=_train(experiment))
            (shared / "done").touch()
    return folder


def _train(experiment: Experiment) -> functional.Params:
    """Frame by frame, since it is known where each letter sounds: CTC from scratch would take minutes."""
    objective = CTC().build(experiment.model, experiment.frontend, TOKENIZER)
    graphdef = functional.declare(objective.make).graphdef
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 8e-3, 10, _STEPS))
    params = functional.init(objective.make, jax.random.key(0))
    rng = np.random.default_rng(0)

    def loss_fn(params, batch, targets_BxT, key):
        x_BxTxF, length_B = log_mel(batch["audio"], batch["audio_length"], experiment.frontend.mel)
        chunk = draw_chunk(experiment.model, key)
        (logits_BxTxV,) = functional.bind(graphdef, params)(x_BxTxF, length_B, chunk=chunk)
        loss_BxT = optax.softmax_cross_entropy_with_integer_labels(logits_BxTxV, targets_BxT)
        inside_BxT = jnp.arange(targets_BxT.shape[1]) < length_B[:, None]
        return jnp.sum(loss_BxT * inside_BxT) / jnp.sum(inside_BxT)

    # Tests compile without optimisation; this program runs long enough to pay for it.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(params, state, batch, targets_BxT, key):
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch, targets_BxT, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    for key in jax.random.split(jax.random.key(1), _STEPS):
        params, state, loss = step(params, state, *_batch(rng), key)
    assert loss < 0.2, f"the tiny recognizer has not learnt its language: {loss}"
    return jax.device_get(params)


def _batch(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    audio, lengths = np.zeros((_ROWS, _SECONDS * RATE), np.int16), np.zeros(_ROWS, np.int32)
    targets = np.zeros((_ROWS, MEL.num_frames(_SECONDS * RATE)), np.int32)
    for row in range(_ROWS):
        samples, words = speak(random_text(rng, rng.integers(1, 9)), rng.integers(2**31), rng.uniform(0.15, 0.6))
        samples = samples[: _SECONDS * RATE]
        audio[row, : len(samples)], lengths[row] = samples, len(samples)
        for word, start, end in words:
            spoken = [(letter, start + place * LETTER, LETTER) for place, letter in enumerate(word)]
            spoken.append((" ", end, 2 * FRAME))  # right behind a word, whatever the pause
            for letter, at, seconds in spoken:
                frames = slice(round(at / FRAME), round((at + seconds) / FRAME))
                targets[row, frames] = TOKENIZER.encode(letter)[0]
    return {"audio": audio, "audio_length": lengths}, targets
