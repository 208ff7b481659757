"""Clean-up, level and tempo of recordings of any length, and the command `jax-speechlm enhance`."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import pydantic
from jaxtyping import Int16
from rich.console import Console
from rich.progress import track
from tyro.conf import Positional

from data_pipelines.audio.clean_up import CleanUpMethod
from data_pipelines.audio.decode import AudioError, decode, encode_flac
from data_pipelines.audio.wav import write_wav
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import write_bytes
from data_pipelines.sources.listing import AUDIO_SUFFIXES
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.clean_up import CleanUp, clean_up
from jax_speechlm.frontend.levels import Measure, normalise_level
from jax_speechlm.frontend.tempo import change_tempo

Samples = Int16[np.ndarray, " samples"]

_PIECE, _AROUND = 40.0, 4.0  # seconds of one pass, and that a piece has more on each side
_SHORTEST = 4_000  # samples of a row


class Enhancement(Config):
    """What `enhance` does, in this order.

    Attributes:
      clean_up: noise, an offset and hum.
      tempo: 2 plays twice as fast, at the same pitch.
      measure: of the level that the recording gets; None leaves the level as it is.
      level: in dB of full scale, or LUFS. Peaks stay below -1 dB, and no gain is above 30 dB.
    """

    clean_up: CleanUp = CleanUp()
    tempo: Annotated[float, pydantic.Field(ge=0.25, le=4)] = 1.0
    measure: Measure | None = None
    level: Annotated[float, pydantic.Field(ge=-70, le=0)] = -23.0


def enhance(
    samples: Samples,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
    config: Enhancement = Enhancement(),  # noqa: B008
) -> Int16[np.ndarray, " changed"]:
    """Cleans a recording, and changes its tempo and level.

    Recordings over 40 s are cleaned in pieces that overlap by 4 s on each side, more than noise is estimated from.
    """
    piece, around = (round(seconds * sample_rate) for seconds in (_PIECE, _AROUND))
    parts = [np.zeros(0, np.int16)]
    for first in range(0, len(samples), piece):
        begin = max(first - around, 0)
        cleaned = _row(_clean_up, samples[begin : first + piece + around], config.clean_up, sample_rate)
        parts.append(cleaned[first - begin :][:piece])
    samples = np.concatenate(parts)
    if config.tempo != 1 and len(samples):
        samples = _with_tempo(samples, sample_rate, config.tempo)
    if config.measure is not None and len(samples):
        samples = _row(_level, samples, config.measure, config.level, sample_rate)
    return samples


def enhance_clip(samples: Samples, sample_rate: int, method: CleanUpMethod) -> Samples:
    """Cleans a clip, for `prepare --enhance`."""
    return enhance(samples, sample_rate, Enhancement(clean_up=CleanUp(method=method)))


def _row(compute: Callable, samples: Samples, *settings) -> Samples:
    """Runs a function of one row, padded to one of few lengths so that programs are few."""
    padded = np.zeros((1, _grid(len(samples))), np.int16)
    padded[0, : len(samples)] = samples
    return _to_int16(compute(padded, np.array([len(samples)], np.int32), *settings)[0])[: len(samples)]


def _with_tempo(samples: Samples, sample_rate: int, tempo: float) -> Int16[np.ndarray, " changed"]:
    padded = np.zeros((1, _grid(len(samples))), np.int16)
    padded[0, : len(samples)] = samples
    longest = _grid(round(len(samples) / tempo))
    changed, lengths = _tempo(padded, np.array([len(samples)], np.int32), np.float32([tempo]), longest, sample_rate)
    return _to_int16(changed[0])[: lengths[0]]


def _to_int16(samples: jax.Array) -> Samples:
    return np.clip(np.rint(np.asarray(samples)), -(2**15), 2**15 - 1).astype(np.int16)


_clean_up = functools.partial(jax.jit, static_argnums=(2, 3))(clean_up)
_level = functools.partial(jax.jit, static_argnums=(2, 3, 4))(normalise_level)
_tempo = functools.partial(jax.jit, static_argnums=(3, 4))(change_tempo)


def _grid(num_samples: int) -> int:
    """Returns the padded length of a row: a power of two times 4,000 or one and a half times that."""
    size = _SHORTEST
    while size < num_samples:
        size *= 2
    return size * 3 // 4 if size > _SHORTEST and num_samples <= size * 3 // 4 else size


def enhance_files(
    source: Positional[Path],
    target: Positional[Path],
    method: CleanUpMethod = "wiener",
    most_reduction: float = CleanUp().most_reduction,
    high_pass: float = CleanUp().high_pass,
    tempo: float = 1.0,
    loudness: float | None = None,
    rms: float | None = None,
    peak: float | None = None,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
) -> None:
    """Removes noise and hum from a recording, or all recordings of a folder, and sets their tempo and level.

    Args:
      source: audio of any format, length and number of channels, or a folder of such files, with its subfolders.
      target: the file to write (.wav or .flac, mono, 16 bits), or the folder, in which files keep their names, as .wav.
      method: wiener (Wiener filter, decision-directed), subtraction (spectral subtraction), gate (lowers what is not
        speech), or none (high-pass, tempo and level only).
      most_reduction: of noise, in dB.
      high_pass: cut-off in Hz; 0 for none.
      tempo: 2 plays twice as fast, at the same pitch.
      loudness: of the result in LUFS (ITU-R BS.1770), such as -23.
      rms: of the result in dB of full scale, instead.
      peak: of the result in dB of full scale, instead.
      sample_rate: of the result, in Hz.

    Raises:
      DataError: no audio in the folder, a target that cannot be meant, or files that cannot be read.
    """
    levels = {"loudness": loudness, "rms": rms, "peak": peak}
    given: dict[Measure, float] = {measure: level for measure, level in levels.items() if level is not None}
    if len(given) > 1:
        raise DataError(f"name only one of --{' and --'.join(given)}: a recording has one level")
    if not 1_000 <= sample_rate <= 192_000 or sample_rate % 10:
        raise DataError(f"--sample-rate {sample_rate}: give a multiple of 10 from 1000 to 192000 Hz, such as 16000")
    if high_pass and high_pass >= sample_rate / 2:
        raise DataError(f"--high-pass {high_pass:g}: give less than half of the sample rate, such as 60")
    measure, level = next(iter(given.items()), (None, -23.0))
    cleaning = CleanUp(method=method, most_reduction=most_reduction, high_pass=high_pass)
    config = Enhancement(clean_up=cleaning, tempo=tempo, measure=measure, level=level)
    pairs = list(_pairs(source, target))
    failed = 0
    for path, written in track(pairs, "enhance", console=Console(stderr=True), transient=True, disable=len(pairs) == 1):
        try:
            samples = decode(path, rate=sample_rate)
        except AudioError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        enhanced = enhance(samples, sample_rate, config)
        if written.suffix.lower() == ".flac":
            written.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(written, encode_flac(enhanced, sample_rate))
        else:
            write_wav(written, enhanced / np.float32(2**15), sample_rate)
        print(f"{written}: {len(enhanced) / sample_rate:.2f} s, {_rms(samples):.1f} -> {_rms(enhanced):.1f} dB")
    if failed:
        raise DataError(f"{failed} of {len(pairs)} files could not be read: see the messages above")


def _rms(samples: Samples) -> float:
    """Returns the RMS level in dB of full scale, at least -100."""
    return float(10 * np.log10(max(np.mean(np.square(samples / 2.0**15)) if len(samples) else 0, 1e-10)))


def _pairs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the files to read, and to write."""
    if not source.is_dir():
        if target.is_dir():
            target = target / f"{source.stem}.wav"
        if target.suffix.lower() not in (".wav", ".flac"):
            raise DataError(f"{target}: name a file that ends in .wav or .flac")
        if source.exists() and target.exists() and source.samefile(target):
            raise DataError(f"{target} is the recording itself: name another file to write")
        yield source, target
        return
    if target.is_file() or (target.exists() and target.samefile(source)):
        raise DataError(f"{target}: the recordings of a folder go to another folder; name one")
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{source} has no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
    written: dict[Path, Path] = {}
    for path in files:
        out = (target / path.relative_to(source)).with_suffix(".wav")
        if out in written:
            raise DataError(f"{path} and {written[out]} would both be written to {out}: rename one of them")
        written[out] = path
    yield from ((path, out) for out, path in written.items() if target not in path.parents)
