"""Latency of streams by a clock that the test sets, and error rates and latency of a run that has learnt to stream."""

from types import SimpleNamespace

import numpy as np
import pytest

import jax_speechlm
from data_pipelines.core.errors import DataError
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.decoding.ctc.alignment import Word
from jax_speechlm.evaluation import streaming
from jax_speechlm.evaluation.streaming import (
    StreamedUtterance,
    Streaming,
    StreamingReport,
    emission_times,
    simulate,
)
from jax_speechlm.inference.asr.hypothesis import Partial
from jax_speechlm.inference.asr.stream import Stream, StreamBatch
from jax_speechlm.inference.transcript import Segment, Transcript
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.objectives.asr.transducer import Transducer
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import save_run
from tests.trained_tones import STREAMING, TOKENIZER, random_text, speak, trained_run

RATE = 1_000


class CountingStream(Stream):
    """Finds a word, its number, in every second of samples."""

    segments = ()

    def __init__(self):
        self.num_samples = 0

    def accept(self, samples) -> Partial:
        self.num_samples += len(samples)
        words = tuple(Word(str(n), float(n), n + 1.0, 1.0) for n in range(self.num_samples // RATE))
        return Partial(self.num_samples / RATE, " ".join(word.word for word in words), "", words)


class CountingBatch(StreamBatch):
    """Streams whose steps take `step` seconds, however many they are, and whose ends take `end` seconds each."""

    sample_rate, num_streams = RATE, 1

    def __init__(self, clock, num_streams=1, step=0.1, end=0.2):
        self.clock, self.num_streams, self.step, self.end = clock, num_streams, step, end
        self.sizes, self.open = [], 0

    def join(self):
        self.open += 1
        assert self.open <= self.num_streams
        return CountingStream()

    def accept(self, samples):
        self.clock.now += self.step
        self.sizes.append(len(samples))
        return {stream: stream.accept(array) for stream, array in samples.items()}

    def finalize(self, streams):
        streams = list(streams)
        self.clock.now += self.end * len(streams)
        self.open -= len(streams)
        texts = [" ".join(map(str, range(stream.num_samples // RATE))) for stream in streams]
        segments = [(Segment(0.0, 1.0, text, 0.0),) for text in texts]
        return {
            stream: Transcript("", text, 1.0, None, ended)
            for stream, text, ended in zip(streams, texts, segments, strict=True)
        }


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_stream_alone_waits_for_its_pieces_and_steps(clock):
    batch = CountingBatch(clock)
    results, busy = simulate(batch, {0: np.zeros(2_500, np.int16)}, 0.5)
    assert [round(at, 6) for at, _ in results[0].partials] == [0.6, 1.1, 1.6, 2.1, 2.6]
    assert emission_times(results[0]) == pytest.approx([1.1, 2.1])
    assert results[0].ended == pytest.approx(2.5 + 0.1 + 0.2)
    assert busy == pytest.approx(5 * 0.1 + 0.2)


def test_what_arrives_during_a_step_shares_the_next_one(clock):
    batch = CountingBatch(clock, num_streams=4, step=0.45, end=0.0)
    recordings = {row: np.zeros(4_000, np.int16) for row in range(8)}
    results, busy = simulate(batch, recordings, 0.5)
    assert batch.open == 0
    assert sum(batch.sizes) == 8 * 8
    assert max(batch.sizes) == 4
    assert len(batch.sizes) < 8 * 8 / 2
    assert busy == pytest.approx(0.45 * len(batch.sizes))
    for streamed in results.values():
        assert streamed.text == "0 1 2 3"
        assert 0.45 <= streamed.ended - 4 <= 2 * 0.45  # one step in progress, and its own


def test_a_recognizer_that_is_too_slow_falls_behind(clock):
    results, _ = simulate(CountingBatch(clock, step=1.0), {0: np.zeros(5_000, np.int16)}, 0.5)
    assert results[0].ended > 10


def test_a_word_counts_from_when_it_stays():
    streamed = StreamedUtterance(ended=9.0, text="a b c")
    streamed.partials = [(1.0, []), (2.0, ["a"]), (3.0, ["a", "b"]), (4.0, ["a", "x"]), (5.0, ["a", "b"])]
    assert emission_times(streamed) == [2.0, 5.0, 9.0]
    assert emission_times(StreamedUtterance(ended=1.0)) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    texts = [random_text(rng, 1 + number % 4) for number in range(12)]
    folder = tmp_path_factory.mktemp("data")
    write_prepared(folder / "tones", {"test": [(speak(text, seed)[0], text) for seed, text in enumerate(texts)]})
    return folder


def test_a_run_that_streams(data, tmp_path):
    run = trained_run(STREAMING)
    report = jax_speechlm.evaluate(
        run, ["tones"], data_dir=data, out=tmp_path / "one", streaming=Streaming(stream=True, endpoint_ms=3_000)
    )
    assert StreamingReport.from_json((tmp_path / "one" / "report.json").read_bytes()) == report
    *rows, full = report.rows
    assert [row.chunk_ms for row in rows] == [40 * length for length in sorted(STREAMING.model.chunk_lengths)]
    assert (full.chunk_ms, full.finalisation_ms) == (None, None)
    assert (report.utterances, report.unaligned) == (12, 0)
    for row in rows:
        assert row.wer.rate <= 0.1
        assert row.algorithmic_ms > row.chunk_ms
        assert 0 < row.first_partial_ms < 1_500
        assert row.emission_ms[0] <= row.emission_ms[1]
        assert row.cut_turns == 0
        assert row.real_time_factor > 0
    several = jax_speechlm.evaluate(
        run,
        ["tones"],
        data_dir=data,
        out=tmp_path / "three",
        streaming=Streaming(stream=True, chunk_ms=(rows[0].chunk_ms,), num_streams=3, endpoint_ms=40),
    )
    assert several.rows[0].wer == rows[0].wer
    assert several.rows[0].cut_turns > 0  # every pause ends a turn


@pytest.mark.parametrize(("ctc_weight", "aligned"), [(0.3, 12), (0.0, 0)])
def test_a_transducer_is_aligned_by_its_ctc_head_if_it_has_one(data, tmp_path, ctc_weight, aligned):
    objective = Transducer(network=TransducerConfig(dim=8), ctc_weight=ctc_weight)
    run = save_run(tmp_path / "run", STREAMING.replace(objective=objective), TOKENIZER)
    chunk_ms = 40 * STREAMING.model.chunk_lengths[0]
    settings = Streaming(stream=True, chunk_ms=(chunk_ms,), num_streams=12)
    report = jax_speechlm.evaluate(run, ["tones"], data_dir=data, out=tmp_path / "out", streaming=settings)
    assert [row.chunk_ms for row in report.rows] == [chunk_ms, None]
    assert report.unaligned == 12 - aligned
    assert report.rows[0].real_time_factor > 0


def test_other_runs_are_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match="was not trained to stream"):
        jax_speechlm.evaluate(trained_run(), ["tones"], data_dir=data, streaming=Streaming(stream=True))
    with pytest.raises((ValueError, DataError), match="not trained on chunks of 70 ms"):
        jax_speechlm.evaluate(
            trained_run(STREAMING), ["tones"], data_dir=data, streaming=Streaming(stream=True, chunk_ms=(70,))
        )
