"""`jax-speechlm judge`: judges folders of audio files that say the texts of prepared sets."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from data_pipelines.core.paths import as_path
from jax_speechlm.evaluation import base, synthesis_page
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.speech_rows import copied, folder_row, natural_speech
from jax_speechlm.evaluation.synthesis_report import SynthesisReport
from jax_speechlm.inference.vocode import Vocoder

Rows = Positional[Annotated[tuple[str, ...], arg(metavar="NAME=FOLDER", help="systems: FOLDER has <utterance>.wav.")]]


def judge_folders(
    rows: Rows = (),
    *,
    sets: base.Sets,
    split: base.Split = "test",
    vocoders: tuple[str, ...] = (),
    limit: base.Limit = None,
    settings: OmitArgPrefixes[JudgeSettings] = JudgeSettings(),  # noqa: B008  frozen
    normalizer: NormalizerName | None = None,
    data_dir: base.DataDir = Path("data"),
    out: Path | None = None,
) -> SynthesisReport:
    """Judges synthesised speech beside natural speech: errors of recognizers, quality, voice, distances.

    The texts and the natural recordings are those of prepared sets. Writes `report.json`, `table.md`, and `index.html`,
    a page with the audio. Each judge that is not installed is left out, with the reason below the table.

    Args:
      rows: without any, natural speech alone is judged.
      vocoders: runs of vocoders, or griffin-lim: each has a row of copies of natural speech.
      settings: which judges, and how they are opened.
      normalizer: of references and transcripts; by default Whisper's for English, else basic.
      out: folder of the report; by default judged/<sets>-<split>.
    """
    texts, natural = natural_speech(data_dir, sets, split, limit)
    opened = [(as_path(name).name, Vocoder.load(name)) for name in vocoders]
    systems = [natural, *(folder_row(row, texts) for row in rows)]
    systems += [copied(vocoder, f"{name} copy", natural, texts) for name, vocoder in opened]
    out = out or Path("judged") / f"{'+'.join(sets)}-{split}"
    return synthesis_page.judge_sets(
        systems, texts, settings, out, sets=sets, split=split, limit=limit, normalizer_name=normalizer
    )
