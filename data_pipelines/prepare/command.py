"""From a name, a manifest, files of text or a TFDS data set to a prepared set: records, an index and a report.

    <data_dir>/<name>/meta.json              what the set is; its presence says that the set is whole
    <data_dir>/<name>/index/<split>.parquet  row i describes record i; of text, it holds the documents themselves
    <data_dir>/<name>/<builder>/...          the records of speech, as TFDS writes them
    <data_dir>/<name>/report.json            what was kept and dropped

While the work lasts, converted clips lie in `<data_dir>/<name>/work`; Debian packages stay in `<data_dir>/packages`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.audio.clips import Clip, Corpus, Dropped
from data_pipelines.core.errors import DataError, disk_full, is_disk_full
from data_pipelines.core.paths import AnyPath, as_path, cache_dir, is_url, reach
from data_pipelines.prepare.beam import Runner, prepare_on_beam
from data_pipelines.prepare.convert import ConversionFolder, Converted, check_rate, too_many_bad
from data_pipelines.prepare.report import PreparationReport, summarise
from data_pipelines.prepare.speech_store import find_prepared, has_older_texts, publish, store
from data_pipelines.prepare.text_report import TextReport
from data_pipelines.prepare.text_store import prepare_text
from data_pipelines.sources import debian_texts, tfds_sets
from data_pipelines.sources.catalogue import debian_source
from data_pipelines.sources.manifest import TextForm, digest, manifest_source
from data_pipelines.sources.text_files import Unit, text_files
from data_pipelines.storage import index as indexes
from data_pipelines.text.cleaning import Cleaning
from data_pipelines.text.documents import TextSource
from data_pipelines.text.normalize import split_order


def prepare(
    name: str = "",
    *,
    manifest: Path | None = None,
    text: tuple[str, ...] = (),
    tfds: str | None = None,
    debian: str = "",
    data_dir: Path = Path("data"),
    num_workers: int | None = None,
    max_seconds: float = 120.0,
    max_bad: float = 0.05,
    normalise_text: TextForm = "none",
    unit: Unit = "line",
    encoding: str = "utf-8",
    cleaning: Cleaning = Cleaning(),  # noqa: B008
    force: bool = False,
    beam_runner: str | None = None,
    beam_options: tuple[str, ...] = (),
) -> PreparationReport | TextReport:
    """Prepares one data set of speech or text, or finds it prepared already.

    A killed preparation of speech goes on where it was; one of text begins anew, with what it downloaded.

    Args:
      name: a set that Debian packages hold, such as asterisk-en (speech) or text-en; with `manifest`, `text` or `tfds`,
        what to call the set.
      debian: the set that Debian packages hold, where what is made of it is to have another name than that.
      manifest: JSONL file that lists your own audio, {"audio": path, "text"?, "id"?, "speaker"?, "language"?, "split"?}
        a line; its name without suffix is the default name. "offset" and "duration", or "start" and "end", in seconds,
        and "channel", from 0, name a part of the audio.
      text: your own text: paths or quoted patterns of .txt, .jsonl ({"text", "id"?, "language"?, "source"?, "label"?,
        "split"?} a line) or .parquet files, plain or compressed (.gz, .bz2, .xz, .zst).
      tfds: a data set of TFDS, speech such as librispeech or common_voice/en, or text such as lm1b.
      data_dir: prepared sets lie in folders below it; a URL (gs://, s3://) receives a set that was made in the local
        cache.
      num_workers: threads that decode and resample audio, one a core by default; processes that clean text, one by
        default, and worth more from gigabytes on.
      max_seconds: longer clips are dropped and counted.
      max_bad: share of items that may be bad (missing, corrupt, silent, duplicate, malformed) before the run stops.
      normalise_text: of transcripts in manifests and TFDS sets: `none` keeps them as given; `basic` makes them
        lower-case words without punctuation, numbers spelled out, as Debian sets always are; a text with a number or
        sign of unknown spoken form is dropped and counted.
      unit: what is a document in a .txt file: a line, a paragraph (a blank line ends it) or the file.
      encoding: of .txt and .jsonl files.
      cleaning: what is done to text.
      beam_runner: convert speech by this runner of Apache Beam: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner;
        its workers have to see `data_dir` and the audio. `num_workers` is then the runner's own affair.
      beam_options: of the runner, as name=value: direct_num_workers=4 direct_running_mode=multi_processing.
      force: prepare again even if the set is there; needed where audio changed under an unchanged manifest.

    Returns:
      What was kept and dropped.

    Raises:
      DataError: with the remedy: an unknown set, no apt or no internet, too many bad items, a full disk, nothing kept,
        another process at work on the same set.
    """
    if sum(map(bool, (manifest, text, tfds, debian))) > 1:
        raise DataError("Give a manifest, files of text, a TFDS data set or one of Debian, only one of them.")
    name = name or debian or (manifest.stem if manifest else (tfds or "").replace("/", "-"))
    if text and not name:
        raise DataError("Files of text need a name for the set they make: --name my-text.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DataError(f"{name!r} cannot be the name of a data set: use letters, digits, '-', '_' and '.'.")
    if beam_runner is not None:
        if is_url(as_path(data_dir)):
            raise DataError(
                f"{data_dir}: the workers of Beam write ArrayRecord, which needs a file system: mount the bucket where "
                "they run (gcsfuse, Mountpoint for S3), or name a folder on NFS, and give that as --data-dir."
            )
        data_dir, manifest = data_dir.absolute(), manifest and manifest.absolute()  # workers have folders of their own
    place = reach(data_dir) / name
    folder = _staging(place) if is_url(place) else place
    packages = (cache_dir() if is_url(place) else Path(data_dir)) / "packages"
    about_speech = {"tfds": tfds, "max_seconds": max_seconds, "normalise_text": normalise_text}
    about_speech["manifest_sha256"] = digest(manifest) if manifest else None
    if debian and debian != name:
        about_speech["debian"] = debian
    files = text_files(text, name, unit=unit, encoding=encoding) if text else None
    held_out = _held_out(as_path(data_dir), cleaning.held_out)
    about_text = {"tfds": tfds, "cleaning": asdict(cleaning), "held_out": held_out and held_out.fingerprint}
    about_text |= {"files": files and files.origin, "unit": unit, "encoding": encoding, "debian": debian or name}
    if not force:
        if not text and find_prepared(place, about_speech):
            # English transcripts of Debian's sets are the same by every version.
            if normalise_text == "basic" or not (manifest or tfds or (debian or name).endswith("-en")):
                _warn_of_older_texts(place)
            return PreparationReport.load(place / "report.json")
        if not manifest and find_prepared(place, about_text):
            if {"spoken", "punctuation"} & set(cleaning.steps):
                _warn_of_older_texts(place)
            return TextReport.load(place / "report.json")
    source: Corpus | TextSource
    if files is not None:
        source = files
    elif manifest is not None:
        source = manifest_source(manifest, name, normalise_text)
    elif tfds is not None:
        source = tfds_sets.tfds_source(tfds, name, normalise_text)
    elif (debian or name) in debian_texts.NAMES:
        source = replace(debian_texts.debian_texts(debian or name, packages), name=name)
    else:
        source = replace(debian_source(debian or name, packages), name=name)
    if beam_runner is not None and isinstance(source, TextSource):
        raise DataError("Beam prepares speech; text is cleaned by --num-workers processes of one machine.")
    with _locked(folder):
        if isinstance(source, TextSource):
            sentences = held_out.column("text").to_pylist() if held_out else []
            if not cleaning.languages:
                cleaning = replace(cleaning, languages=source.languages)
            report = prepare_text(
                source, folder, about_text, cleaning, sentences, max_bad=max_bad, num_workers=num_workers or 1
            )
        elif beam_runner is not None:
            runner = Runner(beam_runner, beam_options)
            report = prepare_on_beam(source, folder, about_speech, runner, max_seconds=max_seconds, max_bad=max_bad)
        else:
            report = prepare_source(
                source,
                folder,
                about_speech,
                num_workers=num_workers or os.cpu_count() or 1,
                max_seconds=max_seconds,
                max_bad=max_bad,
            )
        if is_url(place):
            publish(folder, place)
        return report


def _warn_of_older_texts(place: AnyPath) -> None:
    if has_older_texts(place):
        print(
            f"warning: {place} was prepared by an earlier version, whose texts lack combining marks (Hindi, Thai, "
            "vocalised Arabic, ...) and have some numbers wrong, such as 1.05; --force prepares it again, with the "
            "same sentences in the same splits",
            file=sys.stderr,
        )


def _staging(place: AnyPath) -> Path:
    """The local folder where a set is made that belongs into a bucket; what a kill leaves there is taken up again."""
    return cache_dir() / "prepare" / hashlib.sha256(str(place).encode()).hexdigest()[:16] / place.name


def _held_out(data_dir: AnyPath, names: Sequence[str]) -> indexes.Index | None:
    """The named sets without their train splits; `name:split` is one split."""
    parts: list[str] = []
    for name in names:
        splits = indexes.splits_of(data_dir / name) if ":" not in name else ()
        parts += [f"{name}:{split}" for split in splits if split != "train"] if splits else [name]
    return indexes.read_sets(data_dir, parts, "test") if parts else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from preparing the same set; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder}: another process is preparing this set; wait for it, or stop it first."
            ) from error
        yield


def prepare_source(
    source: Corpus, folder: Path, request: dict[str, Any], *, num_workers: int, max_seconds: float, max_bad: float
) -> PreparationReport:
    """Converts the clips of `source` and stores them in `folder`; arguments as in `prepare`."""
    console = Console(stderr=True)
    clips: list[Clip] = []
    dropped: list[Dropped] = []
    for item in source.unique_items():
        clips.append(item) if isinstance(item, Clip) else dropped.append(item)
    allowed = int(max_bad * (len(clips) + len(dropped)))
    bad = [item for item in dropped if item.is_bad]
    if len(bad) > allowed:
        raise too_many_bad(bad, allowed)
    converted: list[Converted] = []
    try:
        workshop = ConversionFolder(folder / "work")
        outcomes = workshop.convert(
            clips, num_workers=num_workers, max_seconds=max_seconds, max_bad=allowed - len(bad), console=console
        )
        for outcome in outcomes:
            item = check_rate(outcome, source.characters_per_second) if isinstance(outcome, Converted) else outcome
            converted.append(item) if isinstance(item, Converted) else dropped.append(item)
        converted.sort(key=lambda item: split_order(item.clip.split))
        report = summarise(source.name, converted, dropped)
        if not converted:
            report.print(console)
            raise DataError(f"{source.name}: nothing is left of {len(dropped)} items; the table above says why.")
        with console.status(f"{source.name}: writing {len(converted):,} records"):
            report.save(folder / "report.json")
            store(source, converted, report, folder, workshop.folder, request)
    except (OSError, RuntimeError) as error:  # the latter from ArrayRecord
        if not is_disk_full(error):
            raise
        each = sum(item.num_bytes for item in converted) / max(len(converted), 1) or 2**16
        raise disk_full(folder, int(each * (2 * len(clips) - len(converted)))) from error
    shutil.rmtree(workshop.folder)
    return report


def main(argv: Sequence[str], prog: str) -> None:
    """The command line: `prog asterisk-en queen-en`, `prog --manifest my.jsonl`, `prog my-text --text 'my/*.txt'`."""
    import tyro

    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    options = list(argv[len(names) :])
    if len(names) > 1 and {option.partition("=")[0] for option in options} & {"--manifest", "--tfds", "--text"}:
        raise DataError(
            f"a manifest, files of text or a TFDS set make one prepared set, but {len(names)} names are given."
        )
    if not argv:
        raise DataError("name a data set, such as asterisk-en or text-en, or give --manifest, --text or --tfds.")
    for name in names or [None]:
        report = tyro.cli(
            prepare,
            prog=f"{prog} [NAME ...]",
            args=options if name is None else ["--name", name, *options],
            config=(tyro.conf.OmitArgPrefixes,),
        )
        report.print()
