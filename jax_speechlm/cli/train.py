"""`jax-speechlm pretrain` and `finetune`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def pretrain(argv: Sequence[str], prog: str) -> int:
    """Runs `jax-speechlm pretrain`; returns the exit status."""
    return _train(argv, prog, "demo/pretrain")


def finetune(argv: Sequence[str], prog: str) -> int:
    """Runs `jax-speechlm finetune`; returns the exit status."""
    return _train(argv, prog, "demo/finetune")


def _train(argv: Sequence[str], prog: str, default_config: str) -> int:
    import jax

    from data_pipelines.core.paths import as_path
    from jax_speechlm.cli.experiment import experiment_parser, parse_experiment
    from jax_speechlm.parallel import distributed
    from jax_speechlm.parallel.hardware import cache_compilations
    from jax_speechlm.planning.check import check_fits
    from jax_speechlm.recipes import registry
    from jax_speechlm.training.loop import train

    cache_compilations()

    parser = experiment_parser(prog, default_config)
    parser.add_argument(
        "--run-dir", help="where checkpoints and logs go: a folder, gs://... or s3://... (default: runs/<config>)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        action="append",
        help="take over encoder and transformer of this run or checkpoint (init_from.0.groups); may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="start even if the longest batch cannot fit into memory")
    experiment, known = parse_experiment(parser, argv, prog)
    run_dir = as_path(known.run_dir or Path("runs") / registry.run_name(known.config))
    with distributed.session():
        if not known.force:
            check_fits(experiment)
        result = train(experiment, run_dir)
        # A launcher that restarts only failed jobs must not take a run stopped by a signal for finished.
        stopped = result.stopped_by or result.step < experiment.num_steps
        status = int(os.environ.get("JAX_SPEECHLM_STOPPED_STATUS", 0)) if stopped else 0
        if jax.process_index():
            return status
    figures = "  ".join(f"{name} {value:.4g}" for name, value in result.dev.items())
    for text in result.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(
        f"{result.step} steps, {result.minutes:.1f} minutes, {result.seen}; dev: {figures}\n"
        f"checkpoints: {run_dir / 'checkpoints'}   logs: tensorboard --logdir {run_dir / 'tensorboard'}"
    )
    return status
