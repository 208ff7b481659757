"""`jax-speechlm judge`: judges folders of audio files that say the texts of prepared sets."""

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from data_pipelines.audio import decode
from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.storage.records import RecordReader
from jax_speechlm.evaluation import base, synthesis_page
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.synthesis import SpeechRow, SpokenText
from jax_speechlm.evaluation.synthesis_report import NATURAL, SynthesisReport

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Of the audio files that a folder may have for an utterance, in order of preference."""

Rows = Positional[Annotated[tuple[str, ...], arg(metavar="NAME=FOLDER", help="systems: FOLDER has <utterance>.wav.")]]


def judge_folders(
    rows: Rows = (),
    *,
    sets: base.Sets,
    split: base.Split = "test",
    limit: int | None = None,
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
      limit: judge only the first utterances, this many.
      settings: which judges, and how they are opened.
      normalizer: of references and transcripts; by default Whisper's for English, else basic.
      out: folder of the report; by default judged/<sets>-<split>.
    """
    texts, natural = natural_speech(data_dir, sets, split, limit)
    systems = [natural, *(_folder_row(row, texts) for row in rows)]
    title = f"{', '.join(sets)} {split}" + (f", first {len(texts)}" if limit else "")
    out = out or Path("judged") / f"{'+'.join(sets)}-{split}"
    return synthesis_page.judge_and_publish(systems, texts, settings, out, title=title, normalizer_name=normalizer)


def natural_speech(
    data_dir: Path, sets: tuple[str, ...], split: str, limit: int | None = None, sample_rate: int | None = None
) -> tuple[list[SpokenText], SpeechRow]:
    """Reads texts and recordings of one split of prepared sets.

    Utterances are named as in reports of recognizers: by id, and with the set before it if there are several.

    Args:
      limit: read only the first utterances, this many.
      sample_rate: that the recordings must have, in Hz; None for any.
    """
    index = indexes.read_sets(data_dir, sets, split, sample_rate)
    reader, texts, audio = RecordReader(index), [], {}
    columns = [index.column(name).to_pylist() for name in ("id", "text", "speaker", "language")]
    for row, (name, text, speaker, language) in enumerate(zip(*columns, strict=True)):
        if limit is not None and row >= limit:
            break
        name = name if len(sets) == 1 else f"{index.locate(row)[0].set_dir.name}/{name}"
        texts.append(SpokenText(name, text, speaker, language))
        audio[name] = decode.decode(reader.read(row)[0], name=name, rate=index.sample_rate)
    return texts, SpeechRow(NATURAL, audio, index.sample_rate)


def _folder_row(argument: str, texts: list[SpokenText]) -> SpeechRow:
    name, is_named, folder = argument.partition("=")
    if not (name and is_named and folder):
        raise DataError(f"{argument!r} is not of the form NAME=FOLDER, such as griffin-lim=copies/griffin-lim")
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder with the audio of {name}")
    audio = {}
    for text in texts:
        files = (Path(folder) / f"{text.id}{suffix}" for suffix in SUFFIXES)
        if (file := next((file for file in files if file.is_file()), None)) is not None:
            audio[text.id] = file
    if not audio:
        raise DataError(f"{folder} has no audio of these utterances, such as {texts[0].id}{SUFFIXES[0]}")
    return SpeechRow(name, audio)
