"""A recognizer of streams returns what one pass returns, in any cut and any company, and says what it cannot do."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_speechlm
from data_pipelines.audio.decode import AudioError
from data_pipelines.audio.wav import write_wav
from jax_speechlm.cli import main
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.ctc.alignment import Span, words_of
from jax_speechlm.decoding.ctc.posteriors import Frames, path_spans
from jax_speechlm.decoding.transducer import greedy
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import log_mel
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.streaming import StreamingEncoder
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.training.runs import LoadedRun
from tests.contracts.streaming import random_cuts
from tests.evaluation.runs import save_run
from tests.trained_tones import FRAME, QUIET, STREAMING, TOKENIZER, speak, trained_run

TEXTS = ["ab cab", "bac ab cba bca", "cb"]


@pytest.fixture(scope="module")
def model():
    return jax_speechlm.load(trained_run(STREAMING))


@pytest.fixture(scope="module")
def recordings():
    return [speak(text, seed)[0] for seed, text in enumerate(TEXTS)]


def words_of_one_pass(model, samples, chunk_length):
    """The words that the model's full pass under the chunk's mask gives, by the functions of whole recordings."""
    objective = CTC().build(STREAMING.model, STREAMING.frontend, TOKENIZER)
    module = functional.bind(functional.declare(objective.make).graphdef, model.model.run.params)
    padded = np.zeros((1, 5 * 16_000), np.int16)
    padded[0, : len(samples)] = samples
    x, length = log_mel(jnp.asarray(padded), jnp.array([len(samples)]), STREAMING.frontend.mel)
    (logits,) = module(x, length, chunk=StreamingEncoder(STREAMING.model, chunk_length).chunk)
    log_probs = np.asarray(jax.nn.log_softmax(logits))[0, : int(length[0])]
    spans = path_spans(Frames.of(log_probs))
    text = " ".join(TOKENIZER.decode([span.token for span in spans]).split())
    return text, words_of(spans, TOKENIZER.pieces, FRAME, text)


def streamed(stream, samples, pieces):
    """The transcript, and all partial transcripts."""
    at, partials = 0, []
    for piece in pieces:
        partials.append(stream.accept(samples[at : at + piece]))
        at += piece
    assert at == len(samples)
    return stream.finalize(), partials


def check_words(found, expected):
    assert [word.word for word in found] == [word.word for word in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.start, one.end) == pytest.approx((other.start, other.end))
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


@pytest.mark.parametrize("chunk_length", [2, 4])
def test_any_cut_gives_the_words_of_one_pass(model, recordings, chunk_length):
    chunk_ms = 40 * chunk_length
    for samples, said in zip(recordings, TEXTS, strict=True):
        text, words = words_of_one_pass(model, samples, chunk_length)
        assert text == said  # the model has learnt to stream
        whole = len(samples)
        small = [min(700, whole - at) for at in range(0, whole, 700)]
        coarse = [40 * piece for piece in random_cuts(0, whole // 40)]
        for pieces in ([whole], small, [*coarse, whole % 40], [0, 1, whole - 1, 0]):
            stream = model.stream(chunk_ms=chunk_ms)
            transcript, partials = streamed(stream, samples, pieces)
            assert transcript.text == text
            check_words(transcript.words, words)
            for partial in partials:
                assert partial.text.startswith(partial.stable)
                assert text.startswith(partial.stable)
                assert partial.revised == 0  # the last word grows only
    assert stream._batch.program.step._cache_size() == 1


def test_a_transducer_streams_what_one_pass_gives(model, recordings, tmp_path):
    """A TDT model on the trained encoder, whose predictor and joint network have learnt nothing."""
    objective = Transducer(durations=(0, 1, 3), network=TransducerConfig(dim=16, dropout=0.0))
    make = objective.build(STREAMING.model, STREAMING.frontend, TOKENIZER).make
    params = {**functional.init(make, jax.random.key(0)), "encoder": model.model.run.params["encoder"]}
    params["joint"]["kernel"] *= 3  # so that it emits several tokens
    save_run(tmp_path / "run", STREAMING.replace(objective=objective), TOKENIZER, params=params)
    module = functional.bind(functional.declare(make).graphdef, params)
    samples = recordings[0]
    x, length = log_mel(jnp.asarray(samples)[None], jnp.array([len(samples)]), STREAMING.frontend.mel)
    hidden, _ = module.encoder(x, length, chunk=StreamingEncoder(STREAMING.model, 2).chunk)
    state = greedy.init_state(module, 1)
    _, found = greedy.step(module, state, module.project(hidden), length, objective.durations)
    places = np.nonzero(found.tokens[0])
    columns = (np.asarray(part[0])[places].tolist() for part in (found.tokens, found.durations, found.log_probs))
    spans = [
        Span(token, frame, frame + max(duration, 1), log_prob * max(duration, 1))
        for frame, token, duration, log_prob in zip(places[0].tolist(), *columns, strict=True)
    ]
    assert len({span.token for span in spans}) > 1
    text = " ".join(TOKENIZER.decode([span.token for span in spans]).split())
    opened = jax_speechlm.load(tmp_path / "run")
    for pieces in ([len(samples)], [min(700, len(samples) - at) for at in range(0, len(samples), 700)]):
        transcript, _ = streamed(opened.stream(chunk_ms=80), samples, pieces)
        assert transcript.text == text
        check_words(transcript.words, words_of(spans, TOKENIZER.pieces, FRAME, text))


def test_a_short_recording_has_no_words(model):
    for length in (0, 1, 879):
        transcript, _ = streamed(model.stream(), np.zeros(length, np.int16), [length])
        assert (transcript.text, transcript.segments, transcript.seconds) == ("", (), length / 16_000)


def test_partial_transcripts_come_as_soon_as_their_chunk_is_complete(model, recordings):
    stream = model.stream(chunk_ms=80)
    latency = stream._batch.program.latency_seconds
    assert latency == pytest.approx(0.095)
    samples, words = speak("abc", 1)
    at = 0
    while not stream.accept(samples[at : at + 160]).text:
        at += 160
    assert at / 16_000 <= words[0][1] + latency + 2 * FRAME  # the tone has to fill a frame


def test_streams_of_a_batch_join_and_leave_without_changing_each_other(model, recordings):
    batch = model.streams(2, chunk_ms=80)
    expected = [streamed(model.stream(chunk_ms=80), samples, [len(samples)])[0] for samples in recordings]
    one, two = batch.join(), batch.join()
    with pytest.raises(ValueError, match="all 2 streams are open"):
        batch.join()
    half = len(recordings[1]) // 2
    batch.accept({one: recordings[0][:3000], two: recordings[1][:half]})
    batch.accept({one: recordings[0][3000:]})
    found = {0: one.finalize()}
    three = batch.join()  # in the row that has just been left
    three.accept(np.full(5000, 9000, np.int16))
    three.leave()
    three = batch.join()
    batch.accept({three: recordings[2], two: recordings[1][half:]})
    ended = batch.finalize([two, three])
    found |= {1: ended[two], 2: ended[three]}
    for number, transcript in found.items():
        assert transcript.text == expected[number].text == TEXTS[number]
        check_words(transcript.words, expected[number].words)
    with pytest.raises(ValueError, match="this stream has ended"):
        one.accept(recordings[0])
    assert batch.program.step._cache_size() <= 2  # this batch size, and one stream


def test_segments_end_at_pauses_whatever_the_chunks(model):
    first, second = speak("ab cb", 0)[0], speak("bac", 1)[0]
    pause = (QUIET * np.random.default_rng(0).normal(size=16_000)).astype(np.int16)
    samples = np.concatenate([first, pause, second])
    ends = []
    for chunk_ms in (80, 160):
        stream = model.stream(chunk_ms=chunk_ms, endpointing=Endpointing(silence_seconds=0.6))
        stream.accept(samples)
        assert [segment.text for segment in stream.segments] == ["ab cb"]
        assert stream.partial.text.startswith("bac"[:2])
        transcript = stream.finalize()
        assert transcript.text == "ab cb bac"
        ends.append([segment.end for segment in transcript.segments])
    assert ends[0][0] == pytest.approx(len(first) / 16_000 - 0.2, abs=3 * FRAME)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0.1, np.nan], np.float32), "sample 1 is nan; check what records"),
        (np.array([0.1, 3000.0], np.float32), r"float samples reach 3000; scale them to \[-1, 1\]"),
        (np.zeros((2, 2), np.int16), r"samples are int16 \[2, 2\]; give int16.* at 16000 Hz"),
        (np.zeros(4, np.int32), r"samples are int32 \[4\]"),
    ],
)
def test_wrong_samples_are_refused_and_the_stream_goes_on(model, recordings, samples, message):
    stream, half = model.stream(chunk_ms=160), len(recordings[0]) // 2
    stream.accept(recordings[0][:half])
    with pytest.raises(AudioError, match=message):
        stream.accept(samples)
    stream.accept(recordings[0][half:].astype(np.float32) / 32768)
    assert stream.finalize().text == TEXTS[0]


def test_what_a_run_was_not_trained_for_is_refused(model):
    with pytest.raises(ValueError, match=r"not trained on chunks of 320 ms: choose one of 80, 160 ms"):
        model.stream(chunk_ms=320)
    with pytest.raises(CheckpointError, match=r"was not trained to stream: model.chunk_lengths is empty"):
        jax_speechlm.load(trained_run()).stream()
    beam = jax_speechlm.load(trained_run(STREAMING), Decoding(decoder="beam"))
    with pytest.raises(ValueError, match="greedy search with one model"):
        beam.stream()
    fast = FastConformerConfig(
        input_dim=16, dim=8, num_layers=1, num_heads=2, channels=4, causal=True, chunk_lengths=(2,), left_context=4
    )
    mel = STREAMING.frontend.mel.replace(variant="nemo", stack=1)
    run = LoadedRun(Path("runs/a"), 0, STREAMING.replace(model=fast, frontend=FrontEnd(mel=mel)), TOKENIZER, {})
    with pytest.raises(CheckpointError, match="would shift a running mean: train with --frontend"):
        Recognizer((run,)).streams(1, None, Endpointing())


def test_the_command_prints_partial_transcripts_as_lines_of_json(recordings, tmp_path, capsys):
    file = tmp_path / "said.wav"
    write_wav(file, recordings[1] / np.float32(32768), 16_000)
    main(["transcribe", str(trained_run(STREAMING)), str(file), "--stream", "--chunk-ms", "160"])
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert last["text"] == TEXTS[1]
    assert last["segments"][0]["words"][0]["word"] == "bac"
    assert {line["file"] for line in lines} == {str(file)}
    assert len(lines) >= 3
    for line, following in itertools.pairwise(lines):
        assert following["text"].startswith(line["stable"])
        assert following["seconds"] > line["seconds"]
