"""From a name, a manifest or a TFDS data set to a prepared set: ArrayRecord files, an index and a report.

    <data_dir>/<name>/meta.json              what the set is; its presence says that the set is whole
    <data_dir>/<name>/index/<split>.parquet  row i describes record i
    <data_dir>/<name>/<builder>/...          the records, as TFDS writes them
    <data_dir>/<name>/report.json            what was kept and dropped

While the work lasts, converted clips lie in `<data_dir>/<name>/work`; Debian packages stay in `<data_dir>/packages`.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines.clips import Clip, Dropped, Source
from data_pipelines.convert import Converted, Workshop, too_many_bad
from data_pipelines.errors import DataError, disk_full, is_disk_full
from data_pipelines.report import ClipSummary, Report, summarise
from data_pipelines.sources.catalogue import debian_source
from data_pipelines.sources.manifest import TextForm, digest, manifest_source
from data_pipelines.sources.tfds_sets import tfds_source
from data_pipelines.store import find_prepared, store
from data_pipelines.text import SPLITS


def prepare(
    name: str = "",
    *,
    manifest: Path | None = None,
    tfds: str | None = None,
    data_dir: Path = Path("data"),
    num_workers: int | None = None,
    max_seconds: float = 120.0,
    max_bad: float = 0.05,
    normalise_text: TextForm = "none",
    force: bool = False,
) -> Report:
    """Prepares one data set, or finds it prepared already; a killed call goes on where it was.

    Args:
      name: a set that Debian packages hold, such as `asterisk-en`; with `manifest` or `tfds`, what to call the set.
      manifest: a JSONL file that lists the user's own audio (see `sources.manifest`); its name without suffix is the
        default `name`.
      tfds: a data set of TFDS, such as `librispeech` or `common_voice/en`.
      data_dir: prepared sets lie in folders below it.
      num_workers: threads that decode and resample; default: one a core.
      max_seconds: longer clips are dropped and counted.
      max_bad: share of items that may be bad (missing, corrupt, silent, duplicate, malformed) before the run stops.
      normalise_text: for manifests and TFDS sets: `none` keeps transcripts as given; `basic` makes them lower-case
        words without punctuation, numbers spelled out, as Debian sets always are.
      force: prepare again even if the set is there; needed where audio changed under an unchanged manifest.

    Returns:
      What was kept and dropped.

    Raises:
      DataError: with the remedy: an unknown set, no apt or no internet, too many bad items, a full disk, nothing kept.
    """
    if manifest is not None and tfds is not None:
        raise DataError("Give a manifest or a TFDS data set, not both.")
    name = name or (manifest.stem if manifest else (tfds or "").replace("/", "-"))
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DataError(f"{name!r} cannot be the name of a data set: use letters, digits, '-', '_' and '.'.")
    folder = Path(data_dir) / name
    request: dict[str, Any] = {"tfds": tfds, "max_seconds": max_seconds, "normalise_text": normalise_text}
    request["manifest_sha256"] = digest(manifest) if manifest else None
    if not force and find_prepared(folder, request):
        return Report.load(folder / "report.json")
    if manifest is not None:
        source = manifest_source(manifest, name, normalise_text)
    elif tfds is not None:
        source = tfds_source(tfds, name, normalise_text)
    else:
        source = debian_source(name, Path(data_dir) / "packages")
    return prepare_source(
        source,
        folder,
        request,
        num_workers=num_workers or os.cpu_count() or 1,
        max_seconds=max_seconds,
        max_bad=max_bad,
    )


def prepare_source(
    source: Source, folder: Path, request: dict[str, Any], *, num_workers: int, max_seconds: float, max_bad: float
) -> Report:
    """Converts the clips of `source` and stores them in `folder`; arguments as in `prepare`."""
    console = Console(stderr=True)
    clips, dropped = _list_items(source)
    allowed = int(max_bad * (len(clips) + len(dropped)))
    bad = [item for item in dropped if item.is_bad]
    if len(bad) > allowed:
        raise too_many_bad(bad, allowed)
    converted: list[Converted] = []
    try:
        workshop = Workshop(folder / "work")
        outcomes = workshop.convert(
            clips, num_workers=num_workers, max_seconds=max_seconds, max_bad=allowed - len(bad), console=console
        )
        for outcome in outcomes:
            item = _check_rate(outcome, source.characters_per_second) if isinstance(outcome, Converted) else outcome
            converted.append(item) if isinstance(item, Converted) else dropped.append(item)
        converted.sort(key=lambda item: SPLITS.index(item.clip.split) if item.clip.split in SPLITS else len(SPLITS))
        report = summarise(source.name, [_summary(item) for item in converted], dropped)
        if not converted:
            report.print(console)
            raise DataError(f"{source.name}: nothing is left of {len(dropped)} items; the table above says why.")
        with console.status(f"{source.name}: writing {len(converted):,} records"):
            report.save(folder / "report.json")
            store(source, converted, folder, workshop.folder, request)
    except OSError as error:
        if not is_disk_full(error):
            raise
        each = sum(item.num_bytes for item in converted) / max(len(converted), 1) or 2**16
        raise disk_full(folder, int(each * (2 * len(clips) - len(converted)))) from error
    shutil.rmtree(workshop.folder)
    return report


def main(argv: Sequence[str], prog: str) -> None:
    """The command line: `prog asterisk-en queen-en`, `prog --manifest my.jsonl` or `prog --tfds librispeech`."""
    import tyro

    def run(
        names: tyro.conf.Positional[tuple[str, ...]] = (),
        manifest: Path | None = None,
        tfds: str | None = None,
        data_dir: Path = Path("data"),
        num_workers: int | None = None,
        max_seconds: float = 120.0,
        max_bad: float = 0.05,
        normalise_text: TextForm = "none",
        force: bool = False,
    ) -> None:
        """Fetches, converts and stores speech for training.

        Args:
          names: sets that Debian packages hold, such as asterisk-en queen-en; or what to call the manifest's set.
          manifest: JSONL file with your own audio: {"audio": path, "text"?, "id"?, "speaker"?, "language"?, "split"?}.
          tfds: a data set of TFDS: librispeech, ljspeech, common_voice/en.
          data_dir: prepared sets lie in folders below it.
          num_workers: threads that decode and resample; default: one a core.
          max_seconds: longer clips are dropped and counted.
          max_bad: share of bad items (missing, corrupt, silent, duplicate, malformed) that stops the run.
          normalise_text: basic: lower case, no punctuation, numbers spelled; none: as given. Debian sets are basic.
          force: prepare again even if the set is there.
        """
        if (manifest or tfds) and len(names) > 1:
            raise DataError(f"one manifest or TFDS set makes one prepared set, but {len(names)} names are given.")
        if not (names or manifest or tfds):
            raise DataError("name a data set, such as asterisk-en, or give --manifest or --tfds.")
        for name in names or ("",):
            report = prepare(
                name,
                manifest=manifest,
                tfds=tfds,
                data_dir=data_dir,
                num_workers=num_workers,
                max_seconds=max_seconds,
                max_bad=max_bad,
                normalise_text=normalise_text,
                force=force,
            )
            report.print()

    tyro.cli(run, prog=prog, args=argv)


def _list_items(source: Source) -> tuple[list[Clip], list[Dropped]]:
    clips: dict[str, Clip] = {}
    dropped: list[Dropped] = []
    for item in source.items():
        if isinstance(item, Dropped):
            dropped.append(item)
        elif item.id in clips:
            detail = f"{item.id}: this id occurs twice in {source.name}; the first is kept, give the second its own id"
            dropped.append(Dropped(item.id, "duplicate id", True, detail))
        else:
            clips[item.id] = item
    return list(clips.values()), dropped


def _check_rate(item: Converted, characters_per_second: tuple[float, float] | None) -> Converted | Dropped:
    if characters_per_second is not None:
        slowest, fastest = characters_per_second
        if not slowest <= len(item.clip.text) / item.seconds <= fastest:
            return Dropped(
                item.clip.id, f"text does not fit audio (outside {slowest:g}-{fastest:g} characters a second)"
            )
    return item


def _summary(item: Converted) -> ClipSummary:
    return ClipSummary(
        id=item.clip.id,
        split=item.clip.split,
        speaker=item.clip.speaker,
        seconds=item.seconds,
        words=len(item.clip.text.split()),
        is_clipped=item.levels.is_clipped,
        is_mostly_silence=item.levels.is_mostly_silence,
        clipped_share=item.levels.clipped_share,
        silence_share=item.levels.silence_share,
    )
