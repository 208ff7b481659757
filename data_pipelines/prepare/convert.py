"""First stage of preparing speech: converts every clip to a FLAC file in a work folder, in parallel; survives a
kill.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.audio.clean_up import CleanUpMethod, clean_clip
from data_pipelines.audio.clips import Clip, Dropped
from data_pipelines.audio.decode import AudioError, AudioTooLongError, Levels, encode_flac, measure
from data_pipelines.audio.voice import VoiceChange, VoiceForm, fit_loudness, fit_voice
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import write_bytes

_BATCH = 1024  # clips in flight; bounds memory for sets of millions


class Format(NamedTuple):
    """The form of stored clips.

    Attributes:
      max_seconds: longer clips are dropped.
      characters_per_second: lowest and highest plausible rate; clips outside are dropped.
      sample_rate: in Hz.
      voice: trims, normalises and checks clips for a voice.
      enhance: removes noise and hum by this method; "" leaves them.
      loudness: of clips in LUFS, without `voice`; None leaves it.
    """

    max_seconds: float
    characters_per_second: tuple[float, float] | None = None
    sample_rate: int = DEFAULT_SAMPLE_RATE
    voice: VoiceForm | None = None
    enhance: CleanUpMethod | Literal[""] = ""
    loudness: float | None = None


@dataclass(frozen=True)
class Converted:
    """A clip with its FLAC file, relative to the work folder, and how its ends and level were changed."""

    clip: Clip
    file: str
    num_bytes: int
    num_samples: int
    seconds: float
    levels: Levels
    change: VoiceChange | None = None


class ConversionFolder:
    """The work folder: FLAC files named by clip and audio, and a journal of finished files.

    A file is renamed into place before its journal line is written, so every file in the journal is complete; after a
    kill the same call continues after the last line. A changed source has another file name and is converted again.
    """

    def __init__(self, folder: Path, form: Format):
        self.folder, self._form = folder, form
        self._journal = folder / "journal.jsonl"
        self._done: dict[str, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self._journal.exists():
            text = self._journal.read_text("utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # killed while writing a line
                self._journal.write_text(whole, "utf-8")
            self._done = {entry["file"]: entry for entry in map(json.loads, whole.splitlines())}

    def convert(
        self, clips: Sequence[Clip], *, num_workers: int, max_bad: int, console: Console
    ) -> Iterator[Converted | Dropped]:
        """Converts clips, in order; clips whose audio is missing, corrupt, silent or unsuitable become `Dropped`.

        Uses threads, because decoding, resampling and encoding release the interpreter lock: on two busy cores queen-en
        takes 13 s with two threads and 21 s with two processes.

        Args:
          max_bad: number of bad clips after which the run stops.

        Raises:
          DataError: more bad clips than `max_bad`.
        """
        bad: list[Dropped] = []
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with (
            Progress(*columns, console=console, transient=True) as progress,
            self._journal.open("a", encoding="utf-8") as journal,
            ThreadPoolExecutor(num_workers) as pool,
        ):
            task = progress.add_task("decode and resample", total=len(clips))
            try:
                groups = by_recording(clips)
                while batch := list(itertools.islice(groups, _BATCH)):
                    done = pool.map(self._convert_group, batch)
                    for outcome in itertools.chain.from_iterable(done):
                        if isinstance(outcome, Converted):
                            self._remember(outcome, journal)
                        elif outcome.is_bad:
                            bad.append(outcome)
                            check_bad(bad, max_bad)
                        progress.advance(task)
                        yield outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _remember(self, item: Converted, journal: TextIO) -> None:
        if item.file not in self._done:
            sizes = {"file": item.file, "num_bytes": item.num_bytes, "num_samples": item.num_samples}
            change = {"change": asdict(item.change)} if item.change else {}
            journal.write(json.dumps(sizes | {"levels": asdict(item.levels)} | change) + "\n")
            journal.flush()

    def _convert_group(self, clips: Sequence[Clip]) -> list[Converted | Dropped]:
        """Converts the clips of a group of `by_recording`, except clips that are already converted."""
        files = [self._file(clip) for clip in clips]
        outcomes = [self._kept(clip, file) for clip, file in zip(clips, files, strict=True)]
        missing = [index for index, outcome in enumerate(outcomes) if outcome is None]
        for number, sound in convert_clips([clips[index] for index in missing], self._form):
            index = missing[number]
            outcomes[index] = sound if isinstance(sound, Dropped) else self._write(clips[index], files[index], sound)
        return outcomes

    def _file(self, clip: Clip) -> str:
        voice = f"\n{tuple(self._form.voice)}" if self._form.voice else ""
        voice += "".join(f"\n{part}" for part in (self._form.enhance, self._form.loudness) if part not in ("", None))
        inputs = f"{clip.id}\n{clip.audio.fingerprint()}\n{self._form.sample_rate}{voice}"
        digest = hashlib.sha1(inputs.encode(errors="surrogateescape")).hexdigest()
        return f"{digest[:2]}/{digest}.flac"

    def _kept(self, clip: Clip, file: str) -> Converted | Dropped | None:
        """Returns the clip as an earlier call converted it, or None."""
        entry, path = self._done.get(file), self.folder / file
        if entry is None or not path.is_file() or path.stat().st_size != entry["num_bytes"]:
            return None
        seconds = entry["num_samples"] / self._form.sample_rate
        if seconds > self._form.max_seconds:
            return None
        change = VoiceChange(**entry["change"]) if "change" in entry else None
        lengths = entry["num_bytes"], entry["num_samples"], seconds
        kept = Converted(clip, file, *lengths, Levels(**entry["levels"]), change)
        return _misfit(clip, seconds, self._form) or kept

    def _write(self, clip: Clip, file: str, sound: "Sound") -> Converted:
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, sound.flac)
        return Converted(clip, file, len(sound.flac), sound.num_samples, sound.seconds, sound.levels, sound.change)


class Sound(NamedTuple):
    """A clip's audio as it is stored: FLAC, mono, 16-bit."""

    flac: bytes
    num_samples: int
    seconds: float
    levels: Levels
    change: VoiceChange | None = None


def by_recording(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    """Yields clips in order, in groups to convert together: consecutive ones of one container (stretches of a
    recording, rows of a parquet file), otherwise single clips.
    """
    groups = itertools.groupby(clips, lambda clip: getattr(clip.audio, "container", None) or clip.id)
    return (list(group) for _, group in groups)


def convert_clips(clips: Sequence[Clip], form: Format) -> Iterator[tuple[int, Sound | Dropped]]:
    """Decodes, resamples and encodes the clips of a group of `by_recording`.

    Yields:
      Pairs of an index into `clips` and its sound, or `Dropped` if its audio is missing, corrupt, silent, too long
      or does not match its text; in any order.
    """
    if clips and (decode_together := getattr(clips[0].audio, "decode_together", None)):
        for index, samples in decode_together([clip.audio for clip in clips], form.max_seconds, form.sample_rate):
            yield index, _sound(clips[index], samples, form)
        return
    for index, clip in enumerate(clips):
        try:
            samples = clip.audio.decode(form.max_seconds, form.sample_rate)
        except AudioError as error:
            samples = error
        yield index, _sound(clip, samples, form)


def _sound(clip: Clip, samples: NDArray[np.int16] | AudioError, form: Format) -> Sound | Dropped:
    if isinstance(samples, AudioError):
        return Dropped(clip.id, samples.reason, not isinstance(samples, AudioTooLongError), str(samples))
    levels, seconds, change = measure(samples, form.sample_rate), len(samples) / form.sample_rate, None
    if levels.is_silent:
        detail = f"{clip.id}: nothing but silence; record it again or remove its entry"
        return Dropped(clip.id, "silent", True, detail, seconds)
    if form.enhance:
        samples = clean_clip(samples, form.sample_rate, form.enhance)
    if form.loudness is not None:
        samples, change = fit_loudness(samples, form.sample_rate, form.loudness)
    if form.voice is not None:
        if levels.clipped_share > form.voice.max_clipped:
            reason = f"clipped (over {100 * form.voice.max_clipped:g} % of samples at full scale)"
            detail = (
                f"{clip.id}: {100 * levels.clipped_share:.2g} % of samples at full scale; record it again more quietly"
            )
            return Dropped(clip.id, reason, detail=detail, seconds=seconds)
        samples, change = fit_voice(samples, form.sample_rate, form.voice)
    if form.enhance or change is not None:
        levels, seconds = measure(samples, form.sample_rate), len(samples) / form.sample_rate
    sound = Sound(encode_flac(samples, form.sample_rate), len(samples), seconds, levels, change)
    return _misfit(clip, seconds, form) or sound


def _misfit(clip: Clip, seconds: float, form: Format) -> Dropped | None:
    """Returns `Dropped` if the rate of a clip's text is implausible."""
    slowest, fastest = form.characters_per_second or (0, math.inf)
    if slowest <= len(clip.text) / seconds <= fastest:
        return None
    reason = f"text does not fit audio (outside {slowest:g}-{fastest:g} characters a second)"
    return Dropped(clip.id, reason, seconds=seconds)


def nothing_left(name: str, items: str) -> DataError:
    """Returns the error for a set called `name` without a single kept item; its report was printed before."""
    return DataError(f"{name}: nothing is left of {items}; see the reasons in the table above.")


def check_bad(dropped: Sequence[Dropped], max_bad: int) -> list[Dropped]:
    """Returns the bad ones of some dropped items.

    Raises:
      DataError: they are more than `max_bad`; the message has the first of them and the remedy.
    """
    bad = [item for item in dropped if item.is_bad]
    if len(bad) <= max_bad:
        return bad
    first = "\n".join(f"  {item.detail or f'{item.id}: {item.reason}'}" for item in bad[:10])
    raise DataError(
        f"{len(bad)} bad items, more than the {max_bad} allowed; the first of them:\n{first}\n"
        "Correct the source or raise --max-bad; converted clips are kept, and the same command continues from there."
    )
