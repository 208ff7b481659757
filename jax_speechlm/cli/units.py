"""What `jax-speechlm units` runs: fit a k-means, label sets with it, look at what its units are."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional
from tyro.extras import subcommand_cli_from_dict

from data_pipelines.storage import index as indexes
from data_pipelines.storage.units import Units, is_labelled, open_unit_ids, read_units, write_units
from jax_speechlm.evaluation.language import save_report
from jax_speechlm.evaluation.units import UnitsReport, measure
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.parallel.hardware import cache_compilations
from jax_speechlm.parallel.mesh import MeshShape, make_mesh
from jax_speechlm.units.features import MFCC, Hidden, read_features
from jax_speechlm.units.kmeans import KMeans, fit_kmeans, inertia
from jax_speechlm.units.labelling import label_part, sample_frames


def units(argv: Sequence[str], prog: str) -> None:
    """Runs one of the actions: fit, label, report."""
    cache_compilations()
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

    The frames are MFCCs of the front end `mel`, which has to be that of the model to be trained; or hidden states of a
    trained encoder.

    Args:
      sets: names of prepared data sets; "name:split" takes another split than "train".
      out: folder to write; label sets with it, then give it to training as --data.units.
      kmeans: how to fit.
      mel: the front end whose frames get a unit each.
      checkpoint: take hidden states of this run's encoder instead: its directory, or a checkpoints/<step> folder.
      layer: after so many layers; a middle one is a good first try.
      max_frames: frames to fit on, of utterances drawn at random; all of them are held in memory.
      data_dir: folder of the prepared data sets.
      seconds_per_batch: padded audio at a time: memory and speed, never the result.
    """
    if (checkpoint is None) != (layer is None):
        raise ValueError("--checkpoint and --layer go together: hidden states are those of a layer")
    features = MFCC(mel=mel) if checkpoint is None else Hidden(checkpoint=checkpoint, layer=layer).pinned()
    mesh, extractor = make_mesh(MeshShape()), features.open()
    index = indexes.read_sets(data_dir, sets, "train")
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
    units = Units(out, centroids, extractor.mel.frame_samples, extractor.mel.context_samples, about)
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
    """Gives every frame of prepared sets its unit. What was labelled before is kept, half a set too.

    Args:
      units: folder that `units fit` wrote.
      sets: names of prepared data sets, of which every split is labelled; "name:split" takes that split alone.
      data_dir: folder of the prepared data sets; the codes are written beside each set's index.
      seconds_per_batch: padded audio at a time: memory and speed, never the result.
    """
    known = read_units(units)
    mesh, extractor = make_mesh(MeshShape()), read_features(known.about["features"]).open()
    for name in sets:
        of_set, _, split = name.partition(":")
        for each in (split,) if split else indexes.splits_of(data_dir / of_set):
            index = indexes.read_sets(data_dir, (of_set,), each)
            (part,) = index.parts
            if was := is_labelled(part, known):
                unreadable = 0
            else:
                unreadable = label_part(part, known, extractor, mesh, seconds_per_batch)
            codes = open_unit_ids(index, units).lengths
            bad = f", {unreadable} could not be read and have none" if unreadable else ""
            print(f"{part}: {codes.sum():,} codes of {len(codes):,} utterances{bad}{' (kept)' if was else ''}")


def report(
    units: Positional[Path],
    sets: tuple[str, ...],
    split: str = "dev",
    ctc: Path | None = None,
    out: Path | None = None,
    data_dir: Path = Path("data"),
    seconds_per_batch: float = 120.0,
) -> UnitsReport:
    """Reports what units are: how many are in use, how long they last, what they tell of labels and of speakers.

    Args:
      units: folder that `units fit` wrote.
      sets: names of prepared data sets that `units label` labelled; "name:split" takes another split than --split.
      split: "test", "dev" or "train".
      ctc: a finetuned run, whose forced alignment says which character is said in each frame.
      out: folder of the report; by default <units>/report/<sets>-<split>.
      data_dir: folder of the prepared data sets.
      seconds_per_batch: padded audio at a time: memory and speed, never the result.
    """
    found = measure(units, sets, split, data_dir, ctc, seconds_per_batch)
    out = out or units / "report" / f"{'+'.join(sets)}-{split}"
    save_report(found, out)
    console = Console(highlight=False)
    for table in found.tables():
        console.print(table)
    console.print(str(out / "report.json"), soft_wrap=True)
    return found
