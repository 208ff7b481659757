"""Live streams of a transducer by real clients: the same texts as the run's own streams have."""

import jax
import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.asr.transducer import TransducerRecognizer
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.serving.live import StreamLimits
from jax_speechlm.training.checkpoints import write
from jax_speechlm.training.runs import tokenizer_files
from tests.serving.service import serving
from tests.serving.test_live_streams import (
    COMPLETED,
    append,
    pcm,
    realtime,
    session,
    texts_of,
    transcript_at,
    until,
    vosk,
)
from tests.trained_tones import RATE, STREAMING, TOKENIZER, speak, trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The encoder that has learnt tones, with a predictor and a joint network that have learnt nothing."""
    objective = Transducer(network=TransducerConfig(dim=16, dropout=0.0), ctc_weight=0.0)
    make = objective.make_model(STREAMING.model, TOKENIZER)
    encoder = jax_speechlm.load(trained_run(STREAMING)).model.run.params["encoder"]
    params = {**functional.init(make, jax.random.key(0)), "encoder": encoder}
    params["joint"]["kernel"] *= 3  # so that it emits several tokens
    experiment = STREAMING.replace(objective=objective)
    meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(TOKENIZER)}
    folder = tmp_path_factory.mktemp("runs") / "tones"
    write(folder, params, meta | {"plan": "", "step": 0, "units": None})
    return folder


@pytest.fixture(scope="module")
def server(run):
    limits = StreamLimits(max_streams=2, stream_minutes=0.5, silent_seconds=20)
    with serving(TransducerRecognizer.load(run), streams=limits) as server:
        yield server


def own_text(run, samples, endpointing=Endpointing()):  # noqa: B008  frozen
    stream = jax_speechlm.load(run).stream(endpointing=endpointing)
    stream.accept(samples)
    return stream.finalize().text


def test_vosk_has_the_text_of_the_run(server, run):
    samples, _ = speak("ab cab bca", 0)
    expected = own_text(run, samples, Endpointing(silence_seconds=0.5))
    assert len(expected) > 3
    answers = vosk(server, samples.tobytes(), 3_200, {"sample_rate": RATE})
    assert " ".join(texts_of(answers)) == expected
    assert any(answer.get("partial") for answer in answers)


def test_openais_client_has_the_text_of_the_run(server, run):
    samples, _ = speak("cb ab", 1)
    with realtime(server) as connection:
        connection.session.update(session=session())
        append(connection, pcm(samples))
        connection.input_audio_buffer.commit()
        done = until(connection, COMPLETED)[-1]
    assert done.transcript == transcript_at(jax_speechlm.load(run), np.frombuffer(pcm(samples), "<i2"), 24_000)
