"""Checkpoints: the only module that depends on Orbax.

A run's directory (folder or URL) has `checkpoints/<step>/` with two items: `state`, the arrays of a `TrainState`, and
`meta`, the JSON with everything else that eval, export, transcribe and resume need: the experiment's config, the
tokenizer's files, the data seed and step. A `<step>` folder is self-contained and may be copied alone.
"""

import contextlib
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from data_pipelines.core.errors import is_disk_full
from data_pipelines.core.paths import AnyPath, absolute, is_url, move_folder, reach
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import overlay
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.int_weights import dequantize, from_plain
from jax_speechlm.parallel import distributed, hardware
from jax_speechlm.training import orbax_s3
from jax_speechlm.training.state import TrainState

log = logging.getLogger(__name__)
# Orbax warns on every read, because its manager writes an item's metadata one folder up, and on saves without metrics.
_IDLE_WARNINGS = ("Metadata file does not exist", "did not provide metrics")
logging.getLogger("absl").addFilter(lambda record: not any(each in record.getMessage() for each in _IDLE_WARNINGS))

_SPARE_BYTES = 64 << 20  # allowance for metadata and file system overhead


class Restored(NamedTuple):
    """A checkpoint in memory: its step, its arrays and its `meta` JSON."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Saving is asynchronous: `save` blocks only while arrays are copied to host memory. A folder gets its final name only
    once it is complete, so an interrupted save leaves no incomplete checkpoint.
    """

    def __init__(self, run_dir: str | os.PathLike, *, keep_last: int = 2, keep_best: int = 1):
        """Opens a run's checkpoints; keeps the newest, and `keep_best` further ones with the lowest validation loss."""
        self.directory = _orbax_path(run_dir) / "checkpoints"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep_best = keep_best
        self._newest: int | None = None  # saved or restored by this object, so known to be readable

        best = preservation_policy.BestN(get_metric_fn=goodness, n=keep_best, keep_checkpoints_without_metrics=False)
        self._manager = _Manager(
            self.directory,
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(keep_last), best]
                ),
                best_fn=goodness,  # the policy decides, but without this no metrics are written
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )
        self._goodness = {step: goodness(self.dev_metrics(step)) for step in self._manager.all_steps()}

    @property
    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState | dict[str, Params],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Waits for the previous save and starts the next; does nothing for the step last saved or restored.

        The validation results `metrics` determine the best checkpoints.

        Raises:
          CheckpointError: the disk is full, Orbax declined this save, or the previous one failed.
        """
        if step == self._newest:
            return
        self.wait()
        self._check_room(state)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with _save_errors(self.directory):
            started = self._manager.save(step, args=items, metrics=metrics or None)
        if not started:
            raise CheckpointError(
                f"{self.directory / str(step)}: was not saved, since the folder holds the steps {self.steps}. Move "
                "what is not older than this step elsewhere and start again."
            )
        self._newest = step
        self._goodness[step] = goodness(metrics or {})

    def wait(self) -> None:
        """Blocks until all saves have finished. Raises `CheckpointError` if one failed."""
        step, self._newest = self._newest, None
        with _save_errors(self.directory):
            self._manager.wait_until_finished()
        # Only process 0, which renamed the folder: the others may see the new name later.
        if step is not None and jax.process_index() == 0 and not _is_whole(self.directory / str(step)):
            raise CheckpointError(
                f"{self.directory / str(step)}: is not there although it was saved. Was it removed, or the disk "
                "detached? Start again: training goes on from the last complete checkpoint."
            )
        self._newest = step

    def is_among_best(self, metrics: dict[str, float]) -> bool:
        """Returns whether these validation results would be among the `keep_best`. Called by all processes."""
        value = goodness(metrics)
        better = sum(self._goodness.get(step, -math.inf) >= value for step in self.steps)
        return bool(distributed.processes_where(value > -math.inf and better < self._keep_best))

    def dev_metrics(self, step: int) -> dict[str, float]:
        """Returns the validation results saved with a step; empty if it has none."""
        return self._manager.metrics(step) or {}

    def restore(self, shapes: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """Restores the newest readable checkpoint; None if the run has no complete one.

        A checkpoint that any process of the run cannot read is logged, and all processes try the previous one.
        Unreadable checkpoints are then renamed, so that their steps can be saved again.

        Args:
          shapes: abstract arrays with shardings.
          check: called with the `meta` of a checkpoint before its arrays are read; raises if it must not be continued.

        Raises:
          CheckpointError: none of the existing checkpoints can be read; they are not renamed.
        """
        steps, passed_over = self.steps, []
        for step in reversed(steps):
            restored, why = None, ""
            try:
                check(read_meta(self.directory / str(step)))
                restored = read(self.directory / str(step), shapes)
            except CheckpointError as error:
                why = str(error)
            failed = distributed.processes_where(restored is None)
            if not failed:
                self._set_aside(passed_over)
                self._newest = step
                return restored
            passed_over.append(step)
            why = why or f"{self.directory / str(step)}: process {failed[0]} could not read it."
            log.error("%s Trying the checkpoint before it.", why)
        if distributed.processes_where(any(_is_whole(self.directory / str(step)) for step in steps)):
            raise CheckpointError(
                f"{self.directory}: none of the checkpoints {steps} can be read. They may belong to a run with another "
                "model: give this run another directory, or remove the folder to start afresh."
            )
        self._set_aside(passed_over)  # incomplete folders
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames the folders of unreadable checkpoints in process 0; the other processes wait for it."""
        if not steps:
            return
        if jax.process_index() == 0:
            for folder in (self.directory / str(step) for step in steps):
                log.error("%s is kept as %s and not used.", folder, _rename(folder))
        multihost_utils.sync_global_devices("unreadable checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _check_room(self, state: TrainState | dict[str, Params]) -> None:
        if is_url(self.directory):
            return
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise CheckpointError(
                f"{self.directory}: a checkpoint needs {need / 1e6:,.0f} MB; the disk has {free / 1e6:,.0f} MB left. "
                f"Make room and start again: training goes on from step {self.steps[-1] if self.steps else 0}."
            )


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, except that it tolerates damaged validation results."""

    def metrics(self, step: int) -> dict[str, float] | None:
        return dev_metrics(self.directory / str(step)) or None


def goodness(metrics: dict[str, Any]) -> float:
    """Returns the rank of validation results, higher is better; -inf for a missing or non-finite loss."""
    value = metrics.get("loss")
    return -float(value) if isinstance(value, Real) and math.isfinite(value) else -math.inf


def _rename(folder: AnyPath) -> AnyPath:
    """Renames an unreadable checkpoint's folder to a name that is not a step, which is returned."""
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(1)))
    targets = (folder.parent / f"{folder.name}.unreadable{ending}" for ending in endings)
    target = next(target for target in targets if not target.exists())
    try:
        move_folder(folder, target)
    except Exception as error:  # exception types differ between buckets
        raise CheckpointError(
            f"{folder}: cannot be read, and cannot be renamed to {target.name} ({_first_line(error)}). Move it "
            "elsewhere, or permit that, and start again."
        ) from error
    return target


def write(run_dir: str | os.PathLike, params: Params, meta: dict[str, Any]) -> AnyPath:
    """Creates a run's directory with one checkpoint of parameters only, which can be used like a trained run's.

    Args:
      meta: as in a run's checkpoints; its "step" names the folder.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: the directory has checkpoints already, or they cannot be written.
    """
    folder = _orbax_path(run_dir) / "checkpoints"
    if folder.exists() and any(child.name.isdecimal() for child in folder.iterdir()):
        raise CheckpointError(f"{run_dir}: holds checkpoints already: name a folder that does not exist yet")
    checkpoints = Checkpoints(run_dir)
    (folder.parent / "config.json").write_text(json.dumps(meta["experiment"], indent=1))
    checkpoints.save(meta["step"], {"params": params}, meta)
    checkpoints.close()
    return folder / str(meta["step"])


def read(checkpoint: str | os.PathLike, shapes: Any = None, only: tuple[str, ...] | None = None) -> Restored:
    """Reads one `<step>` folder.

    Args:
      shapes: abstract arrays with shardings to restore into, on any mesh; None reads numpy arrays in nested dicts. Only
        the part of the saved tree that is in `shapes` is read (only "params", say).
      only: without `shapes`: the fields of the state to read, if they exist; None for all.

    Raises:
      CheckpointError: the folder is not a complete checkpoint, or its arrays do not match `shapes`.
      DeviceError: JAX has no device of the requested platform.
    """
    checkpoint = _orbax_path(checkpoint)
    meta = read_meta(checkpoint)
    hardware.devices()  # so that a missing device is not reported as a damaged checkpoint
    # Calls the handler directly: a `Checkpointer` would wait for all processes, and one may have failed.
    with _read_errors(checkpoint), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        if shapes is None:
            tree = handler.metadata(checkpoint / "state").tree
            shapes = {name: part for name, part in tree.items() if only is None or name in only}
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        else:
            restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
        args = ocp.args.PyTreeRestore(item=shapes, restore_args=restore_args, partial_restore=True)
        state = handler.restore(checkpoint / "state", args=args)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
            raise ValueError("some of the model's arrays are not in it")
    return Restored(meta["step"], state, meta)


def read_meta(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Reads the `meta` JSON of one `<step>` folder. Raises `CheckpointError` if it cannot be read."""
    checkpoint = _orbax_path(checkpoint)
    with _read_errors(checkpoint), contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
        meta = handler.restore(checkpoint / "meta")
        if not isinstance(meta, dict) or type(meta.get("step")) is not int:
            raise ValueError("its meta names no step")
    return meta


def find(path: str | os.PathLike) -> AnyPath:
    """Finds the newest `<step>` folder of a run; a `<step>` folder is returned unchanged. Raises as `find_all` does."""
    return find_all(path)[-1]


def find_all(path: str | os.PathLike) -> list[AnyPath]:
    """Finds all `<step>` folders of a run, oldest first; a `<step>` folder is itself one. Raises `CheckpointError`."""
    path = reach(path)
    if _is_whole(path):
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [child for child in folder.glob("*") if child.name.isdecimal() and _is_whole(child)]
    if not steps:
        problem = "holds no complete checkpoint" if path.exists() else "there is no such folder"
        raise CheckpointError(
            f"{path}: {problem}. Give the directory of a run (with checkpoints/ in it) or one of "
            "its checkpoints/<step> folders."
        )
    return sorted(steps, key=lambda step: int(step.name))


def dev_metrics(checkpoint: AnyPath) -> dict[str, float]:
    """Reads the validation results of a `<step>` folder; empty if they are missing or unreadable."""
    file = checkpoint / "metrics" / "metrics"
    try:
        metrics = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read (%s); the step counts as not validated", file, _first_line(error))
        return {}
    if not isinstance(metrics, dict):
        return {}
    return {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}


def read_params(
    path: str | os.PathLike, *, quantized: bool = False, training_only: bool = False
) -> tuple[Params, dict[str, Any]]:
    """Reads the parameters for inference from a run's newest checkpoint, or from a `<step>` folder, and its `meta`.

    Parameters with a moving average are replaced by it; groups that only training needs are left out, unless
    `training_only`.

    Returns:
      Numpy arrays in nested dicts, integer kernels as `QuantizedKernel` if `quantized` and else dequantised; `meta`.
    """
    restored = read(find(path), only=("params", "ema"))
    params = overlay(restored.state["params"], restored.state.get("ema") or {})
    unused = () if training_only else restored.meta.get("training_only", ())
    params = {name: group for name, group in params.items() if name not in unused}
    params = from_plain(params, restored.meta.get("quantized", {}))
    return params if quantized else dequantize(params), restored.meta


def _orbax_path(path: str | os.PathLike) -> AnyPath:
    """Converts a path to Orbax's requirements: absolute, or a URL."""
    path = absolute(path)
    if str(path).startswith("s3://"):
        orbax_s3.enable()
    return path


def _is_whole(checkpoint: AnyPath) -> bool:
    """Returns whether a folder is a complete checkpoint; in buckets, Orbax marks it by a file, not by renaming."""
    if not all((checkpoint / item).is_dir() for item in ("meta", "state")):
        return False
    return not is_url(checkpoint) or (checkpoint / "commit_success.txt").exists()


@contextlib.contextmanager
def _read_errors(checkpoint: AnyPath) -> Iterator[None]:
    """Raises `CheckpointError` for any error: Orbax, tensorstore and json have different types."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint}: cannot be read as a checkpoint ({type(error).__name__}: {_first_line(error)}). It is "
            "damaged, half copied, or of another model. Training again in its run sets it aside; a run's other "
            "checkpoints/<step> folders can be given in its place."
        ) from error


@contextlib.contextmanager
def _save_errors(directory: AnyPath) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if is_disk_full(error):
            raise CheckpointError(
                f"{directory}: the disk became full while a checkpoint was written. Make room and start again: "
                "training goes on from the last complete checkpoint."
            ) from error
        raise CheckpointError(
            f"{directory}: a checkpoint could not be saved ({type(error).__name__}: {_first_line(error)}). Check the "
            "room on the disk and the folder's permissions; checkpoints saved before are whole."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
