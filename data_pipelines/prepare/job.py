"""The prepare job: from a name, a manifest, files of text or a TFDS data set to records, an index and a report.

    <data_dir>/<name>/meta.json              description of the set; it exists once the set is complete
    <data_dir>/<name>/index/<split>.parquet  row i describes record i; of text, it contains the documents themselves
    <data_dir>/<name>/<builder>/...          the records of speech, as TFDS writes them
    <data_dir>/<name>/report.json            counts of kept and dropped items

During the job, converted clips are in `<data_dir>/<name>/work`; Debian packages stay in `<data_dir>/packages`.
"""

import contextlib
import fcntl
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

from data_pipelines.audio.clean_up import CleanUpMethod
from data_pipelines.audio.clips import Clip, Corpus, Dropped
from data_pipelines.audio.voice import VoiceForm, check_installed
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError, disk_full_as_data_error
from data_pipelines.core.files import short_digest
from data_pipelines.core.paths import AnyPath, as_path, cache_dir, is_url, reach
from data_pipelines.prepare.beam import CHUNK_CLIPS, Runner, prepare_on_beam
from data_pipelines.prepare.convert import ConversionFolder, Converted, Format, check_bad, nothing_left
from data_pipelines.prepare.prepared_set import find_prepared, has_older_texts, publish
from data_pipelines.prepare.report import PreparationReport, TextReport, summarise
from data_pipelines.prepare.speech_store import store
from data_pipelines.prepare.text_store import prepare_text
from data_pipelines.prepare.voice import without_misfits
from data_pipelines.sources import debian_texts, tfds_sets
from data_pipelines.sources.catalogue import debian_source
from data_pipelines.sources.listing import TextForm
from data_pipelines.sources.speech_formats import MANIFEST, digest, speech_format, speech_source
from data_pipelines.sources.text_files import Unit, text_files
from data_pipelines.storage import index as indexes
from data_pipelines.text.cleaning import Cleaning
from data_pipelines.text.documents import TextSource
from data_pipelines.text.normalize import split_order

_RATES = 1_000, 192_000  # Hz, of stored audio


def prepare(
    name: str = "",
    *,
    manifest: Path | None = None,
    format: str = "auto",
    language: str = "",
    allow_commands: bool = False,
    text: tuple[str, ...] = (),
    tfds: str | None = None,
    debian: str = "",
    data_dir: Path = Path("data"),
    num_workers: int | None = None,
    max_seconds: float = 120.0,
    sample_rate: int = DEFAULT_SAMPLE_RATE,
    max_bad: float = 0.05,
    enhance: CleanUpMethod | None = None,
    loudness: float | None = None,
    voice: bool = False,
    edge_silence: float = VoiceForm().edge_silence,
    max_clipped: float = VoiceForm().max_clipped,
    normalise_text: TextForm = "none",
    scrub: bool = False,
    unit: Unit = "line",
    encoding: str = "utf-8",
    cleaning: Cleaning = Cleaning(),  # noqa: B008
    force: bool = False,
    beam_runner: str | None = None,
    beam_options: tuple[str, ...] = (),
    beam_chunk: int = CHUNK_CLIPS,
) -> PreparationReport | TextReport:
    """Prepares a data set of speech or text, unless it is prepared already.

    A killed preparation of speech continues at the next call; one of text starts again with the downloaded files.

    Args:
      name: a set in Debian packages, such as asterisk-en (speech) or text-en; with `manifest`, `text` or `tfds`, the
        name of the new set.
      debian: the set in Debian packages, if the prepared set should have another name.
      manifest: your own audio: a JSONL file, {"audio": path, "text"?, "id"?, "speaker"?, "language"?, "intent"?,
        "slots"?, "split"?} per line, in which "offset" and "duration", or "start" and "end", in seconds, and "channel",
        from 0, select a part of the audio; or a file or folder in another format: see `format`. Its name without suffix
        is the default name.
      format: of `manifest`, guessed unless given: manifest, nemo (tarred), lhotse, kaldi (and ESPnet), audiofolder,
        parquet, webdataset, common_voice, librispeech, mls, voxpopuli, vctk, ljspeech, aishell, files.
      language: two-letter code of clips in `manifest` that state none.
      allow_commands: run the commands that a wav.scp or a lhotse manifest has in place of sound files; only from a
        source that you trust.
      text: your own text: paths or quoted patterns of .txt, .jsonl ({"text", "id"?, "language"?, "source"?, "label"?,
        "split"?} per line) or .parquet files, plain or compressed (.gz, .bz2, .xz, .zst).
      tfds: a data set of TFDS, speech such as librispeech or common_voice/en, or text such as lm1b.
      data_dir: parent folder of prepared sets; a set for a URL (gs://, s3://) is made in the local cache and then
        copied.
      num_workers: threads that decode and resample audio, by default one per core; processes that clean text, by
        default one, and useful from gigabytes on.
      max_seconds: longer clips are dropped and counted.
      sample_rate: of the stored audio, in Hz; the front end of a run (`frontend.mel.sample_rate`) must have the same.
      max_bad: share of items that may be bad (missing, corrupt, silent, duplicate, malformed) before the run stops.
      enhance: remove noise and hum from all clips: wiener, subtraction, gate, or none for the high-pass filter alone
        (see `jax-speechlm enhance`).
      loudness: make all clips equally loud, in LUFS, such as -23 (ITU-R BS.1770; pip install 'jax_speechlm[tts]'); less
        where peaks would clip. With `voice` -23 unless given.
      voice: for speech synthesis (pip install 'jax_speechlm[tts]'): drop clipped clips and clips whose text does not
        fit the set's own rate of speech, trim silence at the ends, make all clips equally loud; the report has how much
        of each.
      edge_silence: most silence before and after the speech of clips with `voice`, in seconds.
      max_clipped: share of samples at full scale above which `voice` drops a clip.
      normalise_text: of transcripts in manifests and TFDS sets: `none` keeps them as they are; `basic` makes them
        lower-case words without punctuation, with numbers in words, as in all Debian sets; `spoken` puts numbers,
        abbreviations and signs in words but keeps case and punctuation, for speech synthesis. A text with a number or
        sign of unknown spoken form is dropped and counted.
      scrub: replace e-mail addresses and numbers of telephones, cards and accounts in the transcripts of manifests and
        TFDS sets; for text see the step `personal`. The audio is not changed.
      unit: a document of a .txt file is a line, a paragraph (ended by a blank line) or the file.
      encoding: of .txt and .jsonl files.
      cleaning: steps for text.
      beam_runner: convert speech with this runner of Apache Beam: DirectRunner, FlinkRunner, SparkRunner,
        DataflowRunner; its workers need access to `data_dir` and the audio. `num_workers` has no effect then.
      beam_options: of the runner, as name=value: direct_num_workers=4 direct_running_mode=multi_processing.
      beam_chunk: clips that a worker of Beam converts at a time, with their audio in its memory.
      force: prepare again even if the set exists; needed if audio changed under an unchanged manifest.

    Returns:
      Counts of kept and dropped items.

    Raises:
      DataError: an unknown set, no apt or no internet, too many bad items, a full disk, nothing kept, or another
        process that prepares the same set; the message has the remedy.
    """
    if sum(map(bool, (manifest, text, tfds, debian))) > 1:
        raise DataError("Name only one of --manifest, --text, --tfds and --debian.")
    name = name or debian or (_default_name(manifest) if manifest else (tfds or "").replace("/", "-"))
    if text and not name:
        raise DataError("A set of text files needs a name: --name my-text.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DataError(f"{name!r} cannot be the name of a data set: use letters, digits, '-', '_' and '.'.")
    form_of_voice = _voice_form(voice, loudness, edge_silence, max_clipped)
    if not _RATES[0] <= sample_rate <= _RATES[1]:
        raise DataError(f"--sample-rate {sample_rate}: give {_RATES[0]} to {_RATES[1]} Hz, such as 8000 or 16000.")
    if beam_runner is not None:
        if is_url(as_path(data_dir)):
            raise DataError(
                f"{data_dir}: the workers of Beam write ArrayRecord, which needs a file system: mount the bucket where "
                "they run (gcsfuse, Mountpoint for S3), or name a folder on NFS, and give that as --data-dir."
            )
        data_dir, manifest = data_dir.absolute(), manifest and manifest.absolute()  # workers have other folders
    target = reach(data_dir) / name
    folder = _staging(target) if is_url(target) else target
    packages = (cache_dir() if is_url(target) else Path(data_dir)) / "packages"
    about_speech = {"tfds": tfds, "max_seconds": max_seconds, "normalise_text": normalise_text}
    if not manifest and (format != "auto" or language or allow_commands):
        raise DataError("--format, --language and --allow-commands have no effect without --manifest.")
    listing = speech_format(manifest, format) if manifest else None
    about_speech["manifest_sha256"] = digest(manifest, listing) if manifest else None
    if listing not in (None, MANIFEST):
        about_speech["format"] = listing.name
    if language:
        about_speech["language"] = language
    if allow_commands:
        about_speech["allow_commands"] = True
    if scrub:
        about_speech["scrub"] = True
    if debian and debian != name:
        about_speech["debian"] = debian
    if sample_rate != DEFAULT_SAMPLE_RATE:  # absent in the requests of sets that earlier versions prepared
        about_speech["sample_rate"] = sample_rate
    if form_of_voice is not None:
        about_speech["voice"] = form_of_voice._asdict()
    elif loudness is not None:
        about_speech["loudness"] = loudness
    if enhance is not None:
        about_speech["enhance"] = enhance
    files = text_files(text, name, unit=unit, encoding=encoding) if text else None
    held_out = _held_out(as_path(data_dir), cleaning.held_out)
    about_text = {"tfds": tfds, "cleaning": asdict(cleaning), "held_out": held_out and held_out.fingerprint}
    about_text |= {"files": files and files.origin, "unit": unit, "encoding": encoding, "debian": debian or name}
    if not force:
        if not text and find_prepared(target, about_speech):
            # English transcripts of Debian's sets are the same in every version.
            if normalise_text == "basic" or not (manifest or tfds or (debian or name).endswith("-en")):
                _warn_of_older_texts(target)
            return PreparationReport.load(target / "report.json")
        if not manifest and find_prepared(target, about_text):
            if {"spoken", "punctuation"} & set(cleaning.steps):
                _warn_of_older_texts(target)
            return TextReport.load(target / "report.json")
    source: Corpus | TextSource
    if files is not None:
        source = files
    elif manifest is not None:
        about = {"language": language, "allow_commands": allow_commands, "scrubs": scrub}
        source = speech_source(manifest, name, listing, normalise_text, **about)
    elif tfds is not None:
        source = tfds_sets.tfds_source(tfds, name, normalise_text, scrubs=scrub)
    elif (debian or name) in debian_texts.NAMES:
        source = replace(debian_texts.debian_texts(debian or name, packages), name=name)
    else:
        source = replace(debian_source(debian or name, packages), name=name)
    if beam_runner is not None and isinstance(source, TextSource):
        raise DataError("Beam prepares speech; text is cleaned by --num-workers processes of one machine.")
    if scrub and (isinstance(source, TextSource) or not (manifest or tfds)):
        raise DataError("--scrub is for transcripts of --manifest and --tfds; for text add `personal` to --steps.")
    if (voice or enhance or loudness is not None) and isinstance(source, TextSource):
        raise DataError(f"--voice, --enhance and --loudness prepare speech, but {name} is a set of text.")
    with _locked(folder):
        if isinstance(source, TextSource):
            sentences = held_out.column("text").to_pylist() if held_out else []
            if not cleaning.languages:
                cleaning = replace(cleaning, languages=source.languages)
            report = prepare_text(
                source, folder, about_text, cleaning, sentences, max_bad=max_bad, num_workers=num_workers or 1
            )
        else:
            form = Format(max_seconds, source.characters_per_second, sample_rate, form_of_voice)
            form = form._replace(enhance=enhance or "", loudness=None if voice else loudness)
            if beam_runner is not None:
                runner = Runner(beam_runner, beam_options, beam_chunk)
                report = prepare_on_beam(source, folder, about_speech, runner, form, max_bad=max_bad)
            else:
                workers = num_workers or os.cpu_count() or 1
                report = prepare_source(source, folder, about_speech, form, num_workers=workers, max_bad=max_bad)
        if is_url(target):
            publish(folder, target)
        return report


def _default_name(manifest: Path) -> str:
    name = manifest.absolute().name
    return name if manifest.is_dir() else Path(name.removesuffix(".gz")).stem


def _voice_form(voice: bool, loudness: float | None, edge_silence: float, max_clipped: float) -> VoiceForm | None:
    """Returns the form of clips for a voice, None without `voice`. Raises `DataError` for settings out of range."""
    form = VoiceForm(VoiceForm().loudness if loudness is None else loudness, edge_silence, max_clipped)
    if not voice and form[1:] != VoiceForm()[1:]:
        raise DataError("--edge-silence and --max-clipped have no effect without --voice.")
    if not (-50 <= form.loudness <= -5 and 0 <= form.edge_silence <= 10 and 0 <= form.max_clipped <= 1):
        raise DataError(
            "give a --loudness from -50 to -5 LUFS (-23 is usual), and with --voice an --edge-silence from 0 to 10 s "
            "and a share from 0 to 1 for --max-clipped."
        )
    if voice or loudness is not None:
        check_installed()
    return form if voice else None


def _warn_of_older_texts(folder: AnyPath) -> None:
    if has_older_texts(folder):
        print(
            f"warning: {folder} was prepared by an earlier version, whose texts lack combining marks (Hindi, Thai, "
            "vocalised Arabic, ...) and have some numbers wrong, such as 1.05; --force prepares it again, with the "
            "same sentences in the same splits",
            file=sys.stderr,
        )


def _staging(target: AnyPath) -> Path:
    """Returns the local folder where a set for a bucket is made, always the same: a killed job continues there."""
    return cache_dir() / "prepare" / short_digest(str(target).encode()) / target.name


def _held_out(data_dir: AnyPath, names: Sequence[str]) -> indexes.Index | None:
    """Reads the named sets without their train splits; `name:split` is one split."""
    parts: list[str] = []
    for name in names:
        splits = indexes.splits_of(data_dir / name) if ":" not in name else ()
        parts += [f"{name}:{split}" for split in splits if split != "train"] if splits else [name]
    return indexes.read_sets(data_dir, parts, "test") if parts else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Prevents other processes from preparing the same set; the lock ends with the process, even if it is killed."""
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
    source: Corpus, folder: Path, request: dict[str, Any], form: Format, *, num_workers: int, max_bad: float
) -> PreparationReport:
    """Converts the clips of `source` on this machine and stores them in `folder`; arguments as in `prepare`.

    Returns:
      Counts of kept and dropped clips.
    """
    console = Console(stderr=True)
    clips: list[Clip] = []
    dropped: list[Dropped] = []
    for item in source.unique_items():
        clips.append(item) if isinstance(item, Clip) else dropped.append(item)
    allowed = int(max_bad * (len(clips) + len(dropped)))
    bad = check_bad(dropped, allowed)
    converted: list[Converted] = []

    def missing_bytes() -> float:
        clip_bytes = sum(item.num_bytes for item in converted) / max(len(converted), 1) or 2**16
        return clip_bytes * (2 * len(clips) - len(converted))  # FLAC files, and as much again for the records

    with disk_full_as_data_error(folder, missing_bytes):
        conversion = ConversionFolder(folder / "work", form)
        for item in conversion.convert(clips, num_workers=num_workers, max_bad=allowed - len(bad), console=console):
            converted.append(item) if isinstance(item, Converted) else dropped.append(item)
        rate = None
        if form.voice is not None:
            converted, misfits, rate = without_misfits(converted)
            dropped += misfits
        converted.sort(key=lambda item: split_order(item.clip.split))
        report = summarise(source.name, converted, dropped, rate)
        if not converted:
            report.print(console)
            raise nothing_left(source.name, f"{len(dropped)} items")
        with console.status(f"{source.name}: writing {len(converted):,} records"):
            report.save(folder / "report.json")
            store(source, converted, report, folder, conversion.folder, request, form.sample_rate)
    shutil.rmtree(conversion.folder)
    return report


def main(argv: Sequence[str], prog: str) -> None:
    """Runs the command line: `prog asterisk-en queen-en`, `prog --manifest my.jsonl`, `prog my-text --text
    'my/*.txt'`.
    """
    import tyro

    names = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    options = list(argv[len(names) :])
    if len(names) > 1 and {option.partition("=")[0] for option in options} & {"--manifest", "--tfds", "--text"}:
        raise DataError(f"--manifest, --text and --tfds make one prepared set, but {len(names)} names are given.")
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
