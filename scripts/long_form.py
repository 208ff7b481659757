"""Long-form recognition: WER of clips inside one long recording, beside the WER of the same clips transcribed alone.

    python scripts/long_form.py runs/finetune --sets asterisk-en queen-en --minutes 30

Clips of prepared sets are drawn in random order and joined with silences of random length until the recording has its
length. It is transcribed as one file, as `jax-speechlm transcribe` does, in windows that the run cuts itself. The long
transcript is aligned with the clips' joined transcripts by minimum edit distance, so every error belongs to a clip: an
insertion to the clip of the reference word before it. Intervals are over clips (bootstrap), the difference is paired.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import numpy as np
import tyro
from jaxtyping import Int16
from rich.table import Table

from data_pipelines.audio import decode
from data_pipelines.audio.wav import write_wav
from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.storage.records import RecordReader
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, wer
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.parallel.platforms import cache_compilations


class Clip(Config):
    """A clip of the recording; texts are normalised.

    Attributes:
      id: of the utterance.
      set: its set.
      start, seconds: its place in the recording.
      reference: its transcript.
      alone: what the run recognises in the clip alone.
      counts: substitutions, deletions, insertions and reference words of the clip inside the recording.
    """

    id: str
    set: str
    start: float
    seconds: float
    reference: str
    alone: str
    counts: tuple[int, int, int, int]


class LongFormReport(base.SetReport):
    """Errors of clips inside a long recording and alone.

    Attributes:
      seconds: length of the recording.
      silence: shortest and longest silence before a clip, in seconds.
      normalizer: applied to all texts.
      decoder: description of the decoding.
      transcript: of the recording, normalised.
    """

    seconds: float
    silence: tuple[float, float]
    seed: int
    normalizer: NormalizerName
    decoder: str
    transcript: str
    clips: tuple[Clip, ...]

    def tables(self) -> Iterator[Table]:
        """Yields a row for all clips, and one for each set if there are several."""
        columns = "clips of", "clips", "words", "alone [95 %]", "in the recording [95 %]", "difference [95 %]", "p"
        low, high = self.silence
        title = f"WER, {self.seconds / 60:.1f} minutes, silences of {low:g} to {high:g} s"
        table = base.new_table(*columns, title=f"{title}, seed {self.seed}, normalizer {self.normalizer}")
        sets = list(dict.fromkeys(clip.set for clip in self.clips))
        for name in ["all", *sets] if len(sets) > 1 else sets:
            clips = [clip for clip in self.clips if name in ("all", clip.set)]
            table.add_row(name, *_cells(clips))
        yield table


def _cells(clips: Sequence[Clip]) -> list[str]:
    together = np.array([clip.counts for clip in clips])
    alone = wer.count(wer.align([clip.reference for clip in clips], [clip.alone for clip in clips], "word"))
    cells = [f"{len(clips):,}", f"{together[:, 3].sum():,}"]
    cells += [base.percent(wer.rate(counts), wer.bootstrap(counts)) for counts in (alone, together)]
    change = wer.paired_bootstrap(alone, together)
    if change.interval is None:
        return [*cells, f"{100 * change.value:+.1f}", "-"]
    low, high = change.interval
    return [*cells, f"{100 * change.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", f"{change.p_value:.2g}"]


def main(
    run: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    minutes: float = 30.0,
    silence: tuple[float, float] = (0.5, 2.0),
    seed: int = 0,
    decoding: tyro.conf.OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    max_seconds: float = 30.0,
    normalizer_name: NormalizerName = "basic",
    data_dir: base.DataDir = Path("data"),
    out: Path | None = None,
) -> LongFormReport:
    """Measures a recognizer on a long recording of clips, and on the same clips alone.

    Writes `report.json`, and `recording.wav`, which was transcribed.

    Args:
      minutes: length of the recording; it ends with the last clip that fits.
      silence: shortest and longest silence before each clip, in seconds; lengths are uniform between them.
      seed: of the order of the clips and of the silences.
      decoding: how to decode.
      max_seconds: longest window of the run, as of `transcribe`.
      normalizer_name: applied to references and transcripts.
      out: folder of the report; by default <run>/eval/<sets>-<split>-long.
    """
    cache_compilations()
    transcriber = open_transcriber(run, decoding)
    index = indexes.read_sets(data_dir, sets, split, transcriber.experiment.sample_rate)
    rows, starts = draw(index.num_samples, index.sample_rate, minutes, silence, seed)
    reader = RecordReader(index)
    audio = [decode.decode(reader.read(row)[0], name=str(row), rate=index.sample_rate) for row in rows]
    recording = joined(audio, starts)
    out = out or base.report_folder(run, sets, split, "long")
    out.mkdir(parents=True, exist_ok=True)
    write_wav(out / "recording.wav", recording / np.float32(32_768), index.sample_rate)
    clean = normalizer(normalizer_name)
    options = {"max_seconds": max_seconds}
    (long,) = transcriber.transcribe([out / "recording.wav"], **options)
    alone = [clean(each.text) for each in transcriber.transcribe(audio, **options)]
    texts, ids = (index.column(name).to_pylist() for name in ("text", "id"))
    references, transcript = [clean(texts[row]) for row in rows], clean(long.text)
    pieces = zip(rows, starts, audio, references, alone, by_clip(references, transcript).tolist(), strict=True)
    report = LongFormReport(
        checkpoint=str(transcriber.checkpoint),
        sets=sets,
        split=split,
        seconds=len(recording) / index.sample_rate,
        silence=silence,
        seed=seed,
        normalizer=normalizer_name,
        decoder=transcriber.decoding_description,
        transcript=transcript,
        clips=tuple(
            Clip(
                id=ids[row],
                set=index.locate(row)[0].set_dir.name,
                start=start / index.sample_rate,
                seconds=len(samples) / index.sample_rate,
                reference=reference,
                alone=text,
                counts=counts,
            )
            for row, start, samples, reference, text, counts in pieces
        ),
    )
    return report.publish(out, report.checkpoint)


def draw(
    num_samples: np.ndarray, sample_rate: int, minutes: float, silence: tuple[float, float], seed: int
) -> tuple[list[int], list[int]]:
    """Draws clips and silences before them.

    Args:
      num_samples: length of each clip.

    Returns:
      Rows of the clips in order, and the first sample of each.

    Raises:
      DataError: the silences are no range, or no clip fits.
    """
    if not 0 <= silence[0] <= silence[1]:
        raise DataError(f"--silence {silence[0]:g} {silence[1]:g}: give the shortest length, then the longest, from 0")
    rng, rows, starts, end = np.random.default_rng(seed), [], [], 0
    for row in rng.permutation(len(num_samples)).tolist():
        start = end + round(rng.uniform(*silence) * sample_rate)
        if start + int(num_samples[row]) > 60 * minutes * sample_rate:
            break
        rows.append(row)
        starts.append(start)
        end = start + int(num_samples[row])
    if not rows:
        raise DataError(f"--minutes {minutes:g}: no clip fits into it; give more")
    return rows, starts


def joined(audio: Sequence[Int16[np.ndarray, "..."]], starts: Sequence[int]) -> Int16[np.ndarray, " samples"]:
    """Returns one recording with each clip at its start, and digital silence between them."""
    recording = np.zeros(starts[-1] + len(audio[-1]), np.int16)
    for samples, start in zip(audio, starts, strict=True):
        recording[start : start + len(samples)] = samples
    return recording


def by_clip(references: Sequence[str], transcript: str) -> wer.Counts:
    """Aligns a transcript with joined references and counts the errors of each.

    The counts add up to the minimum edit distance of the whole. An insertion counts for the clip of the reference word
    before it, or for the first clip.
    """
    counts = np.zeros((len(references), 4), np.int64)
    lengths = [len(reference.split()) for reference in references]
    (aligned,) = wer.align([" ".join(filter(None, references))], [transcript], "word")
    clip_of_word = list(itertools.chain.from_iterable([clip] * length for clip, length in enumerate(lengths)))
    clip, place = clip_of_word[0] if clip_of_word else 0, 0
    for operation, _, _ in aligned.edits:
        if operation != "I":
            clip, place = clip_of_word[place], place + 1
        if operation != "=":
            counts[clip, "SDI".index(operation)] += 1
    counts[:, 3] = lengths
    return counts


if __name__ == "__main__":
    tyro.cli(main)
