"""Judges synthesised speech: rows of speech with the same texts, measured by independent models and by distances.

A row is a system: natural recordings first, then copies by vocoders and speech of models. All are resampled to 16 kHz
with 16 bits before anything is measured, so every judge gets the same samples.
"""

import contextlib
import dataclasses
import tempfile
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float, Float32, Shaped
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.audio import decode
from data_pipelines.audio.wav import write_wav
from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation import resampling, speech_distance, wer
from jax_speechlm.evaluation.judges.catalogue import RECOGNIZERS, JudgeSettings
from jax_speechlm.evaluation.judges.process import JudgeError, JudgeProcess
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces
from jax_speechlm.evaluation.synthesis_report import (
    NATURAL,
    Column,
    JudgedRow,
    JudgedUtterance,
    Measurement,
    SynthesisReport,
    value_of,
)
from jax_speechlm.units.measures import Bitrate

SAMPLE_RATE = speech_distance.SAMPLE_RATE
_MIN_SAMPLES = SAMPLE_RATE // 10  # what every judge can take: silence follows shorter audio
OWN_RECOGNIZER = "recognizer"
"""Name of the judge that is a run of this package."""

Audio = Path | Shaped[np.ndarray, " _"]
Answers = dict[tuple[int, int], dict[str, Any]]
"""A judge's answers, by row and utterance."""

_DNSMOS = {"DNSMOS": "overall", "signal": "signal", "background": "background", "P.808": "p808"}
_DISTANCES = (
    Column(name="MCD", group="distance", unit="dB"),
    Column(name="log F0", group="distance", is_root=True, digits=3),
    Column(name="voicing error", group="distance", unit="%", digits=1),
)
_SPEAKER = Column(name="speaker cosine", group="quality", judge="resemblyzer", digits=3)


@dataclasses.dataclass(frozen=True)
class SpeechRow:
    """Speech of one system.

    Attributes:
      name: of the row.
      audio: by id of the utterance: an audio file, or samples (float in [-1, 1], or int16).
      sample_rate: of samples, in Hz; files state their own.
      real_time_factor, first_audio_ms: speeds of the system, if measured.
      bitrate: of the units that the speech was computed from, if any.
    """

    name: str
    audio: Mapping[str, Audio]
    sample_rate: int = SAMPLE_RATE
    real_time_factor: float | None = None
    first_audio_ms: float | None = None
    bitrate: Bitrate | None = None


@dataclasses.dataclass(frozen=True)
class SpokenText:
    """One utterance of every row: its id, its text, and whose voice it should have ("" if there is one voice)."""

    id: str
    text: str
    speaker: str = ""
    language: str = ""


def judge_speech(
    rows: Sequence[SpeechRow],
    texts: Sequence[SpokenText],
    settings: JudgeSettings,
    *,
    title: str = "",
    normalizer_name: NormalizerName | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    folder: Path | None = None,
) -> SynthesisReport:
    """Measures rows of speech.

    Args:
      rows: natural speech first, named "natural"; each has the audio of every text.
      normalizer_name: of references and transcripts; by default Whisper's English one if all texts are English.
      folder: receives the samples that were judged, `<row>/<utterance>.wav` by number; by default they are not kept.

    Raises:
      DataError: rows lack audio, names are not unique, or audio cannot be read.
    """
    _check(rows, texts)
    if normalizer_name is None:
        normalizer_name = "whisper-english" if {text.language for text in texts} == {"en"} else "basic"
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clips = [write_clips(row, texts, folder / str(number)) for number, row in enumerate(rows)]
        judged = _Judgements(rows, texts, clips, settings, normalizer_name)
        judged.measure()
    return judged.report(title, resamples, seed)


def write_clips(row: SpeechRow, texts: Sequence[SpokenText], folder: Path) -> list[Path]:
    """Writes the audio of a row as WAV files with 16 bits at 16 kHz and at least 0.1 s.

    Raises:
      DataError: a file cannot be decoded, or samples are not finite.
    """
    files = []
    for number, text in enumerate(texts):
        audio = row.audio[text.id]
        if isinstance(audio, Path):
            samples = decode.decode(audio, rate=SAMPLE_RATE) / np.float32(32_768)
        else:
            samples = _resampled(audio, row.sample_rate, f"{row.name}, {text.id}")
        files.append(folder / f"{number}.wav")
        write_wav(files[-1], np.pad(samples, (0, max(0, _MIN_SAMPLES - len(samples)))), SAMPLE_RATE)
    return files


def _resampled(samples: Shaped[np.ndarray, " _"], rate: int, name: str) -> Float32[np.ndarray, " _"]:
    samples = samples / np.float32(32_768) if samples.dtype == np.int16 else samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(samples)):,} samples are NaN or infinite")
    return soxr.resample(samples, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else samples


def _check(rows: Sequence[SpeechRow], texts: Sequence[SpokenText]) -> None:
    names = [row.name for row in rows]
    if not rows or names[0] != NATURAL:
        raise DataError(f"the first row must be {NATURAL!r}, natural recordings of the same texts")
    if len(set(names)) < len(names):
        raise DataError(f"two rows have one name: {', '.join(names)}")
    if not texts:
        raise DataError("there is nothing to judge: no text was given")
    for row in rows:
        if lacking := [text.id for text in texts if text.id not in row.audio]:
            raise DataError(f"{row.name} lacks {len(lacking)} of {len(texts)} utterances, such as {lacking[0]!r}")


class _Judgements:
    """Sums of every column, by row and utterance, as they are measured.

    Attributes:
      sums: by column: float64 [rows, utterances, 2], numerator and denominator; NaN where there is no judgement.
    """

    def __init__(self, rows, texts, clips: list[list[Path]], settings: JudgeSettings, normalizer_name: NormalizerName):
        self.rows, self.texts, self.clips, self.settings = rows, texts, clips, settings
        self.normalizer_name = normalizer_name
        self.columns: list[Column] = []
        self.sums: list[Float[np.ndarray, "rows utterances 2"]] = []
        self.transcripts: dict[str, Answers] = {}
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.packages: dict[str, str] = {}

    def measure(self) -> None:
        """Runs all judges one after the other, then computes distances."""
        names = [*self.settings.judges, *([OWN_RECOGNIZER] if self.settings.recognizer else [])]
        with _progress(len(names) + 1, len(self.rows) * len(self.texts)) as follow:
            for name in names:
                advance = follow(name)
                try:
                    ask = self._ask_own if name == OWN_RECOGNIZER else self._ask
                    answers = ask(name, advance)
                except JudgeError as error:
                    self.missing[name] = error.reason
                    continue
                if errors := [answer["error"] for answer in answers.values() if "error" in answer]:
                    self.failed[name] = f"{len(errors)} of {len(answers)} recordings: {errors[0]}"
                self._add(name, {place: answer for place, answer in answers.items() if "error" not in answer})
            if len(self.rows) > 1:
                self._add_distances(follow("distances"))

    def _ask(self, name, advance: Callable[[], None]) -> Answers:
        with JudgeProcess(self.settings.command(name), timeout=self.settings.judge_timeout) as judge:
            answers = {}
            for place, clip in self._places():
                answers[place] = judge.judge(clip)
                advance()
            self.packages |= judge.packages
            return answers

    def _ask_own(self, name: str, advance: Callable[[], None]) -> Answers:
        from jax_speechlm.inference.load import open_transcriber  # deferred: few evaluations need a run

        places = list(self._places())
        transcripts = open_transcriber(self.settings.recognizer).transcribe([clip for _, clip in places])
        answers = {}
        for (place, _), transcript in zip(places, transcripts, strict=True):
            answers[place] = {"text": transcript.text} if transcript.error is None else {"error": transcript.error}
            advance()
        return answers

    def _places(self) -> Iterator[tuple[tuple[int, int], Path]]:
        for row, clips in enumerate(self.clips):
            for utterance, clip in enumerate(clips):
                yield (row, utterance), clip

    def _new(self, column: Column) -> Float[np.ndarray, "rows utterances 2"]:
        self.columns.append(column)
        self.sums.append(np.full((len(self.rows), len(self.texts), 2), np.nan))
        return self.sums[-1]

    def _add(self, judge: str, answers: Answers) -> None:
        """Adds the columns of a judge."""
        if judge in RECOGNIZERS or judge == OWN_RECOGNIZER:
            self._add_errors(judge, answers)
        elif judge == "dnsmos":
            for name, score in _DNSMOS.items():
                sums = self._new(Column(name=name, group="quality", judge=judge))
                for place, answer in answers.items():
                    sums[place] = answer["scores"][score], 1
        else:
            self._add_cosines(answers)

    def _add_errors(self, judge: str, answers: Answers) -> None:
        self.transcripts[judge] = answers
        clean = normalizer(self.normalizer_name)
        texts = [self.texts[utterance] for _, utterance in answers]
        references = [clean(text.text, text.language) for text in texts]
        hypotheses = [
            clean(answer["text"], text.language) for answer, text in zip(answers.values(), texts, strict=True)
        ]
        unspaced = written_without_spaces(text.text for text in self.texts)
        for name, unit in (("WER", "word"), ("CER", "character")):
            if unit == "character" and unspaced:  # as in the reports of recognizers
                references, hypotheses = ([text.replace(" ", "") for text in side] for side in (references, hypotheses))
            counts = wer.count(wer.align(references, hypotheses, unit))
            sums = self._new(Column(name=f"{name} {judge}", group="errors", judge=judge, unit="%", digits=1))
            for place, row in zip(answers, counts, strict=True):
                sums[place] = row[:3].sum(), row[3]

    def _add_cosines(self, answers: Answers) -> None:
        """Compares each vector with the mean of the natural recordings of the same voice, without the same text."""
        sums = self._new(_SPEAKER)
        natural = {utterance: answer["vector"] for (row, utterance), answer in answers.items() if row == 0}
        for (row, utterance), answer in answers.items():
            voice = self.texts[utterance].speaker
            others = [
                vector for other, vector in natural.items() if other != utterance and self.texts[other].speaker == voice
            ]
            if others:
                center, vector = np.mean(others, axis=0), np.array(answer["vector"])
                sums[row, utterance] = center @ vector / max(np.linalg.norm(center) * np.linalg.norm(vector), 1e-12), 1

    def _add_distances(self, advance: Callable[[], None]) -> None:
        distortion, pitch, voicing = (self._new(column) for column in _DISTANCES)
        longest = int(speech_distance.MAX_SECONDS * SAMPLE_RATE)
        for utterance in range(len(self.texts)):
            samples = [_read_wav(clips[utterance]) for clips in self.clips]
            advance()
            if len(samples[0]) > longest:
                continue
            natural = speech_distance.contours(samples[0])
            for row in range(1, len(samples)):
                advance()
                if len(samples[row]) > longest:
                    continue
                found = speech_distance.distance(natural, speech_distance.contours(samples[row]))
                distortion[row, utterance] = found.distortion, found.pairs
                pitch[row, utterance] = found.squared_log_pitch, found.voiced_pairs
                voicing[row, utterance] = found.voicing_errors, found.pairs

    def report(self, title: str, resamples: int, seed: int) -> SynthesisReport:
        """Computes corpus values, intervals and differences."""
        rows = []
        for number, row in enumerate(self.rows):
            measures = {}
            for column, sums in zip(self.columns, self.sums, strict=True):
                natural = sums[0] if number and column.group != "distance" else None
                measures[column.name] = measurement(sums[number], natural, column.is_root, resamples, seed)
            of_system = {name: getattr(row, name) for name in ("real_time_factor", "first_audio_ms", "bitrate")}
            rows.append(JudgedRow(name=row.name, measures=measures, **of_system))
        return SynthesisReport(
            title=title,
            normalizer=self.normalizer_name,
            columns=tuple(self.columns),
            missing=self.missing,
            failed=self.failed,
            packages=self.packages,
            rows=tuple(rows),
            resamples=resamples,
            seed=seed,
            utterances=tuple(self._utterance(number) for number in range(len(self.texts))),
        )

    def _utterance(self, number: int) -> JudgedUtterance:
        text, transcripts, sums = self.texts[number], {}, {}
        for place, row in enumerate(self.rows):
            transcripts[row.name] = {
                judge: answers[place, number]["text"]
                for judge, answers in self.transcripts.items()
                if (place, number) in answers
            }
            pairs = zip(self.columns, (column[place, number] for column in self.sums), strict=True)
            sums[row.name] = {column.name: tuple(pair) for column, pair in pairs if not np.isnan(pair).any()}
        return JudgedUtterance(
            id=text.id,
            reference=text.text,
            speaker=text.speaker,
            language=text.language,
            transcripts=transcripts,
            sums=sums,
        )


def measurement(
    sums: Float[np.ndarray, "utterances 2"],
    natural: Float[np.ndarray, "utterances 2"] | None,
    is_root: bool,
    resamples: int = 10_000,
    seed: int = 0,
) -> Measurement:
    """Computes a corpus value with its interval and, if `natural` is given, its difference from natural speech.

    Args:
      sums: numerator and denominator per utterance; NaN where there is no judgement.
      is_root: whether the value is the square root of the ratio of totals.
    """
    judged = ~np.isnan(sums).any(1)
    if not sums[judged, 1].sum() > 0:
        return Measurement(value=None, utterances=int(judged.sum()))
    statistic, options = value_of(is_root), {"resamples": resamples, "seed": seed}
    measured = Measurement(
        value=float(statistic(sums[judged].sum(0)[:, None])[0]),
        interval=resampling.bootstrap(sums[judged].T, statistic, **options) if _is_enough(sums[judged]) else None,
        utterances=int(judged.sum()),
    )
    if natural is None:
        return measured
    both = judged & ~np.isnan(natural).any(1)
    if not (sums[both, 1].sum() > 0 and natural[both, 1].sum() > 0):
        return measured
    found = resampling.paired_bootstrap(natural[both].T, sums[both].T, statistic, **options)
    measured = measured.replace(difference=found.value)
    if not (_is_enough(sums[both]) and _is_enough(natural[both])):
        return measured
    return measured.replace(difference_interval=found.interval, p_value=found.p_value)


def _is_enough(sums: Float[np.ndarray, "utterances 2"]) -> bool:
    return int(np.count_nonzero(sums[:, 1])) >= resampling.MIN_UTTERANCES


def _read_wav(path: Path) -> Float[np.ndarray, " samples"]:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32_768)


@contextlib.contextmanager
def _progress(judges: int, recordings: int) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Shows a progress bar on a terminal; yields a function from a judge's name to the function that advances it."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def follow(name: str) -> Callable[[], None]:
            task = bar.add_task(name, total=recordings)
            return lambda: bar.advance(task)

        yield follow
