"""`jax-speechlm pretrain` and `finetune`."""

import os
import sys
from pathlib import Path

import jax

from data_pipelines.core.paths import reach
from jax_speechlm.cli.experiment import ExperimentOptions, From
from jax_speechlm.parallel import distributed
from jax_speechlm.parallel.compilation_cache import compilation_cache_of
from jax_speechlm.planning.check import check_fits
from jax_speechlm.recipes import registry
from jax_speechlm.training import loop


def train(
    experiment: ExperimentOptions, config: str, run_dir: str | None = None, start: From = (), force: bool = False
) -> int:
    """Trains an experiment. Every setting of it is an option too.

    Args:
      config: a shipped experiment, or a .py or .json file.
      run_dir: where checkpoints and logs go: a folder, gs://... or s3://... By default runs/<config>.
      start: take over encoder and transformer of this run or checkpoint (init_from.0.groups); may be repeated.
      force: start even if the longest batch cannot fit into memory.
    """
    del start  # in experiment.init_from
    folder = reach(run_dir or Path("runs") / registry.run_name(config))
    # The check compiles the step, for the run to find in its cache.
    with distributed.session(), loop.run_folder(folder), compilation_cache_of(folder):
        if not force:
            check_fits(experiment)
        result = loop.train(experiment, folder)
        # A launcher that restarts only failed jobs must not take a run stopped by a signal for finished.
        stopped = result.stopped_by or (result.step < experiment.num_steps and not result.ended_early)
        status = int(os.environ.get("JAX_SPEECHLM_STOPPED_STATUS", 0)) if stopped else 0
        if jax.process_index():
            return status
    figures = "  ".join(f"{name} {value:.4g}" for name, value in result.dev.items())
    for text in result.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(
        f"{result.step} steps, {result.minutes:.1f} minutes, {result.seen}; dev: {figures}\n"
        f"checkpoints: {folder / 'checkpoints'}   logs: tensorboard --logdir {folder / 'tensorboard'}"
    )
    return status
