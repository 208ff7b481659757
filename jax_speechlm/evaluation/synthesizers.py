"""Evaluates speech synthesis: speech of a run judged beside natural recordings of the same texts and their copies."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import OmitArgPrefixes, arg

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from data_pipelines.storage.units import UnitTexts, open_unit_ids
from jax_speechlm.evaluation import base, synthesis_page
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.speech_rows import TIMED, copied, natural_speech
from jax_speechlm.evaluation.synthesis import SpeechRow, SpokenText
from jax_speechlm.evaluation.synthesis_report import SynthesisReport
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.vocode import GRIFFIN_LIM
from jax_speechlm.training.runs import trained_units
from jax_speechlm.units.measures import Bitrate, bitrate

Vocoders = Annotated[
    tuple[str, ...],
    arg(help="runs of vocoders, or griffin-lim: each has a row of copies of natural speech, and one of this run's."),
]


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    vocoders: Vocoders = (GRIFFIN_LIM,),
    limit: base.Limit = None,
    units: Path | None = None,
    settings: OmitArgPrefixes[JudgeSettings] = JudgeSettings(),  # noqa: B008  frozen
    normalizer: NormalizerName | None = None,
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
) -> SynthesisReport:
    """Judges synthesised speech beside natural speech: errors of recognizers, quality, voice, distances, speed.

    Writes `report.json`, `table.md`, and `index.html`, a page with the audio. A voice of units speaks those that the
    sets are labelled with, and the table has their bits per second.

    Args:
      units: of a voice of units: folder of their k-means; by default `data.units` of the run.
      settings: which judges, and how they are opened.
      normalizer: of references and transcripts; by default Whisper's for English, else basic.
    """
    synthesizers = [(as_path(vocoder).name, Synthesizer.load(checkpoint, vocoder)) for vocoder in vocoders]
    texts, natural = natural_speech(data_dir, sets, split, limit)
    rows, name = [natural], as_path(checkpoint).name
    spoken, rate = texts, None
    if synthesizers and (run := synthesizers[0][1].run).units is not None:
        folder = trained_units(units or run.experiment.data.units, run.units, run.checkpoint)
        spoken, rate = unit_texts(indexes.read_sets(data_dir, sets, split), folder, texts)
    for vocoder, synthesizer in synthesizers:
        rows.append(copied(synthesizer.vocoder, f"{vocoder} copy", natural, texts))
    for vocoder, synthesizer in synthesizers:
        rows.append(synthesized(synthesizer, f"{name} + {vocoder}", spoken, rate))
    out = out or base.report_folder(checkpoint, sets, split)
    return synthesis_page.judge_sets(
        rows, texts, settings, out, sets=sets, split=split, limit=limit, normalizer_name=normalizer
    )


def unit_texts(index: indexes.Index, units: Path, texts: Sequence[SpokenText]) -> tuple[list[SpokenText], Bitrate]:
    """Returns the units of the first utterances of an index in place of their texts, and the rate of these units.

    Raises:
      DataError: the index is not labelled with these units, or an utterance has none.
    """
    of_row = UnitTexts(open_unit_ids(index, units))
    spoken = [dataclasses.replace(text, text=of_row[row]) for row, text in enumerate(texts)]
    if silent := [text.id for text in spoken if not text.text]:
        raise DataError(f"{len(silent)} utterances are too short for a unit of {units}, such as {silent[0]}")
    seconds = index.num_samples[: len(texts)].sum() / index.sample_rate
    known = of_row.store.units
    return spoken, bitrate([of_row.sequence(row) for row in range(len(texts))], known.num_units, float(seconds))


def synthesized(
    synthesizer: Synthesizer, name: str, texts: Sequence[SpokenText], rate: Bitrate | None = None
) -> SpeechRow:
    """Computes the row of a synthesizer, with the speaker of each text if the model knows that voice.

    Speeds are from text to samples, one text at a time.

    Args:
      rate: of the units that the texts are, if they are.
    """
    audio = {text.id: _speak(synthesizer, text)[0] for text in texts}
    elapsed, waits, num_samples = 0.0, [], 0
    for text in texts[:TIMED]:
        samples, wait, total = _speak(synthesizer, text)
        elapsed, num_samples = elapsed + total, num_samples + len(samples)
        waits.append(1e3 * wait)
    factor = elapsed * synthesizer.sample_rate / max(num_samples, 1)
    first = statistics.median(waits)
    speeds = {"real_time_factor": factor, "first_audio_ms": first}
    return SpeechRow(name, audio, synthesizer.sample_rate, bitrate=rate, **speeds)


def _speak(synthesizer: Synthesizer, text: SpokenText) -> tuple[np.ndarray, float, float]:
    """Returns samples, and the seconds until the first of them and until the last."""
    speaker = text.speaker if text.speaker in synthesizer.speakers else None
    start, parts, wait = time.perf_counter(), [], 0.0
    for part in synthesizer.stream(text.text, speaker, language=text.language or "en"):
        wait = wait or time.perf_counter() - start
        parts.append(part)
    return np.concatenate(parts), wait, time.perf_counter() - start
