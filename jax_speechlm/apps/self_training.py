"""Self-training: a trained model transcribes audio, and training continues on its most confident transcripts.

Method: Xu et al. 2020 ("Iterative pseudo-labeling for speech recognition") and Park et al. 2020 ("Improved noisy
student training"); confidence is the model's own probability of a transcript.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from tyro.conf import OmitArgPrefixes

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.relabel import relabel
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.inference.asr.base import Transcription
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.loop import train


class Filter(Config):
    """Selection of transcripts to train on; empty ones are never used.

    Attributes:
      share: of the transcripts that are not empty, the most confident.
      min_confidence: least confidence as well: the geometric mean of a transcript's token probabilities.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.0

    def keep(self, transcriptions: list[Transcription]) -> np.ndarray:
        """Returns a mask of the transcripts to train on. Of ties the earlier row is kept."""
        avg_logprob = np.array(
            [transcription.avg_logprob if transcription.text.strip() else -np.inf for transcription in transcriptions]
        )
        spoken = np.isfinite(avg_logprob)
        order = np.argsort(-avg_logprob, kind="stable")[: int(np.ceil(self.share * spoken.sum()))]
        kept = np.zeros(len(transcriptions), bool)
        kept[order] = True
        return kept & spoken & (np.exp(avg_logprob) >= self.min_confidence)


def self_train(
    checkpoint: base.Checkpoint,
    sets: tuple[str, ...],
    out: str,
    filter: OmitArgPrefixes[Filter] = Filter(),  # noqa: B008  frozen
    split: str = "train",
    run_dir: Path | None = None,
    data_dir: base.DataDir = Path("data"),
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> tuple[str, ...]:
    """Transcribes audio, stores the most confident transcripts as sets, and trains on these and the run's own sets.

    For each set X it writes the prepared set OUT-X, which refers to X's audio and has the selected transcripts.
    Training then continues from the checkpoint, of a run trained by ctc or speech_lm, with the run's settings, on that
    run's sets and the new ones.

    Args:
      sets: names of prepared data sets; their own transcripts are ignored.
      out: prefix of the new sets' names.
      filter: selection of transcripts.
      split: the split to transcribe.
      run_dir: directory of the new run; without it the command to start it is printed.
    """
    transcriber = open_transcriber(checkpoint)
    if transcriber.task != "transcribe":
        raise DataError(f"{checkpoint}: was trained to {transcriber.task}; name a run that transcribes")
    speech = EvaluationSpeech(transcriber, sets, split, data_dir, seconds_per_batch)
    by_row = transcriber.transcribe_batches(speech.batches())
    transcriptions = [by_row[row] for row in range(len(speech.index))]
    kept = filter.keep(transcriptions)
    if not kept.any():
        raise DataError(f"no transcript of {', '.join(sets)} reaches --min-confidence: lower it, or train further")
    names, first = [], speech.index.first_row
    for index, part in enumerate(speech.index.parts):
        rows = range(first[index], first[index + 1])
        texts = [transcriptions[row].text if kept[row] else "" for row in rows]
        names.append(f"{out}-{part.set_dir.name}")
        origin = {"transcribed_by": str(transcriber.checkpoint), "filter": filter.model_dump()}
        relabel(part, texts, data_dir / names[-1], origin)
        sure = kept[rows.start : rows.stop]
        hours = speech.index.num_samples[rows.start : rows.stop][sure].sum() / speech.index.sample_rate / 3600
        print(f"{data_dir / names[-1]}: {sure.sum()} of {len(rows)} transcripts, {hours:.2f} hours")
    chosen = tuple(name if split == "train" else f"{name}:{split}" for name in names)
    source, experiment = transcriber.checkpoint, transcriber.experiment
    own = tuple(name for name in experiment.data.sets if name not in chosen)
    run_of_source = str(source.parent.parent)
    data = experiment.data.replace(sets=own + chosen, data_dir=str(data_dir), tokenizer=run_of_source)
    experiment = experiment.replace(data=data, init_from=(InitFrom(checkpoint=str(source), groups=()),))
    if run_dir is not None:
        result = train(experiment, run_dir)
        print(f"{run_dir}: {result.step} steps; dev: " + json.dumps(result.dev))
    else:
        file = data_dir / f"{out}.json"
        file.write_text(experiment.model_dump_json(indent=1))
        print(f"To train on them:\njax-speechlm finetune --config {file} --run-dir runs/{out}")
    return chosen
