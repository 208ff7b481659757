"""Evaluates classifiers of frames: accuracy, missed speech and false alarms."""

from pathlib import Path

import jax
import numpy as np

from data_pipelines.storage import index as indexes
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.batches import item_ids, speech_batches
from jax_speechlm.evaluation.classification import FRAME, ClassificationReport, score
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.tasks.inputs import speech_or_silence
from jax_speechlm.training.runs import LoadedRun


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> ClassificationReport:
    """Measures a voice activity detector on prepared data sets with word times; every frame counts as a row.

    The reference is the forced alignment of `jax-speechlm align --format index`, not human annotation, and its errors
    limit the score. 1 - recall of speech is the miss rate, 1 - recall of silence the false alarm rate. Utterances are
    processed whole, whatever their length. Frames are not independent, so intervals are over utterances, or over
    speakers where there are many.
    """
    run = LoadedRun.load(checkpoint, FrameClassification, "detect speech")
    objective, frontend = run.experiment.objective, run.experiment.frontend
    index = indexes.read_sets(data_dir, sets, split, frontend.mel.sample_rate)
    labels = speech_or_silence(objective, run.experiment.frame_grid, index)
    logits = objective.classifier(run.experiment.model, frontend)
    best = jax.jit(lambda params, batch: logits(params, batch, None)[0].argmax(-1))
    true, predicted, rows = [], [], []
    for batch in speech_batches(index, run.experiment.frame_samples, seconds_per_batch, frame_labels=labels):
        is_labelled = batch["frame_labels"] >= 0
        true.append(batch["frame_labels"][is_labelled])
        predicted.append(np.asarray(best(run.params, batch))[is_labelled])
        rows.append(np.repeat(batch["example_id"], is_labelled.sum(1)))
    about = {"ids": item_ids(index), "speakers": index.column("speaker").to_pylist()}
    of_frames = map(np.concatenate, (true, predicted))
    report = score(*of_frames, objective.classes, np.concatenate(rows), **about).replace(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        label=FRAME,
        skipped=labels.not_aligned + labels.without_transcript,
    )
    return report.publish(out or base.report_folder(checkpoint, sets, split), report.checkpoint)
