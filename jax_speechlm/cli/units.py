"""`jax-speechlm units`: fits a k-means, labels sets with its units, reports on the units."""

from collections.abc import Sequence
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import subcommand_cli_from_dict

from data_pipelines.storage import index as indexes
from data_pipelines.storage.units import Units, is_labelled, open_unit_ids, read_units, write_units
from jax_speechlm.evaluation.units import UnitsReport, measure
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.parallel.mesh import MeshShape, make_mesh
from jax_speechlm.units.features import MFCC, Hidden, read_features, units_of_codec
from jax_speechlm.units.kmeans import KMeans, fit_kmeans, inertia
from jax_speechlm.units.labelling import label_part, sample_frames


def units(argv: Sequence[str], prog: str) -> None:
    """Runs one of the actions: fit, label, report."""
    subcommand_cli_from_dict({"fit": fit, "label": label, "report": report}, prog=prog, args=argv)


def fit(
    sets: tuple[str, ...],
    out: Path,
    kmeans: OmitArgPrefixes[KMeans] = KMeans(),  # noqa: B008  frozen
    mel: LogMel = LogMel(),  # noqa: B008  frozen
    checkpoint: str | None = None,
    layer: int | None = None,
    max_frames: int = 2_000_000,
    data_dir: Path = Path("data"),
    seconds_per_batch: float = 120.0,
) -> Units:
    """Fits speech units: a k-means over the frames of prepared training splits.

    The features are MFCCs of the front end `mel`, which must be the front end of the model to train, or hidden states
    of a trained encoder.

    Args:
      sets: names of prepared data sets; "name:split" selects another split than "train".
      out: folder to write; label sets with it, then give it to training as --data.units.
      kmeans: settings of the fit.
      mel: the front end; every frame gets one unit.
      checkpoint: use hidden states of this run's encoder instead: its directory, or a checkpoints/<step> folder.
      layer: number of layers before the hidden states; try a middle layer first.
      max_frames: frames to fit on, of utterances drawn at random; all are held in memory.
      data_dir: folder of the prepared data sets.
      seconds_per_batch: padded audio per batch; affects memory and speed, not the result.
    """
    if (checkpoint is None) != (layer is None):
        raise ValueError("--checkpoint and --layer go together: hidden states are those of a layer")
    features = MFCC(mel=mel) if checkpoint is None else Hidden(checkpoint=checkpoint, layer=layer).pinned()
    mesh, extractor = make_mesh(MeshShape()), features.open()
    index = indexes.read_sets(data_dir, sets, "train", extractor.sample_rate)
    frames = sample_frames(index, extractor, max_frames, kmeans.seed, mesh, seconds_per_batch)
    centroids = fit_kmeans(frames, kmeans, mesh)
    distance = inertia(frames, centroids)
    about = {
        "features": features.model_dump(mode="json"),
        "kmeans": kmeans.model_dump(mode="json"),
        "sets": list(sets),
        "frames": len(frames),
        "mean_squared_distance": distance,
    }
    grid = extractor.grid
    units = Units(out, centroids, grid.frame_samples, grid.context_samples, about, extractor.sample_rate)
    write_units(units)
    print(
        f"{out}: {units.num_units} units of {len(frames):,} frames, mean squared distance {distance:.4g}. Next: "
        f"jax-speechlm units label {out} --sets {' '.join(sets)} --data-dir {data_dir}"
    )
    return units


def label(
    units: Positional[Path],
    sets: tuple[str, ...],
    data_dir: Path = Path("data"),
    seconds_per_batch: float = 120.0,
) -> None:
    """Labels every frame of prepared sets with its unit. Existing labels are kept, also of partly labelled sets.

    A codec's run is first written as a folder of units, <run>/units, whose ids are its codes; give that folder to
    training as --data.units.

    Args:
      units: folder of `units fit`, or a codec's run or one of its checkpoints/<step> folders.
      sets: names of prepared data sets, with all splits; "name:split" selects one split.
      data_dir: folder of the prepared data sets; the units are written next to each set's index.
      seconds_per_batch: padded audio per batch; affects memory and speed, not the result.
    """
    is_run = (units / "checkpoints").is_dir() or (units / "state").is_dir()
    if is_run and not (units / "units.json").is_file():
        units = units_of_codec(units).path
        print(f"{units}: a unit for each code of the codec. Give it to training as --data.units {units}")
    kmeans = read_units(units)
    mesh, extractor = make_mesh(MeshShape()), read_features(kmeans.about["features"]).open()
    for name in sets:
        of_set, _, own_split = name.partition(":")
        for split in (own_split,) if own_split else indexes.splits_of(data_dir / of_set):
            index = indexes.read_sets(data_dir, (of_set,), split, kmeans.sample_rate)
            (part,) = index.parts
            kept = is_labelled(part, kmeans)
            unreadable = 0 if kept else label_part(part, kmeans, extractor, mesh, seconds_per_batch)
            lengths = open_unit_ids(index, units).lengths
            bad = f", {unreadable} could not be read and have none" if unreadable else ""
            print(f"{part}: {lengths.sum():,} codes of {len(lengths):,} utterances{bad}{' (kept)' if kept else ''}")


def report(
    units: Positional[Path],
    sets: tuple[str, ...],
    split: str = "dev",
    ctc: Path | None = None,
    out: Path | None = None,
    data_dir: Path = Path("data"),
    seconds_per_batch: float = 120.0,
) -> UnitsReport:
    """Reports statistics of units: how many are in use, their durations, their relation to labels and speakers.

    Args:
      units: folder of `units fit`.
      sets: names of data sets labelled by `units label`; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      ctc: a finetuned run, for a forced alignment of characters to frames.
      out: folder of the report; by default <units>/report/<sets>-<split>.
      data_dir: folder of the prepared data sets.
      seconds_per_batch: padded audio per batch; affects memory and speed, not the result.
    """
    unit_report = measure(units, sets, split, data_dir, ctc, seconds_per_batch)
    return unit_report.publish(out or units / "report" / f"{'+'.join(sets)}-{split}", str(units))
