"""Evaluates classifiers of frames: accuracy, missed speech and false alarms."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int
from tyro.conf import Positional

from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from jax_speechlm.core.batch import Batch
from jax_speechlm.evaluation.classification import FRAME, ClassificationReport, publish, score, speech_batches
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.tasks.inputs import speech_or_silence


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    split: str = "test",
    data_dir: Path = Path("data"),
    out: Path | None = None,
    seconds_per_batch: float = 120.0,
) -> ClassificationReport:
    """Measures a voice activity detector on prepared data sets with word times; every frame counts as a row.

    The reference is the forced alignment of `jax-speechlm align --format index`, not human annotation, and its errors
    limit the score. 1 - recall of speech is the miss rate, 1 - recall of silence the false alarm rate. Utterances are
    processed whole, whatever their length.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>.
      seconds_per_batch: padded audio per batch, in seconds; affects memory and speed only.
    """
    run = LoadedRun.load(checkpoint, FrameClassification, "detect speech")
    experiment, mel = run.experiment, run.experiment.frontend.mel
    index = indexes.read_sets(data_dir, sets, split, mel.sample_rate)
    labels = speech_or_silence(experiment.objective, mel, index)
    batches = speech_batches(run, index, seconds_per_batch, labels)
    true, predicted = (np.concatenate(each) for each in zip(*_frames(run, batches), strict=True))
    report = score(true, predicted, experiment.objective.classes).replace(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        label=FRAME,
        skipped=labels.not_aligned + labels.without_transcript,
    )
    publish(report, as_path(out or checkpoint / "eval" / f"{'+'.join(sets)}-{split}"))
    return report


def _frames(run: LoadedRun, batches: Iterator[Batch]) -> Iterator[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]:
    """Yields the true and the predicted classes of the labelled frames, batch by batch."""
    _, logits = run.experiment.objective.classifier(run.experiment.model, run.experiment.frontend)
    best = jax.jit(lambda params, batch: logits(params, batch, None)[0].argmax(-1))
    for batch in batches:
        guess, known = np.asarray(best(run.params, batch)), batch["frame_labels"] >= 0
        yield batch["frame_labels"][known], guess[known]
