"""Durations of the tokens of prepared sets, by the aligner that a voice learnt: `jax-speechlm align` with a voice."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage import index as indexes
from data_pipelines.storage.durations import PartDurations, find_durations, read_durations, write_durations
from data_pipelines.storage.index import Index, Part
from jax_speechlm.apps.align import times_by_row
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.alignment import AlignmentReport, compare
from jax_speechlm.evaluation.batches import speech_batches
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.durations import DurationAligner, word_times


def align_voice(
    checkpoint: base.Checkpoint,
    sets: tuple[str, ...],
    against: Path | None = None,
    data_dir: base.DataDir = Path("data"),
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> None:
    """Finds the frames of each token of known transcripts by the alignment that a voice learnt, in training's way.

    The durations are stored next to each set's index, a split at a time; splits with durations by the same checkpoint
    are kept. Utterances without a transcript, or with fewer frames than tokens, are left out and counted.

    Args:
      sets: names of prepared data sets, with all splits; "name:split" selects one split.
      against: a recognizer's run: reports how far the boundaries of words are from those of its CTC alignment.
    """
    if not sets:
        raise DataError("nothing to align: name prepared sets with --sets")
    aligner = DurationAligner.load(checkpoint)
    recognizer = None if against is None else Recognizer.load(against)
    for name in sets:
        of_set, _, own_split = name.partition(":")
        for split in (own_split,) if own_split else indexes.splits_of(as_path(data_dir) / of_set):
            (part,) = indexes.read_sets(data_dir, (of_set,), split, aligner.settings.sample_rate).parts
            durations = store_part(aligner, part, seconds_per_batch)
            if recognizer is not None:
                speech = EvaluationSpeech(recognizer, (of_set,), split, data_dir, seconds_per_batch)
                report = compare_part(durations, aligner.tokenizer, recognizer, speech)
                run, other = aligner.run.checkpoint, str(recognizer.checkpoint)
                report = report.replace(checkpoint=str(run), against=other, sets=(of_set,), split=split)
                report.publish(base.report_folder(run, (of_set,), split, "alignment"), f"{run} on {of_set} {split}")


def store_part(aligner: DurationAligner, part: Part, seconds_per_batch: float) -> PartDurations:
    """Stores the durations of a part next to its index, unless those by this aligner are there already."""
    known = find_durations(part)
    if is_kept := known is not None and known.settings == aligner.settings:
        durations = known
    else:
        index, rows = Index((part,)), [None] * part.num_rows
        batches = speech_batches(
            index, aligner.run.experiment.frame_samples, seconds_per_batch, tokenizer=aligner.tokenizer
        )
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{part}: durations", total=part.num_rows)
            for batch in batches:
                for row, frames in aligner.durations([batch]).items():
                    rows[row] = frames
                progress.advance(task, np.count_nonzero(batch["example_id"] >= 0))
        write_durations(part, rows, aligner.settings)
        durations = read_durations(part, aligner.settings)
    aligned = np.count_nonzero(np.diff(durations.ends, prepend=0))
    missing = f", {part.num_rows - aligned} left out" if aligned < part.num_rows else ""
    mean = 1e3 * durations.frames.mean() * aligner.settings.hop / aligner.settings.sample_rate if aligned else 0.0
    print(
        f"{part}: {len(durations.frames):,} tokens of {aligned} utterances, {mean:.0f} ms on average{missing}"
        f"{' (kept)' if is_kept else ''}"
    )
    return durations


def compare_part(
    durations: PartDurations, tokenizer: Tokenizer, recognizer: Recognizer, speech: EvaluationSpeech
) -> AlignmentReport:
    """Compares the words' times by a part's durations with those by a recognizer's forced alignment.

    Args:
      tokenizer: whose tokens have the durations.
    """
    texts, pairs = speech.index.column("text").to_pylist(), []
    for row, theirs in times_by_row(recognizer, speech):
        frames = durations.of(row)
        ours = word_times(tokenizer, texts[row], frames, durations.settings) if len(frames) else None
        if ours is not None:
            pairs.append((ours, theirs))
    try:
        report = compare(pairs)
    except ValueError as error:
        raise DataError(f"{speech.index.parts[0]}: {error}") from error
    return report.replace(skipped=len(texts) - len(pairs))
