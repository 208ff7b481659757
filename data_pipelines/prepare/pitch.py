"""The command `jax-speechlm pitch`: measures the pitch of prepared speech, by pYIN in several processes."""

import collections
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tyro.conf import Positional

from data_pipelines.audio.decode import decode_flac
from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from data_pipelines.storage.index import Index, IndexMismatchError, Part
from data_pipelines.storage.pitch import PitchSettings, find_pitch, pitch_writer
from data_pipelines.storage.records import RecordReader

_MOST_PROCESSES = 16
_AHEAD = 4  # records per process that are read and not yet measured


def pitch(
    sets: Positional[tuple[str, ...]],
    hop: int = 256,
    low_hertz: float = 65.0,
    high_hertz: float = 500.0,
    processes: int | None = None,
    data_dir: Path = Path("data"),
) -> None:
    """Measures the fundamental frequency of prepared speech at every frame of a mel spectrogram (pYIN).

    The pitch is stored next to each set's index, a split at a time; splits with pitch of the same settings are kept.

    Args:
      sets: names of prepared data sets, with all splits; "name:split" selects one split.
      hop: samples from one frame to the next, as `frontend.mel.hop` of the runs that will use it.
      low_hertz: lowest fundamental frequency.
      high_hertz: highest fundamental frequency.
      processes: number of processes; by default one per core, at most 16.
      data_dir: folder of the prepared data sets.

    Raises:
      DataError: a set is missing or is text, its folder cannot be written, or every record is unreadable.
    """
    if not sets:
        raise DataError("name at least one prepared set: jax-speechlm pitch SET")
    if hop < 1 or (processes is not None and processes < 1):
        raise DataError("--hop and --processes must be at least 1")
    processes = processes or min(os.cpu_count() or 1, _MOST_PROCESSES)
    for name in sets:
        of_set, _, own_split = name.partition(":")
        for split in (own_split,) if own_split else indexes.splits_of(as_path(data_dir) / of_set):
            (part,) = indexes.read_sets(data_dir, (of_set,), split).parts
            settings = PitchSettings(part.sample_rate, hop, low_hertz, high_hertz)
            _check(settings)
            kept = find_pitch(part)
            if is_kept := kept is not None and kept.settings == settings:
                hertz, unreadable = kept.hertz, 0
            else:
                hertz, unreadable = measure_part(part, settings, processes)
            voiced = f"{np.mean(hertz > 0):.0%} voiced" if len(hertz) else "no frames"
            bad = f", {unreadable} could not be read and have none" if unreadable else ""
            print(f"{part}: {len(hertz):,} frames, {voiced}{bad}{' (kept)' if is_kept else ''}")


def measure_part(part: Part, settings: PitchSettings, processes: int) -> tuple[np.ndarray, int]:
    """Measures and stores the pitch of every utterance of a part.

    Returns:
      The pitch of all frames, and the number of unreadable records.
    """
    index = Index((part,))
    reader, lengths = RecordReader(index), index.num_samples
    rows, unreadable = [], 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        pitch_writer(part, settings) as write,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        measured = _measure(lambda row: reader.read(row)[0], part.num_rows, settings, processes)
        for row, found in enumerate(progress.track(measured, part.num_rows, description=f"{part}: pitch")):
            if found is None:
                unreadable += 1
                found = (int(lengths[row]), np.zeros(0, np.float32))
            if found[0] != lengths[row]:
                raise IndexMismatchError(
                    f"record {row} of {part} has {found[0]} samples, but {part.index_path} says {lengths[row]}: the "
                    f"index does not match its records; {part.remedy}"
                )
            rows.append(found[1])
        if unreadable and unreadable == part.num_rows:
            raise DataError(f"none of the {unreadable} records of {part} can be read; {part.remedy}")
        write(rows)
    return np.concatenate([np.zeros(0, np.float32), *rows]), unreadable


def measure(samples: np.ndarray, settings: PitchSettings) -> np.ndarray:
    """Returns the fundamental frequency of centred frames by pYIN (Mauch and Dixon 2014), float32 Hz, 0 if unvoiced.

    Args:
      samples: int16 [samples].
    """
    import librosa

    if not len(samples):
        return np.zeros(0, np.float32)
    num_frames = int(settings.grid.num_frames(len(samples)))
    frame_length = _frame_length(settings)
    # Of at least one whole window; librosa puts silence beyond the ends too.
    audio = np.pad(samples / 2.0**15, (0, max(frame_length - len(samples), 0)))
    hertz, voiced, _ = librosa.pyin(
        audio,
        sr=settings.sample_rate,
        fmin=settings.low_hertz,
        fmax=settings.high_hertz,
        frame_length=frame_length,
        hop_length=settings.hop,
    )
    hertz = np.where(voiced & np.isfinite(hertz), hertz, 0)
    return hertz[:num_frames].astype(np.float32)


def _frame_length(settings: PitchSettings) -> int:
    """Returns the samples of four periods of the lowest frequency, as a power of two."""
    return 2 ** math.ceil(math.log2(4 * settings.sample_rate / settings.low_hertz))


def _check(settings: PitchSettings) -> None:
    low, high, most = settings.low_hertz, settings.high_hertz, settings.sample_rate / 2
    if not 0 < low < high <= most:
        raise DataError(
            f"--low-hertz ({low:g}) must be above 0 and below --high-hertz ({high:g}), which is at most half of the "
            f"audio's {settings.sample_rate} Hz"
        )


def _measure(
    read: Callable[[int], bytes], num_rows: int, settings: PitchSettings, processes: int
) -> Iterator[tuple[int, np.ndarray] | None]:
    """Yields the number of samples and the pitch of every row, in order; None of unreadable records."""
    if processes == 1 or num_rows < 2:
        for row in range(num_rows):
            yield _of_record(_bytes_or_none(read, row), settings)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of running threads
    pool: Executor = ProcessPoolExecutor(min(processes, num_rows), context)
    pending: collections.deque[Future[tuple[int, np.ndarray] | None]] = collections.deque()
    try:
        # numba compiles librosa's loops at their first use into a cache on disk. Processes that do so at the same time
        # damage it, and then every later one crashes; so one goes first.
        pool.submit(measure, np.ones(_frame_length(settings), np.int16), settings).result()
        for row in range(num_rows):
            pending.append(pool.submit(_of_record, _bytes_or_none(read, row), settings))
            if len(pending) > _AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that measures pitch was killed or crashed. If memory is full, run again with fewer --processes; "
            "else numba's cache may be damaged: set NUMBA_CACHE_DIR to an empty folder, or install librosa again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes_or_none(read: Callable[[int], bytes], row: int) -> bytes | None:
    try:
        return read(row)
    except RuntimeError:  # a wrong checksum
        return None


def _of_record(flac: bytes | None, settings: PitchSettings) -> tuple[int, np.ndarray] | None:
    if flac is None:
        return None
    try:
        samples = decode_flac(flac)
    except Exception:  # the decoder's errors, of several kinds
        return None
    return len(samples), measure(samples, settings)
