"""Transducers that have learnt tones transcribe them with word times, whatever the batch, by either search."""

import fcntl
import functools
import itertools
import os
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jax_speechlm
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.lm.kneser_ney import estimate, write_arpa
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.transducer import TransducerRecognizer
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.training.runs import LoadedRun
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import save_run
from tests.trained_tones import EXPERIMENT, FRAME, RATE, TOKENIZER, random_text, speak, trained_run

OBJECTIVE = Transducer(durations=(0, 1, 2), network=TransducerConfig(dim=24, dropout=0.0), ctc_weight=0.1)
STEPS, ROWS, SAMPLES, TOKENS = 120, 8, 40_000, 14


@functools.cache
def trained() -> Path:
    """The folder of a run on the encoder of `trained_run`, trained once a session."""
    shared = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "trained_tones"
    encoder = LoadedRun.read(trained_run()).params["encoder"]
    with (shared / "transducer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "transducer.done").exists():
            experiment = EXPERIMENT.replace(objective=OBJECTIVE)
            save_run(shared / "transducer", experiment, TOKENIZER, params=_train(encoder))
            (shared / "transducer.done").touch()
    return shared / "transducer"


def _train(encoder: functional.Params) -> functional.Params:
    objective = OBJECTIVE.build(EXPERIMENT.model, EXPERIMENT.frontend, TOKENIZER)
    params = {**functional.init(objective.make, jax.random.key(0)), "encoder": encoder}
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 10, STEPS))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(params, state, batch):
        (loss, _), gradient = jax.value_and_grad(objective.loss, has_aux=True)(params, batch, None)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(STEPS):
        params, state, loss = step(params, state, _batch(rng))
    assert loss < 0.25
    return params


def _batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch = {"audio": np.zeros((ROWS, SAMPLES), np.int16), "tokens": np.zeros((ROWS, TOKENS), np.int32)}
    batch |= {name: np.zeros(ROWS, np.int32) for name in ("audio_length", "token_length", "example_id")}
    for row in range(ROWS):
        text = random_text(rng, int(rng.integers(1, 3)))
        samples, _ = speak(text, int(rng.integers(1 << 30)))
        ids = TOKENIZER.encode(text)
        batch["audio"][row, : len(samples)], batch["tokens"][row, : len(ids)] = samples, ids
        batch["audio_length"][row], batch["token_length"][row] = len(samples), len(ids)
    return batch | {"weight": np.ones(ROWS, np.float32)}


TEXTS = ["ab cab", "bc", "acb bca"]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(decoder="beam", beam_size=4)], ids=["greedy", "beam"])
def test_tones_are_transcribed_with_the_times_of_words(decoding):
    model = jax_speechlm.load(trained(), decoding)
    spoken = [speak(text, seed) for seed, text in enumerate(TEXTS)]
    transcripts = model.transcribe([samples for samples, _ in spoken])
    assert [each.text for each in transcripts] == TEXTS
    for transcript, (_, words) in zip(transcripts, spoken, strict=True):
        for word, (label, start, end) in zip(transcript.words, words, strict=True):
            assert word.word == label
            assert start - 0.2 < word.start < word.end < end + 4 * FRAME  # a transducer may wait, not foresee
            assert 0.2 < word.confidence <= 1
        (segment,) = transcript.segments
        assert segment.avg_logprob < 0
        assert (segment.alternatives[:1] == (transcript.text,)) == (decoding.decoder == "beam")
    alone = [model.transcribe(samples)[0] for samples, _ in spoken]
    for one, other in zip(alone, transcripts, strict=True):
        assert (one.text, [w.start for w in one.words]) == (other.text, [w.start for w in other.words])
        assert one.segments[0].avg_logprob == pytest.approx(other.segments[0].avg_logprob, abs=1e-3)


def test_long_recordings_have_times_from_their_beginning():
    samples, _ = speak("ab cab bc acb bac ab", gap=0.5)
    (transcript,) = jax_speechlm.load(trained()).transcribe(samples, max_seconds=2.0)
    assert len(transcript.segments) > 2
    starts = [word.start for word in transcript.words]
    assert starts == sorted(starts)
    for segment, following in itertools.pairwise(transcript.segments):
        assert segment.end < following.end
        assert following.words[0].start > segment.words[-1].start
    assert len(samples) / RATE - 1.5 < transcript.words[-1].end < len(samples) / RATE


def test_language_models_help_and_their_weights_are_tuned(tmp_path):
    clips = [speak(text, seed)[0] for seed, text in enumerate(TEXTS)]
    write_prepared(
        tmp_path / "data" / "tones", {name: list(zip(clips, TEXTS, strict=True)) for name in ("dev", "test")}
    )
    write_arpa(estimate((list(text.replace(" ", "\u2581")) for text in TEXTS), 2), tmp_path / "lm.arpa")
    options = {"data_dir": tmp_path / "data", "out": tmp_path / "eval"}
    decoding = Decoding(lm=tmp_path / "lm.arpa", beam_size=4)
    report = evaluate_run(trained(), ("tones",), decoding=decoding, **options)
    assert "lm.arpa (alpha" in report.decoder
    assert "weights tuned on dev" in report.decoder
    assert report.wer.rate == evaluate_run(trained(), ("tones",), **options).wer.rate == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="only runs with CTC posteriors make an ensemble"):
        TransducerRecognizer.load(trained(), ensemble=(trained_run(),))
    with pytest.raises(CheckpointError, match="cannot transcribe with a transducer"):
        TransducerRecognizer.load(trained_run())


def test_the_head_is_a_ctc_recognizer():
    samples, _ = speak(TEXTS[0])
    (transcript,) = Recognizer.load(trained()).transcribe([samples])
    assert set(transcript.text) <= set("abc ")
