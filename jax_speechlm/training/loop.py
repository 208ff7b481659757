"""The training loop of all objectives."""

import contextlib
import dataclasses
import faulthandler
import functools
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.markup import escape

from data_pipelines.batching.plan import SpeechPlan
from data_pipelines.core.errors import UserError
from data_pipelines.core.paths import AnyPath, is_url, reach
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import seed_key
from jax_speechlm.core.energy import EnergyMeter
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import overlay, paths, select
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import GROUP
from jax_speechlm.parallel import hardware
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.compilation_cache import compilation_cache_of
from jax_speechlm.recipes.experiment import Experiment, differences
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training import run_lock
from jax_speechlm.training.concerns import concerns
from jax_speechlm.training.fit import LossHistory
from jax_speechlm.training.goodput import GoodputTracker, describe
from jax_speechlm.training.logs import METRICS, LogFolder
from jax_speechlm.training.reporting import BatchSize, IntervalMetrics, Reporter
from jax_speechlm.training.runs import SavedRuns, resolve, tokenizer_files
from jax_speechlm.training.source import BatchSource, MixtureSource, open_source, with_labels
from jax_speechlm.training.state import Trainer, TrainState, eval_params, make_trainer
from jax_speechlm.training.stopping import catch_signals
from jax_speechlm.training.validation import validate
from jax_speechlm.training.warm_start import take_over_all

log = logging.getLogger(__name__)

_TRAIN_TO_FORWARD = 3.0  # a backward pass costs two forward passes


class TrainingStopped(UserError):
    """Training cannot continue; the message gives the reason and the checkpoint that is kept."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
      step: completed steps; fewer than the experiment's if a signal stopped the run.
      minutes: wall time of this call.
      audio_hours, tokens: data trained on in this call, without padding, with repetitions.
      train, dev: the last logged metrics.
      compiles: programs compiled for the train step.
      warnings: warnings about data and settings (`concerns`).
      stopped_by: name of the signal that stopped the run, possibly in its last validation; None if it was not stopped.
      ended_early: whether the run ended before its last step because validation no longer improved.
    """

    step: int
    minutes: float
    audio_hours: float
    tokens: int
    train: dict[str, float]
    dev: dict[str, float]
    compiles: int
    warnings: tuple[str, ...] = ()
    stopped_by: str | None = None
    ended_early: bool = False

    @property
    def seen(self) -> str:
        """Describes the amount of training data, such as "1.20 h of audio"."""
        audio = [f"{self.audio_hours:.2f} h of audio"] if self.audio_hours or not self.tokens else []
        return ", ".join(audio + ([f"{self.tokens / 1e6:.2f} M tokens"] if self.tokens else []))


def train(
    experiment: Experiment,
    run_dir: str | os.PathLike,
    source: BatchSource | None = None,
    ends: Callable[[int, dict[str, float]], bool] | None = None,
) -> Result:
    """Trains an experiment to its end, starting from its newest checkpoint if it has one.

    `run_dir`, a folder or a URL, receives `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. SIGTERM
    and SIGINT save a checkpoint and return early; the same call continues the run exactly, and with larger `num_steps`
    it extends the run. After `loop.patience` validations without a lower loss it ends early. In a run of several
    processes (`parallel.distributed.session`) each makes this call, with a `run_dir` that all can access.

    Args:
      source: source of the batches; None opens `experiment.data`.
      ends: called with the step and the metrics of every validation; if it returns True, the run ends early.

    Raises:
      TrainingStopped: `max_bad_steps` steps in a row were not finite, or the run's directory belongs to another run.
      CheckpointError: a checkpoint cannot be read or written, or another process trains in `run_dir`.
      DataError: the data cannot be read, or limits leave out more of it than `data.max_dropped`.
    """
    began = time.perf_counter()
    began_at = time.time()
    run_dir = reach(run_dir)
    experiment = with_labels(resolve(experiment))
    source = source or open_source(experiment)
    warnings = concerns(experiment, source)
    objective = experiment.build(source.tokenizer)
    mesh = meshes.make_mesh(experiment.mesh)
    for plan in filter(None, (source.plan, source.dev_plan)):
        meshes.require_whole_shards(mesh, plan.batch_sizes)
    loop, privacy = experiment.loop, experiment.optimizer.privacy
    meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(source.tokenizer)}
    meta |= {"plan": source.plan.fingerprint} | source.fingerprints()
    meta |= {"training_only": objective.training_only} if objective.training_only else {}

    with contextlib.ExitStack() as stack:
        stack.enter_context(run_folder(run_dir))
        stack.enter_context(compilation_cache_of(run_dir))
        if jax.process_index() == 0:
            stack.enter_context(run_lock.held(run_dir))
        stack.enter_context(jax.set_mesh(mesh))
        logs = stack.enter_context(LogFolder(run_dir, jax.process_index() == 0)).folder
        account, energy = GoodputTracker(began_at, logs / METRICS), EnergyMeter()
        trainer = make_trainer(objective, experiment.optimizer, experiment.num_steps, experiment.seed, mesh)
        checkpoints = ckpt.Checkpoints(run_dir, keep_last=loop.keep_last, keep_best=loop.keep_best)
        stack.callback(checkpoints.close)
        own = functools.partial(_without, objective.borrowed)
        load_borrowed = objective.load_borrowed or (lambda *_: {})
        state, first_step, history, messages = _initial_state(
            experiment,
            trainer,
            checkpoints,
            meta,
            source.tokenizer,
            own,
            load_borrowed(trainer.shapes.params, source.tokenizer, SavedRuns()),  # the first step donates its buffers
        )
        if jax.process_index() == 0:
            (run_dir / "config.json").write_text(experiment.model_dump_json(indent=1))
        reporter = stack.enter_context(Reporter(logs, run_dir.name, first_step, experiment.num_steps))
        reporter.say(_describe(experiment, own(trainer.shapes).params, source, mesh, first_step))
        for text in [*map(escape, messages), *(f"[bold red]warning: {escape(warning)}" for warning in warnings)]:
            reporter.say(text)
        signal_received = stack.enter_context(catch_signals())
        profile = stack.enter_context(_profiler(loop.profile_steps, logs))

        meter = IntervalMetrics(hardware.peak_flops(jax.devices()))
        batches, (_, num_readers) = source.batches(first_step, experiment.num_steps), meshes.row_group()
        seen, train_figures, dev_figures = Counter(), {}, {}
        pending, step = None, first_step
        shapes, num_shapes = set(), _num_shapes(source)
        account.resume(first_step)
        stack.enter_context(_stacks_if_hung(loop.hung_after_seconds))
        stopped_by, ended_early = None, history.is_exhausted(loop.patience)
        while step < experiment.num_steps and not ended_early and not (stopped_by := signal_received(step)):
            profile(step)
            with meter.waiting_for_input(), account.paying_for("input"):
                batch = next(batches)
            stream = source.stream(step)
            extent = BatchSize.of(batch, num_readers, experiment.sample_rate)
            if (shape := (stream, extent.rows, extent.length)) not in shapes:
                shapes.add(shape)
                reporter.say(f"compiling the step for {extent.describe()} (shape {len(shapes)} of {num_shapes})")
            with account.stepping(trainer.step._cache_size):
                state, metrics = trainer.step(state, meshes.shard_batch(mesh, batch))
            step += 1
            _expect_next_step(loop.hung_after_seconds)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                reporter.write(step, "start", {"seconds_to_first_step": time.perf_counter() - began})
            meter.count(extent, _TRAIN_TO_FORWARD * objective.flops(batch) * num_readers)
            seen[extent.unit] += extent.real
            # Reads the metrics of the previous step, so that the device does not wait.
            if pending is not None:
                _watch(experiment, meter.add(*pending), reporter, checkpoints)
            pending = metrics, stream
            reporter.advance(step)
            last = step == experiment.num_steps
            if step % loop.log_every == 0 or last:
                _watch(experiment, meter.add(*pending), reporter, checkpoints)
                pending = None
                train_figures = meter.take() | {"skipped_steps": float(state.skipped)}
                if privacy.noise_multiplier:
                    train_figures |= privacy.spent(step, source.plan.steps_per_epoch)
                reporter.write(step, "train", train_figures)
                reporter.write(step, "goodput", account.figures() | _joules(energy))
                figures = train_figures | {f"dev_{name}": value for name, value in dev_figures.items()}
                if objective.health_check and (warning := objective.health_check(figures, _settled(experiment, step))):
                    reporter.say(f"[yellow]{warning}")
            evaluated = step % loop.eval_every == 0 or last
            with meter.outside():
                if evaluated:
                    with account.paying_for("validate"):
                        show = functools.partial(reporter.show, step, experiment.sample_rate)
                        say = functools.partial(reporter.show_transcripts, step)
                        figures = validate(trainer, eval_params(state), source, mesh, signal_received, show, say)
                    if figures is None:
                        stopped_by = signal_received()
                        break
                    dev_figures = figures
                    reporter.write(step, "dev", dev_figures)
                    history.add(step, train_figures.get("loss"), dev_figures.get("loss"))
                    ended_early = history.is_exhausted(loop.patience) or bool(ends and ends(step, dev_figures))
                is_best = evaluated and checkpoints.is_among_best(dev_figures)
                if step % loop.checkpoint_every == 0 or last or is_best or ended_early:
                    with account.paying_for("checkpoint"):
                        progress = meta | {"step": step, "losses": history.validations}
                        checkpoints.save(step, own(state), progress, dev_figures if evaluated else None)
        if first_step == experiment.num_steps:  # the run was already complete
            dev_figures = validate(trainer, eval_params(state), source, mesh, signal_received)
            if dev_figures is None:
                stopped_by, dev_figures = signal_received(), {}
            elif not checkpoints.dev_metrics(step):  # its last validation was interrupted
                reporter.write(step, "dev", dev_figures)
        with account.paying_for("checkpoint"):
            if stopped_by:
                checkpoints.save(step, own(state), meta | {"step": step, "losses": history.validations})
            checkpoints.wait()
        if stopped_by:
            reporter.say(f"{stopped_by} received: saved step {step}. The same command goes on from there.")
        elif ended_early and step < experiment.num_steps:
            reporter.say(_describe_early_end(history, step, experiment))
        if not stopped_by and (warning := history.overfitting() or history.underfitting()):
            reporter.say(f"[yellow]{escape(warning)}")
        if privacy.noise_multiplier:
            reporter.say(privacy.describe(step, source.plan.steps_per_epoch))
        if first_step < experiment.num_steps:  # opening a complete run adds no time to its account
            reporter.write(step, "goodput", account.figures() | _joules(energy))
            reporter.say(describe(account.figures()))
            if line := energy.describe(seen["audio_seconds"] / 3600):
                reporter.say(line)
        compiles = trainer.step._cache_size()
    return Result(
        step,
        (time.perf_counter() - began) / 60,
        seen["audio_seconds"] / 3600,
        int(seen["tokens"]),
        train_figures,
        dev_figures,
        compiles,
        warnings,
        stopped_by,
        ended_early and step < experiment.num_steps,
    )


def _num_shapes(source: BatchSource) -> int:
    """Returns the number of shapes of a run's batches, each of which is compiled."""
    plans = [part.plan for part in source.parts.values()] if isinstance(source, MixtureSource) else [source.plan]
    return sum(len(plan.buckets) if isinstance(plan, SpeechPlan) else 1 for plan in plans)


def _joules(energy: EnergyMeter) -> dict[str, float]:
    """Returns the energy since the start of this call as a figure; nothing without a counter."""
    joules = energy.joules()
    return {} if joules is None else {"joules": joules}


@contextlib.contextmanager
def run_folder(run_dir: AnyPath) -> Iterator[None]:
    """Creates a run's folder. If the block fails before it writes `config.json`, a new folder is removed."""
    is_new = not run_dir.exists()
    made = [parent for parent in run_dir.parents if not parent.exists()] if is_new and not is_url(run_dir) else []
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new and jax.process_index() == 0 and not (run_dir / "config.json").exists():
            run_dir.rmtree() if is_url(run_dir) else shutil.rmtree(run_dir)
            for parent in made:
                with contextlib.suppress(OSError):  # not empty: other runs write there
                    parent.rmdir()
        raise


def _without(borrowed: tuple[str, ...], state: TrainState) -> TrainState:
    """Returns the part of a state that checkpoints save: without the parameters borrowed from other runs."""
    return state._replace(params=select(state.params, borrowed, complement=True)) if borrowed else state


def _initial_state(
    experiment: Experiment,
    trainer: Trainer,
    checkpoints: ckpt.Checkpoints,
    meta: dict,
    tokenizer: Tokenizer | None,
    own: Callable[[TrainState], TrainState],
    borrowed: Params,
) -> tuple[TrainState, int, LossHistory, list[str]]:
    """Restores the newest checkpoint, or initialises parameters and applies `experiment.init_from`.

    `own` selects the part of a state that checkpoints save, `borrowed` are the other parameters.

    Returns:
      The state, the first step, the losses of earlier validations, and messages for the user.
    """
    check = functools.partial(_check_continues, experiment, meta, checkpoints.directory.parent)
    restored = checkpoints.restore(own(trainer.shapes), check)
    if restored:
        state = restored.state._replace(params=overlay(restored.state.params, borrowed))
        begun = Experiment.model_validate(restored.meta["experiment"])
        history = LossHistory(restored.meta.get("losses", ()))
        return state, restored.step, history, _describe_longer(begun, experiment, restored.step)
    state = trainer.init(seed_key(experiment.seed))
    state = state._replace(params=overlay(state.params, borrowed))
    messages = []
    if starts := experiment.init_from:
        if experiment.lora.rank:  # updates belong to the whole model that they were trained on
            base = tuple(name for name in own(state).params if name != GROUP)
            starts = [start if start.groups is not None else start.replace(groups=base) for start in starts]
        params, messages = take_over_all(starts, state.params, tokenizer, experiment.objective, meta["units"])
        # A copy, because the step donates the buffers of params and of their average, each only once.
        ema = jax.tree.map(jnp.copy, overlay(state.ema, select(params, tuple(paths(state.ema))))) if state.ema else {}
        state = state._replace(params=params, ema=ema)
    return state, 0, LossHistory(), messages


def _check_continues(experiment: Experiment, meta: dict, run_dir: AnyPath, saved: dict) -> None:
    """Raises unless an experiment, with its `meta`, continues the run of a checkpoint's `meta`."""
    try:
        begun = Experiment.model_validate(saved["experiment"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{run_dir / 'checkpoints'}: the settings in a checkpoint's meta cannot be read ({error})."
        ) from error
    other = [
        name if name != "num_steps" else f"num_steps, which may only grow from its {begun.num_steps}"
        for name in differences(begun, experiment)
        if name != "num_steps" or experiment.num_steps < begun.num_steps
    ]
    if other:
        raise TrainingStopped(
            f"{run_dir} holds a run with other settings ({', '.join(other)}). Give this "
            "experiment another --run-dir, or continue that run with its own settings."
        )
    if saved.get("units") != meta["units"]:
        raise TrainingStopped(
            f"{run_dir}: this run began on other speech units ({saved.get('units')}) than "
            f"those of its data ({meta['units']}). Name the former, or start again in another --run-dir."
        )
    if saved.get("plan") != meta["plan"] or saved.get("labels") != meta["labels"]:
        raise TrainingStopped(
            f"{run_dir}: the data sets have changed since this run began (their rows, or the times of their words "
            "where frames have classes), so its batches cannot be continued. Restore the data, or start again in "
            "another --run-dir."
        )


def _describe_longer(begun: Experiment, experiment: Experiment, step: int) -> list[str]:
    """Describes how extending a run changes its schedule; empty if `num_steps` is unchanged."""
    if experiment.num_steps == begun.num_steps:
        return []
    before, now = (float(each.optimizer.schedule.build(each.num_steps)(step)) for each in (begun, experiment))
    return [
        f"made longer, from {begun.num_steps:,} to {experiment.num_steps:,} steps: the schedule is from now on that of "
        f"a run of {experiment.num_steps:,} steps, whose learning rate at step {step:,} is {now:.3g} "
        f"(of {begun.num_steps:,} steps: {before:.3g})"
    ]


def _describe_early_end(history: LossHistory, step: int, experiment: Experiment) -> str:
    """Describes why a run ended before its last step, and how to go on."""
    if not history.is_exhausted(experiment.loop.patience):
        return f"ended at step {step:,} of {experiment.num_steps:,}"
    return (
        f"ended at step {step:,} of {experiment.num_steps:,}: no validation since step {history.best.step:,} "
        f"lowered the dev loss of {history.best.dev:.3g} (loop.patience {experiment.loop.patience}). A larger "
        "--loop.patience goes on"
    )


def _watch(
    experiment: Experiment, step_means: dict[str, float], reporter: Reporter, checkpoints: ckpt.Checkpoints
) -> None:
    """Raises `TrainingStopped` after too many steps in a row that are not finite."""
    in_a_row = int(step_means["skipped_in_a_row"])
    if in_a_row:
        reporter.say(f"[yellow]skipped a step whose loss or gradient is not finite ({in_a_row} in a row)")
    if in_a_row >= experiment.max_bad_steps:
        checkpoints.wait()
        kept = f"step {checkpoints.steps[-1]} is kept" if checkpoints.steps else "none was saved yet"
        raise TrainingStopped(
            f"{in_a_row} steps in a row had a loss or gradient that is not finite. The last good checkpoint: {kept} in "
            f"{checkpoints.directory}. Lower optimizer.schedule.peak, or look at the data of these steps."
        )


def _settled(experiment: Experiment, step: int) -> bool:
    """Returns whether training is past its initial phase: five warm-ups and a quarter of the run."""
    return step >= max(5 * experiment.optimizer.schedule.warmup_steps, experiment.num_steps / 4)


def _describe(experiment: Experiment, params: Params, source: BatchSource, mesh, first_step: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1 device"
    begin = f"resuming at step {first_step}" if first_step else f"seed {experiment.seed}"
    return (
        f"{experiment.objective.kind} on {', '.join(experiment.data.sets)}: {count / 1e6:.2f} M parameters, {shape}, "
        f"{experiment.num_steps} steps, {begin}\n{source.plan.describe()}"
    )


@contextlib.contextmanager
def _profiler(profile_steps: tuple[int, int] | None, logs: Path) -> Iterator[Callable[[int], None]]:
    """Yields a function to call before each step with its number, which traces the steps of `profile_steps`."""
    first, last = profile_steps or (0, 0)
    tracing = False

    def before(step: int) -> None:
        nonlocal tracing
        if tracing != (first <= step < last):
            tracing = not tracing
            jax.profiler.start_trace(logs / "tensorboard") if tracing else jax.profiler.stop_trace()

    try:
        yield before
    finally:
        if tracing:
            jax.profiler.stop_trace()


@contextlib.contextmanager
def _stacks_if_hung(seconds: float | None) -> Iterator[None]:
    """Writes the stacks of all threads to stderr, repeatedly, while no step has ended for `seconds`."""
    _expect_next_step(seconds)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _expect_next_step(seconds: float | None) -> None:
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, repeat=True, file=sys.__stderr__)
