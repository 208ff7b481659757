"""Evaluates recognizers on streams: error rates and latency by the length of chunks, as if the audio were being spoken.

The clock is simulated: samples arrive at the rate at which they were recorded, and steps take the time that they were
measured to take. Whenever the recognizer is free it computes all that has arrived, in common steps of all streams, as
`jax-speechlm serve` does.
"""

import dataclasses
import heapq
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import PositiveFloat, PositiveInt
from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling, wer
from jax_speechlm.evaluation import report as reports
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.report import Score, Utterance
from jax_speechlm.evaluation.resampling import Interval
from jax_speechlm.inference.asr.align import align_utterances
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.asr.stream import Stream, StreamBatch
from jax_speechlm.inference.asr.transducer import TransducerRecognizer
from jax_speechlm.inference.segmentation import Samples

FULL_CONTEXT = "full context"
_PERCENTILES = 50, 95, 99


class Streaming(Config):
    """Evaluation of streams, of runs that were trained to stream.

    Attributes:
      stream: measure error rates and latency of streams, for each length of chunks; with full context for comparison.
      chunk_ms: lengths of chunks; all that the run was trained on by default.
      num_streams: streams at a time, which share steps.
      endpoint_ms: silence after speech that ends a turn. It affects the count of turns that were cut, nothing else.
    """

    stream: bool = False
    chunk_ms: tuple[PositiveInt, ...] = ()
    num_streams: PositiveInt = 1
    endpoint_ms: PositiveFloat = 500.0


class StreamingScore(Config):
    """Streams with one length of chunks.

    Attributes:
      chunk_ms: None for full context, which has error rates only.
      algorithmic_ms: longest time from a sample to the end of the chunk that it belongs to, with what the front end
        reads after it: the latency of a computer that takes no time.
      first_partial_ms: median from the start of the first word to the first partial transcript with text.
      emission_ms: median and 95th percentile from the end of a correct word to the first partial transcript from which
        on it does not change; None without correct words.
      revised: words that partial transcripts changed otherwise than by adding to their ends, by words of the final
        ones.
      finalisation_ms: 50th, 95th and 99th percentile from the last sample to the final transcript.
      cut_turns: utterances in which a pause ended a turn before the last word.
      real_time_factor: seconds of computation per second of audio, of all streams together.
      first_partial_interval, emission_intervals, revised_interval, finalisation_intervals, cut_interval: 95 % intervals
        by bootstrap over utterances (of `cut_turns` as a share, Wilson's); None for few. They do not include what
        varies between runs on a busy machine; nor is there one of the real-time factor, a single measurement.
    """

    chunk_ms: float | None
    wer: Score
    cer: Score
    algorithmic_ms: float | None = None
    first_partial_ms: float | None = None
    emission_ms: tuple[float, float] | None = None
    revised: float | None = None
    finalisation_ms: tuple[float, float, float] | None = None
    cut_turns: int | None = None
    real_time_factor: float | None = None
    first_partial_interval: Interval | None = None
    emission_intervals: tuple[Interval, ...] = ()
    revised_interval: Interval | None = None
    finalisation_intervals: tuple[Interval, ...] = ()
    cut_interval: Interval | None = None


class StreamingReport(base.SetReport):
    """Error rates and latency of streams.

    Attributes:
      normalizer: applied before words are compared.
      settings: what was measured.
      utterances: their number; word times are missing for `unaligned` of them.
      rows: by length of chunks, full context last.
    """

    normalizer: NormalizerName
    settings: Streaming
    utterances: int
    unaligned: int
    rows: tuple[StreamingScore, ...]

    def tables(self) -> Iterator[Table]:
        """Yields the table of error rates and the one of latencies."""
        table = base.new_table("chunk", "WER [95 %]", "CER [95 %]", title=f"{self.title}, streams")
        for row in self.rows:
            table.add_row(_name(row), str(row.wer), str(row.cer))
        yield table
        rows = [row for row in self.rows if row.chunk_ms is not None]
        title = f"latency in ms [95 %], {self.settings.num_streams} streams at a time"
        table = base.new_table("chunk", *map(_name, rows), title=title)
        table.add_row("algorithmic", *(_number(row.algorithmic_ms) for row in rows))
        table.add_row("first text", *(_number(row.first_partial_ms, row.first_partial_interval) for row in rows))
        for name, values, bounds in (
            ("words", "emission_ms", "emission_intervals"),
            ("end", "finalisation_ms", "finalisation_intervals"),
        ):
            for place, percentile in enumerate(_PERCENTILES[: 2 if name == "words" else 3]):
                of_rows = ((getattr(row, values), getattr(row, bounds)) for row in rows)
                cells = (
                    "-" if each is None else _number(each[place], *ends[place : place + 1]) for each, ends in of_rows
                )
                table.add_row(f"{name}, {percentile} %", *cells)
        revised = ("-" if row.revised is None else base.percent(row.revised, row.revised_interval) for row in rows)
        table.add_row("revised", *revised)
        table.add_row("cut", *(base.percent((row.cut_turns or 0) / self.utterances, row.cut_interval) for row in rows))
        table.add_row("RTF", *(f"{row.real_time_factor:.3f}" for row in rows))
        table.caption = (
            "first text: from the start of the first word, median; words: from the end of a correct word, by forced "
            "alignment, until it does not change; end: from the last sample to the transcript; revised: words that "
            "partial transcripts changed, by words of the final ones; cut: utterances whose turn a pause of "
            f"{self.settings.endpoint_ms:g} ms ended before the last word"
        )
        yield table


def evaluate_streams(
    recognizer: Recognizer | TransducerRecognizer,
    recordings: Mapping[int, Samples],
    utterances: Sequence[Utterance],
    settings: Streaming,
    normalizer: NormalizerName,
    word_times: Mapping[int, Sequence[tuple[float, float]]],
) -> StreamingReport:
    """Measures streams of recordings.

    Args:
      recordings: samples by row, int16.
      utterances: their references and the transcripts of whole recordings, by row.
      word_times: start and end in seconds of the references' words by row, of those that could be aligned.

    Raises:
      CheckpointError, ValueError: as `Recognizer.streams`.
    """
    endpointing = Endpointing(silence_seconds=settings.endpoint_ms / 1000)
    frame_ms = 1000 * recognizer.experiment.frame_samples / recognizer.experiment.sample_rate
    trained = recognizer.streams(1, None, endpointing).program.encoder.config.chunk_lengths
    chunks = settings.chunk_ms or [round(frame_ms * length) for length in sorted(trained)]
    rows = []
    for chunk_ms in chunks:
        batch = recognizer.streams(settings.num_streams, chunk_ms, endpointing)
        _compile(batch)
        runs, seconds = simulate(batch, recordings, chunk_ms / 1000)
        streamed = [each.replace(hypothesis=runs[row].text) for row, each in enumerate(utterances)]
        scored = reports.evaluate(streamed, normalizer)
        rows.append(_score(batch, float(chunk_ms), runs, seconds, utterances, word_times, scored, recordings))
    scored = reports.evaluate(utterances, normalizer)
    rows.append(StreamingScore(chunk_ms=None, wer=scored.wer, cer=scored.cer))
    return StreamingReport(
        normalizer=normalizer,
        settings=settings,
        utterances=len(utterances),
        unaligned=len(utterances) - len(word_times),
        rows=tuple(rows),
    )


def times_of_words(
    recognizer: Recognizer, posteriors: Mapping[int, np.ndarray], utterances: Sequence[Utterance]
) -> dict[int, list[tuple[float, float]]]:
    """Aligns references with the recognizer's log-probabilities; returns start and end of each word by row."""
    texts = [
        (str(row), utterances[row].reference, utterances[row].duration, log_probs)
        for row, log_probs in posteriors.items()
    ]
    aligned, _ = align_utterances(recognizer, texts, by_character=False)
    return {int(each.id): [(word.start, word.end) for word in each.words] for each in aligned}


@dataclasses.dataclass
class StreamedUtterance:
    """What a stream gave, in seconds since its first sample.

    Attributes:
      partials: times of partial transcripts and their words.
      revised: words that they changed.
      ended: time of the final transcript.
      text: the final transcript.
      turns: end of each turn but the last, by endpointing.
    """

    partials: list[tuple[float, list[str]]] = dataclasses.field(default_factory=list)
    revised: int = 0
    ended: float = 0.0
    text: str = ""
    turns: list[float] = dataclasses.field(default_factory=list)


def simulate(
    batch: StreamBatch, recordings: Mapping[int, Samples], piece_seconds: float
) -> tuple[dict[int, StreamedUtterance], float]:
    """Plays recordings to the streams of a batch, several at a time, each after the one before it.

    Args:
      piece_seconds: length of the pieces in which samples arrive.

    Returns:
      What the streams gave, by row, and the seconds of computation.
    """
    size = max(round(piece_seconds * batch.sample_rate), 1)
    waiting = iter(recordings.items())
    # Arrivals: (time, order, row, stream, start of the piece). Streams begin at different times within a piece.
    arrivals: list[tuple[float, int, int, Stream, int]] = []
    order, began, results = itertools.count(), {}, {row: StreamedUtterance() for row in recordings}

    def begin(at: float) -> None:
        row, _ = next(waiting, (None, None))
        if row is not None:
            began[row] = at
            arrive(row, batch.join(), 0)

    def arrive(row: int, stream: Stream, start: int) -> None:
        end = min(start + size, len(recordings[row])) / batch.sample_rate
        heapq.heappush(arrivals, (began[row] + end, next(order), row, stream, start))

    for number in range(batch.num_streams):
        begin(piece_seconds * number / batch.num_streams)
    free = busy = 0.0
    while arrivals:
        free = max(free, arrivals[0][0])
        here = []
        while arrivals and arrivals[0][0] <= free:
            here.append(heapq.heappop(arrivals)[2:])
        before = time.perf_counter()
        partials = batch.accept({stream: recordings[row][start : start + size] for row, stream, start in here})
        last = [(row, stream) for row, stream, start in here if start + size >= len(recordings[row])]
        between = time.perf_counter()
        transcripts = batch.finalize(stream for _, stream in last)
        after = time.perf_counter()
        ready, free, busy = free + between - before, free + after - before, busy + after - before
        for row, stream, start in here:
            partial, result = partials[stream], results[row]
            words = [word for segment in stream.segments for word in segment.text.split()] + partial.text.split()
            result.partials.append((ready - began[row], words))
            result.revised += partial.revised
            if start + size < len(recordings[row]):
                arrive(row, stream, start + size)
        for row, stream in last:
            transcript, result = transcripts[stream], results[row]
            result.ended, result.text = free - began[row], transcript.text
            result.turns = [segment.end for segment in transcript.segments[:-1]]
            begin(free)
    return results, busy


def emission_times(streamed: StreamedUtterance) -> list[float]:
    """Returns for each word of the final transcript the time from which on every partial transcript has it, with those
    before it."""
    final = streamed.text.split()
    times = [streamed.ended] * len(final)
    lasting = len(final)
    for ready, words in reversed(streamed.partials):
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(final, words, strict=False))
        lasting = min(lasting, sum(1 for _ in same))
        times[:lasting] = [ready] * lasting
    return times


def _compile(batch: StreamBatch) -> None:
    stream = batch.join()
    stream.accept(np.zeros(4 * batch.sample_rate, np.int16))
    stream.finalize()


def _score(
    batch: StreamBatch,
    chunk_ms: float,
    runs: Mapping[int, StreamedUtterance],
    busy: float,
    utterances: Sequence[Utterance],
    word_times: Mapping[int, Sequence[tuple[float, float]]],
    scored: reports.EvaluationReport,
    recordings: Mapping[int, Samples],
) -> StreamingScore:
    first, delays, ends, cut, num_words = [], [], [], 0, []
    for row, streamed in runs.items():
        seconds = len(recordings[row]) / batch.sample_rate
        ends.append((row, 1000 * (streamed.ended - seconds)))
        num_words.append(len(streamed.text.split()))
        if not (times := word_times.get(row)):
            continue
        cut += any(end < times[-1][0] for end in streamed.turns)
        if (shown := next((ready for ready, words in streamed.partials if words), None)) is not None:
            first.append((row, 1000 * (shown - times[0][0])))
        emitted = emission_times(streamed)
        for reference, hypothesis in _correct_words(utterances[row].reference, streamed.text):
            delays.append((row, 1000 * (emitted[hypothesis] - times[reference][1])))
    revised = [streamed.revised for streamed in runs.values()]
    return StreamingScore(
        chunk_ms=chunk_ms,
        wer=scored.wer,
        cer=scored.cer,
        algorithmic_ms=1000 * batch.program.latency_seconds,
        first_partial_ms=_percentiles(first, (50,))[0] if first else None,
        first_partial_interval=next(iter(_intervals(first, (50,))), None),
        emission_ms=_percentiles(delays, _PERCENTILES[:2]) if delays else None,
        emission_intervals=_intervals(delays, _PERCENTILES[:2]),
        revised=sum(revised) / sum(num_words) if sum(num_words) else None,
        revised_interval=resampling.bootstrap([np.array(revised), np.array(num_words)]),
        finalisation_ms=_percentiles(ends, _PERCENTILES),
        finalisation_intervals=_intervals(ends, _PERCENTILES),
        cut_turns=cut,
        cut_interval=resampling.wilson_interval(cut / len(runs), len(runs)),
        real_time_factor=busy / sum(len(samples) / batch.sample_rate for samples in recordings.values()),
    )


def _percentiles(values: Sequence[tuple[int, float]], percentiles: Sequence[int]) -> tuple[float, ...]:
    """Returns percentiles of values, each with its utterance."""
    return tuple(np.percentile([value for _, value in values], percentiles).tolist())


def _intervals(values: Sequence[tuple[int, float]], percentiles: Sequence[int]) -> tuple[Interval, ...]:
    """Returns the intervals of percentiles over utterances; none for few."""
    rows, values_of_rows = np.array(values, np.float64).reshape(-1, 2).T
    bounds = (resampling.bootstrap_quantile(values_of_rows, rows.astype(int), each / 100) for each in percentiles)
    return tuple(each for each in bounds if each is not None)


def _correct_words(reference: str, hypothesis: str) -> Iterator[tuple[int, int]]:
    """Yields the places of words that are equal in a minimum edit alignment."""
    references, hypotheses = reference.split(), hypothesis.split()
    if not references or not hypotheses:
        return
    (aligned,) = wer.align([" ".join(references)], [" ".join(hypotheses)], "word")
    at = [0, 0]
    for operation, _, _ in aligned.edits:
        if operation == "=":
            yield at[0], at[1]
        at[0] += operation != "I"
        at[1] += operation != "D"


def _name(row: StreamingScore) -> str:
    return FULL_CONTEXT if row.chunk_ms is None else f"{row.chunk_ms:g} ms"


def _number(value: float | None, interval: Interval | None = None) -> str:
    return "-" if value is None else base.number(value, interval, ".0f")
