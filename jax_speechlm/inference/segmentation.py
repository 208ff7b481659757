"""Cuts recordings of any length into windows at quiet places and batches them in few shapes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16

from data_pipelines.audio.decode import AudioError, stream
from data_pipelines.batching.speech import Batch
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE

_SILENCE = 32.0  # RMS, of 32,768: -60 dB of full scale

# Shapes and sizes of batches count samples; at another rate they last longer or shorter, with the same results.
_LONGEST = 30 * DEFAULT_SAMPLE_RATE
_EDGES = sorted(int(_LONGEST * share / 2**halvings) for share in (1.0, 0.75) for halvings in range(5))
_ENDLESS = 10**6  # seconds, upper limit of settings

Samples = Int16[np.ndarray, "..."]

Recording = str | os.PathLike | bytes | np.ndarray
"""A path of an audio file, its bytes, or int16 [samples] at the front end's rate."""


class AudioWindow(NamedTuple):
    """Part of a recording that a model encodes at once. The stretches from `start` to `end` tile the recording.

    Attributes:
      samples: audio of the stretch and of the overlaps around it; None for silence, which is not encoded.
      begin: position of `samples` in the recording.
      start: first sample of the stretch.
      end: one past its last sample.
    """

    samples: Samples | None
    begin: int
    start: int
    end: int


def blocks_of(recording: Recording, sample_rate: int = DEFAULT_SAMPLE_RATE) -> Iterable[Samples]:
    """Returns a recording's samples in blocks, of files at `sample_rate`. Raises `AudioError`, at once or later."""
    if not isinstance(recording, np.ndarray):
        return stream(recording if isinstance(recording, bytes) else Path(recording), rate=sample_rate)
    if recording.ndim != 1 or recording.dtype != np.int16 or not len(recording):
        raise AudioError(
            "audio",
            f"an array of {recording.dtype} {list(recording.shape)}",
            f"give int16 [samples] at {sample_rate} Hz, at least one, or the bytes of a file",
        )
    return [recording]


def windows(
    blocks: Iterable[Samples],
    max_samples: int,
    *,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
    overlap: int = 0,
    multiple: int = 1,
    skip_silence: bool = False,
) -> Iterator[AudioWindow]:
    """Cuts a recording at the quietest 0.2 s in the second half of each window.

    The windows depend on the samples, not on the division into blocks; at most a window and a block are in memory.

    Args:
      max_samples: longest window, including overlaps. A recording of at most this length is one window.
      overlap: samples added on either side of a stretch.
      multiple: starts of stretches and overlaps are multiples of it, in samples: one frame.
      skip_silence: leave out all but half a second of silence (below -60 dB of full scale) of two seconds or more.
    """
    pause, long_silence, margin = sample_rate // 5, 2 * sample_rate, sample_rate // 2
    overlap = overlap // multiple * multiple
    most = (max_samples - 2 * overlap) // multiple * multiple
    if most < 2 * max(pause, multiple):
        raise ValueError(
            f"windows of {max_samples / sample_rate:g} s are too short to be cut: make --max-seconds 2 or more"
        )
    blocks = iter(blocks)
    pending, begin, start = np.zeros(0, np.int16), 0, 0
    while True:
        parts, held = [pending], len(pending)
        while held <= max_samples and (block := next(blocks, None)) is not None:
            parts.append(block)
            held += len(block)
        pending = np.concatenate(parts) if len(parts) > 1 else pending
        if len(pending) <= max_samples:
            yield AudioWindow(pending, begin, start, begin + len(pending))
            return
        ahead = pending[start - begin :][:most]
        if skip_silence and (quiet := _leading_silence(ahead, sample_rate * 30 // 1000)) >= long_silence:
            end = start + (quiet - margin) // multiple * multiple
            yield AudioWindow(None, start, start, end)
        else:
            end = start + max(_quietest(ahead, pause) // multiple, 1) * multiple
            yield AudioWindow(pending[: end + overlap - begin], begin, start, end)
        pending = pending[max(end - overlap - begin, 0) :]
        begin, start = max(end - overlap, begin), end


def _quietest(samples: Samples, pause: int) -> int:
    """Returns the middle of the quietest `pause` samples in the second half."""
    half = len(samples) // 2
    energy = np.cumsum(samples[half:].astype(np.float64) ** 2)
    return half + int((energy[pause:] - energy[:-pause]).argmin()) + pause // 2


def _leading_silence(samples: Samples, frame: int) -> int:
    """Returns the number of samples before the first `frame` samples above the silence level."""
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame).astype(np.float32)
    loud = np.flatnonzero(np.sqrt(np.mean(frames**2, axis=1)) > _SILENCE)
    return (int(loud[0]) if len(loud) else len(frames)) * frame


def is_silent(samples: Samples, sample_rate: int = DEFAULT_SAMPLE_RATE) -> bool:
    """Returns whether no 30 ms of some samples are above -60 dB of full scale."""
    frame = sample_rate * 30 // 1000
    return _leading_silence(samples, frame) >= len(samples) // frame * frame


def samples_in(max_seconds: float, sample_rate: int = DEFAULT_SAMPLE_RATE) -> int:
    """Converts --max-seconds to samples; raises `ValueError` if it is out of range."""
    if not 0 < max_seconds < _ENDLESS:
        raise ValueError(f"--max-seconds must be above 0 and below {_ENDLESS:,}, got {max_seconds:g}")
    return int(max_seconds * sample_rate)


def cut_at_pauses(recording: Recording, max_seconds: float, sample_rate: int = DEFAULT_SAMPLE_RATE) -> list[Samples]:
    """Cuts a recording into parts of at most `max_seconds` at quiet places."""
    blocks, longest = blocks_of(recording, sample_rate), samples_in(max_seconds, sample_rate)
    return [window.samples for window in windows(blocks, longest, sample_rate=sample_rate)]


def in_groups(
    recordings: Iterable[Recording], sample_rate: int, max_seconds: float, seconds_per_batch: float
) -> Iterator[list[tuple[Recording, list[Samples]]]]:
    """Cuts recordings into parts of at most `max_seconds`; yields groups of recordings that fill a batch.

    At most a batch and a recording are in memory. Raises `AudioError` if a recording cannot be read.
    """
    waiting: list[tuple[Recording, list[Samples]]] = []
    samples = 0
    for recording in recordings:
        waiting.append((recording, cut_at_pauses(recording, max_seconds, sample_rate)))
        samples += sum(shape_of(len(part)) for part in waiting[-1][1])
        if samples >= seconds_per_batch * DEFAULT_SAMPLE_RATE:
            yield waiting
            waiting, samples = [], 0
    if waiting:
        yield waiting


def name_of(recording: Recording) -> str:
    """Returns a recording's name for error messages."""
    return str(recording) if isinstance(recording, str | os.PathLike) else "audio"


def shape_of(num_samples: int) -> int:
    """Returns the padded length of a row: one of ten lengths up to 30 s, beyond that 30 s times a power of two."""
    for edge in _EDGES:
        if num_samples <= edge:
            return edge
    return _LONGEST << (-(-num_samples // _LONGEST) - 1).bit_length()


def row_counts(num_samples: int, seconds_per_batch: float) -> list[int]:
    """Returns the possible batch sizes for rows of a padded length: 1, and 4, 16, ... while they fit."""
    if not 0 < seconds_per_batch < _ENDLESS:
        raise ValueError(f"--seconds-per-batch must be above 0 and below {_ENDLESS:,}, got {seconds_per_batch:g}")
    counts = [1]
    while 4 * counts[-1] * num_samples <= seconds_per_batch * DEFAULT_SAMPLE_RATE:
        counts.append(4 * counts[-1])
    return counts


def shapes(max_seconds: float, seconds_per_batch: float) -> list[tuple[int, int]]:
    """Returns all batch shapes (rows, samples) of `in_batches` for parts of at most `max_seconds`."""
    longest = shape_of(samples_in(max_seconds))
    lengths = [edge for edge in _EDGES if edge < longest]
    while lengths and (following := shape_of(lengths[-1] + 1)) < longest:
        lengths.append(following)
    return [(rows, length) for length in [*lengths, longest] for rows in row_counts(length, seconds_per_batch)]


def in_batches(parts: Sequence[Samples], seconds_per_batch: float = 60.0) -> Iterator[Batch]:
    """Batches recordings by padded length; `example_id` is the position in `parts`, -1 in filler rows.

    A row's length depends on its recording alone, and lengths and batch sizes are few, so few programs are compiled. At
    most a quarter of a batch is filler rows. A batch of several rows has at most `seconds_per_batch` of padded audio.
    """
    by_shape: dict[int, list[int]] = {}
    for number, part in enumerate(parts):
        by_shape.setdefault(shape_of(len(part)), []).append(number)
    for length, numbers in sorted(by_shape.items()):
        while numbers:
            counts = row_counts(length, seconds_per_batch)
            roomy = next((count for count in counts if 3 * count <= 4 * len(numbers) and len(numbers) <= count), None)
            rows = roomy or max(count for count in counts if count <= len(numbers))
            taken, numbers = numbers[:rows], numbers[rows:]
            yield _batch([parts[number] for number in taken], taken, rows, length)


def empty_batch(rows: int, num_samples: int) -> Batch:
    """Returns a batch of filler rows, to compile a program for that shape."""
    return _batch([], [], rows, num_samples)


def _batch(parts: Sequence[Samples], numbers: Sequence[int], rows: int, num_samples: int) -> Batch:
    batch = {
        "audio": np.zeros((rows, num_samples), np.int16),
        "audio_length": np.zeros(rows, np.int32),
        "example_id": np.full(rows, -1, np.int32),
        "weight": np.zeros(rows, np.float32),
    }
    for row, (number, part) in enumerate(zip(numbers, parts, strict=True)):
        batch["audio"][row, : len(part)] = part
        batch["audio_length"][row] = len(part)
        batch["example_id"][row] = number
        batch["weight"][row] = 1
    return batch
