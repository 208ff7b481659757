"""Checkpoints: the one thin module that knows Orbax.

A run's directory, a folder or a URL, holds `checkpoints/<step>/` with two items: `state`, the arrays of a `TrainState`,
and `meta`, a JSON of everything else that eval, export, transcribe and resume need: the experiment's config, the
tokenizer's files, the data seed and step. Each `<step>` folder is complete in itself and may be copied away alone.
"""

import base64
import contextlib
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from numbers import Real
from pathlib import Path
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
# What Orbax misses on every read (a file beside an item, which its manager writes one folder up), and on saves without
# a validation.
_IDLE_WARNINGS = ("Metadata file does not exist", "did not provide metrics")
logging.getLogger("absl").addFilter(lambda record: not any(each in record.getMessage() for each in _IDLE_WARNINGS))

_SPARE_BYTES = 64 << 20  # what metadata and the file system's own needs may add to a checkpoint


class Restored(NamedTuple):
    """A checkpoint that was read: its step, its arrays and its `meta` JSON."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpoints:
    """Writes and reads the checkpoints of one run.

    Saving is asynchronous: `save` blocks only while arrays are copied to host memory. A folder appears under its final
    name only when it is complete, so a killed save leaves no half checkpoint behind.
    """

    def __init__(
        self, run_dir: str | os.PathLike, *, keep_last: int = 2, keep_best: int = 1, best_metric: str = "loss"
    ):
        """
        Args:
          run_dir: the run's directory; `checkpoints/` is made in it.
          keep_last: how many of the newest checkpoints are kept.
          keep_best: how many of those with the lowest validation `best_metric` are kept besides.
        """
        self.directory = _place(run_dir) / "checkpoints"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep_best, self._best_metric = keep_best, best_metric
        self._newest: int | None = None  # saved or restored by this object, and so known to be good

        def rank(metrics):
            return goodness(metrics, best_metric)

        best = preservation_policy.BestN(get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False)
        self._manager = _Manager(
            self.directory,
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(keep_last), best]
                ),
                best_fn=rank,  # decides nothing beside the policy, but without it metrics are not written
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )
        self._goodness = {step: rank(self._manager.metrics(step) or {}) for step in self._manager.all_steps()}

    @property
    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState | dict[str, Params],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts to save, once the save before is on the disk; the step saved or restored last is left as it is.

        Args:
          metrics: validation results at this step, from which the best checkpoints are known.

        Raises:
          CheckpointError: there is no room on the disk, this save was declined, or the one before failed.
        """
        if step == self._newest:
            return
        self.wait()
        self._check_room(state)
        try:
            started = self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
                metrics=metrics or None,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(_save_failed(self.directory, error)) from error
        if not started:
            raise CheckpointError(
                f"{self.directory / str(step)}: was not saved, since the folder holds the steps {self.steps}. Move "
                "what is not older than this step elsewhere and start again."
            )
        self._newest = step
        self._goodness[step] = goodness(metrics or {}, self._best_metric)

    def wait(self) -> None:
        """Blocks until every save is on the disk. Raises `CheckpointError` if one failed."""
        step, self._newest = self._newest, None
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(_save_failed(self.directory, error)) from error
        # Process 0 alone, which renamed the folder: others may see that later.
        if step is not None and jax.process_index() == 0 and not _is_whole(self.directory / str(step)):
            raise CheckpointError(
                f"{self.directory / str(step)}: is not there although it was saved. Was it removed, or the disk "
                "detached? Start again: training goes on from the last complete checkpoint."
            )
        self._newest = step

    def is_among_best(self, metrics: dict[str, float]) -> bool:
        """Whether a checkpoint with this validation would be one of the `keep_best`. All processes learn the same."""
        value = goodness(metrics, self._best_metric)
        better = sum(self._goodness.get(step, -math.inf) >= value for step in self.steps)
        return bool(distributed.processes_where(value > -math.inf and better < self._keep_best))

    def dev_metrics(self, step: int) -> dict[str, float]:
        """Returns the validation results that were saved with a step; empty where there are none."""
        return self._manager.metrics(step) or {}

    def restore(self, shapes: TrainState, check: Callable[[dict[str, Any]], None]) -> Restored | None:
        """The newest checkpoint that can be read, laid out as `shapes` says; None where there is none.

        A checkpoint that cannot be read, by this process or by another of the run, is reported and all take the one
        before it. What was passed over is then set aside under another name, so that its step can be saved again.

        Args:
          check: called with a checkpoint's `meta` before its arrays are read; raises where it is not to be continued.

        Raises:
          CheckpointError: there are checkpoints, but none of them can be read; they stay as they are.
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
        self._set_aside(passed_over)  # folders in which hardly anything is
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames the folders of unreadable checkpoints, in process 0; none of the others goes on before."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                log.error("%s is kept as %s and not used.", *_rename(self.directory / str(step)))
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
    """Orbax's manager, but that it opens a folder in which validation results are damaged."""

    def metrics(self, step: int) -> dict[str, float] | None:
        return dev_metrics(self.directory / str(step)) or None


def goodness(metrics: dict[str, Any], name: str) -> float:
    """Ranks validation results, the best highest; what is missing or not finite is the worst."""
    value = metrics.get(name)
    return -float(value) if isinstance(value, Real) and math.isfinite(value) else -math.inf


def _rename(folder: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Gives an unreadable checkpoint's folder a name that is no step's; returns the old and the new one."""
    names = (f"{folder.name}.unreadable" + (f"-{number}" if number else "") for number in itertools.count())
    target = next(target for target in (folder.parent / name for name in names) if not target.exists())
    try:
        move_folder(folder, target)
    except Exception as error:  # each bucket raises its own
        raise CheckpointError(
            f"{folder}: cannot be read, and cannot be renamed to {target.name} ({_first_line(error)}). Move it "
            "elsewhere, or permit that, and start again."
        ) from error
    return folder, target


def write(run_dir: str | os.PathLike, params: Params, meta: dict[str, Any]) -> AnyPath:
    """Makes a run's directory of parameters alone, which every use of a trained model takes: one checkpoint of them.

    Args:
      params: as `read_params` gives them.
      meta: as a run's checkpoints hold it; its "step" names the folder.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: there are checkpoints already, or they cannot be written.
    """
    place = _place(run_dir)
    folder = place / "checkpoints"
    if folder.exists() and any(child.name.isdecimal() for child in folder.iterdir()):
        raise CheckpointError(f"{run_dir}: holds checkpoints already: name a folder that does not exist yet")
    checkpoints = Checkpoints(place)
    (place / "config.json").write_text(json.dumps(meta["experiment"], indent=1))
    checkpoints.save(meta["step"], {"params": params}, meta)
    checkpoints.close()
    return place / "checkpoints" / str(meta["step"])


def read(checkpoint: str | os.PathLike, shapes: Any = None, only: tuple[str, ...] | None = None) -> Restored:
    """Reads one `<step>` folder.

    Args:
      shapes: abstract arrays with shardings to restore into, on any mesh; None reads plain numpy arrays in nested
        dicts. Where it is a part of the saved tree (only "params", say), only that part is read.
      only: without `shapes`: the fields of the state to read, where they are there; None for all.

    Raises:
      CheckpointError: the folder is not a complete checkpoint, or its arrays are not those of `shapes`.
      DeviceError: JAX finds no device of the platform that was asked for.
    """
    checkpoint = _place(checkpoint)
    meta = read_meta(checkpoint)
    hardware.devices()  # a missing device must not pass for a damaged checkpoint
    try:
        # By the handler itself: a `Checkpointer` would wait for all processes, of which one may have failed.
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            if shapes is None:
                tree = handler.metadata(checkpoint / "state").tree
                tree = {name: part for name, part in tree.items() if only is None or name in only}
                restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
            else:
                restore_args = ocp.checkpoint_utils.construct_restore_args(shapes)
                args = ocp.args.PyTreeRestore(item=shapes, restore_args=restore_args, partial_restore=True)
            state = handler.restore(checkpoint / "state", args=args)
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
            raise ValueError("some of the model's arrays are not in it")
    except Exception as error:  # Orbax, tensorstore and json each raise their own
        raise CheckpointError(_unreadable(checkpoint, error)) from error
    return Restored(meta["step"], state, meta)


def read_meta(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """The `meta` JSON of one `<step>` folder. Raises `CheckpointError` where it cannot be read."""
    checkpoint = _place(checkpoint)
    try:
        with contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
            meta = handler.restore(checkpoint / "meta")
        if not isinstance(meta, dict) or type(meta.get("step")) is not int:
            raise ValueError("its meta names no step")
        return meta
    except Exception as error:  # as in read
        raise CheckpointError(_unreadable(checkpoint, error)) from error


def find(path: str | os.PathLike) -> AnyPath:
    """The newest `<step>` folder of a run's directory; a `<step>` folder itself is taken as it is.

    Raises:
      CheckpointError: there is no checkpoint at that path.
    """
    return find_all(path)[-1]


def find_all(path: str | os.PathLike) -> list[AnyPath]:
    """Every `<step>` folder of a run's directory, oldest first; a `<step>` folder itself is taken as it is.

    Raises:
      CheckpointError: there is no checkpoint at that path.
    """
    path = reach(path)
    if _is_whole(path):
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [child for child in folder.glob("*") if child.name.isdecimal() and _is_whole(child)]
    if not steps:
        raise CheckpointError(
            f"{path}: holds no complete checkpoint. Give the directory of a run (with checkpoints/ in it) or one of "
            "its checkpoints/<step> folders."
        )
    return sorted(steps, key=lambda step: int(step.name))


def dev_metrics(checkpoint: AnyPath) -> dict[str, float]:
    """What the validation at a `<step>` folder came to; empty where there was none, or where it cannot be read."""
    file = checkpoint / "metrics" / "metrics"
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read (%s); the step counts as not validated", file, _first_line(error))
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: float(value) for name, value in found.items() if isinstance(value, Real)}


def read_params(path: str | os.PathLike, *, quantized: bool = False) -> tuple[Params, dict[str, Any]]:
    """(parameters to use, meta) of a run's newest checkpoint, or of a `<step>` folder: numpy, in nested dicts.

    Where the run keeps a moving average of its parameters, that is what is read; what training alone needs is left out.

    Args:
      quantized: give kernels that were rounded to integers as `QuantizedKernel`s; else as the arrays they stand for.
    """
    restored = read(find(path), only=("params", "ema"))
    params = overlay(restored.state["params"], restored.state.get("ema") or {})
    unused = restored.meta.get("training_only", ())
    params = {name: group for name, group in params.items() if name not in unused}
    params = from_plain(params, restored.meta.get("quantized", {}))
    return params if quantized else dequantize(params), restored.meta


def pack_files(directory: str | Path) -> dict[str, str]:
    """A folder's files as JSON can hold them: name -> base64."""
    return {file.name: base64.b64encode(file.read_bytes()).decode() for file in sorted(Path(directory).iterdir())}


def unpack_files(files: dict[str, str], directory: str | Path) -> None:
    """Writes what `pack_files` read. Names with a path in them are refused."""
    for name, content in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"a checkpoint's tokenizer holds a file named {name!r}: refused")
        (Path(directory) / name).write_bytes(base64.b64decode(content))


def _place(path: str | os.PathLike) -> AnyPath:
    """A path as Orbax wants it: absolute, or a URL."""
    place = absolute(path)
    if str(place).startswith("s3://"):
        orbax_s3.enable()
    return place


def _is_whole(checkpoint: AnyPath) -> bool:
    """Whether a folder is a complete checkpoint. Buckets cannot rename it when it is: there Orbax adds a file."""
    if not all((checkpoint / item).is_dir() for item in ("meta", "state")):
        return False
    return not is_url(checkpoint) or (checkpoint / "commit_success.txt").exists()


def _unreadable(checkpoint: AnyPath, error: Exception) -> str:
    return (
        f"{checkpoint}: cannot be read as a checkpoint ({type(error).__name__}: {_first_line(error)}). It is damaged, "
        "half copied, or of another model. Training again in its run sets it aside; a run's other checkpoints/<step> "
        "folders can be given in its place."
    )


def _save_failed(directory: AnyPath, error: Exception) -> str:
    if is_disk_full(error):
        return (
            f"{directory}: the disk became full while a checkpoint was written. Make room and start again: training "
            "goes on from the last complete checkpoint."
        )
    return (
        f"{directory}: a checkpoint could not be saved ({type(error).__name__}: {_first_line(error)}). Check the room "
        "on the disk and the folder's permissions; checkpoints saved before are whole."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
