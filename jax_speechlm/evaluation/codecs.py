"""Evaluates codecs: copies of natural speech through their codes, judged beside the natural recordings."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from data_pipelines.core.paths import as_path
from jax_speechlm.evaluation import base, synthesis_page
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.speech_rows import coded, natural_speech
from jax_speechlm.evaluation.synthesis_report import SynthesisReport
from jax_speechlm.inference.codec import CodecModel

Codecs = Annotated[tuple[Path, ...], arg(help="runs of further codecs, each with a row of copies.")]


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    codecs: Codecs = (),
    limit: base.Limit = None,
    settings: OmitArgPrefixes[JudgeSettings] = JudgeSettings(),  # noqa: B008  frozen
    normalizer: NormalizerName | None = None,
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
) -> SynthesisReport:
    """Judges a codec's copies of natural speech: errors of recognizers, quality, voice, distances, bits per second.

    Writes `report.json`, `table.md`, and `index.html`, a page with the audio.

    Args:
      settings: which judges, and how they are opened.
      normalizer: of references and transcripts; by default Whisper's for English, else basic.
    """
    opened = [(as_path(name).name, CodecModel.load(name)) for name in (*codecs, checkpoint)]
    texts, natural = natural_speech(data_dir, sets, split, limit)
    rows = [natural, *(coded(codec, f"{name} copy", natural, texts) for name, codec in opened)]
    out = out or base.report_folder(checkpoint, sets, split)
    return synthesis_page.judge_sets(
        rows, texts, settings, out, sets=sets, split=split, limit=limit, normalizer_name=normalizer
    )
