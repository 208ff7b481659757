"""Features of prepared speech, computed on the device: frames to fit a k-means on, and the units of whole sets."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.core.shuffle import derive_key, permute
from data_pipelines.storage.index import Index, Part
from data_pipelines.storage.units import UnitIdWriter, Units
from jax_speechlm.core.batch import Batch
from jax_speechlm.nn.functional import Params
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.units.features import Extractor
from jax_speechlm.units.kmeans import nearest

Compute = Callable[[Params, Batch], tuple[Shaped[Array, "batch time ..."], Int[Array, " batch"]]]


def sample_frames(
    index: Index, extractor: Extractor, max_frames: int, seed: int, mesh: Mesh, seconds_per_batch: float = 120.0
) -> Float[np.ndarray, "frames features"]:
    """Computes the frames of all utterances, or of utterances drawn without replacement up to `max_frames`.

    Returns:
      At most `max_frames` feature vectors, float32. Raises `DataError` if every utterance is shorter than a frame.
    """
    frames = extractor.grid.num_frames(index.num_samples)
    order = permute(np.arange(len(index)), len(index), derive_key(seed))
    order = order[frames[order] > 0]
    enough = int(np.searchsorted(np.cumsum(frames[order]), max_frames)) + 1
    rows = np.sort(order[:enough])
    if not len(rows):
        raise DataError(f"{' + '.join(map(str, index.parts))}: no utterance is as long as one frame")
    sampled, filled = None, 0
    for _, x in _each_row(index, rows, extractor.params, extractor.extract, mesh, extractor, seconds_per_batch):
        if sampled is None:
            sampled = np.empty((int(frames[rows].sum()), x.shape[1]), np.float32)
        sampled[filled : filled + len(x)] = x
        filled += len(x)
    return np.zeros((0, 1), np.float32) if sampled is None else sampled[: min(filled, max_frames)]


def label_part(part: Part, units: Units, extractor: Extractor, mesh: Mesh, seconds_per_batch: float = 120.0) -> int:
    """Computes and stores the units of every utterance of a part that has none yet.

    Returns:
      The number of unreadable records, which get no units.
    """
    writer, index = UnitIdWriter(part, units), Index((part,))
    rows, num_features = PartitionSpec(meshes.BATCH_AXES), units.centroids.shape[1]

    def local(x_BxTxF: Array, centroids: Array) -> Array:
        return nearest(x_BxTxF.reshape(-1, num_features), centroids)[0].reshape(x_BxTxF.shape[:2])

    def codes(params: Params, batch: Batch) -> tuple[Array, Array]:
        x_BxTxF, length_B = extractor.extract(params["features"], batch)
        split = jax.shard_map(local, in_specs=(rows, PartitionSpec()), out_specs=rows, check_vma=False)
        return split(x_BxTxF, params["centroids"]), length_B

    params = {"features": extractor.params, "centroids": units.centroids}
    left = set(writer.missing.tolist())
    if left:
        for row, code in _each_row(index, writer.missing, params, codes, mesh, extractor, seconds_per_batch):
            writer.write(row, code)
            left.discard(row)
    writer.finish(unreadable=left)
    return len(left)


def _each_row(
    index: Index,
    rows: Int[np.ndarray, " rows"],
    params: Params,
    compute: Compute,
    mesh: Mesh,
    extractor: Extractor,
    seconds_per_batch: float,
) -> Iterator[tuple[int, Shaped[np.ndarray, "time ..."]]]:
    """Yields (row, output of `compute`) by ascending length; unreadable rows are skipped."""
    plan = plans.make_eval_plan(
        index.num_samples[rows],
        seconds_per_batch=seconds_per_batch,
        batch_multiple=mesh.size,
        frame_samples=extractor.grid.frame_samples,
        sample_rate=index.sample_rate,
    )
    items = rows[plan.items].astype(np.int32)
    plan = dataclasses.replace(plan, items=items, dropped={"not asked for": len(index) - len(items)})
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        jax.set_mesh(mesh),
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        params, run = jax.device_put(params, meshes.replicated(mesh)), jax.jit(compute)
        task = progress.add_task(f"{' + '.join(map(str, index.parts))}: features", total=len(rows))
        for batch in open_batches(index, plan, num_steps=plan.steps_per_epoch):
            used = {name: batch[name] for name in ("audio", "audio_length", "example_id", "weight")}
            result, length = jax.device_get(run(params, meshes.shard_batch(mesh, used)))
            for row in np.flatnonzero(batch["weight"]):
                yield int(batch["example_id"][row]), result[row, : length[row]]
                progress.advance(task)
