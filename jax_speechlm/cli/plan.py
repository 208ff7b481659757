"""`jax-speechlm plan`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def plan(argv: Sequence[str], prog: str) -> int:
    """Runs `jax-speechlm plan`; returns the exit status."""
    # Compiling for a TPU must not search for one on this machine.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jax_speechlm.cli.experiment import experiment_parser, parse_experiment

    parser = experiment_parser(prog, "librispeech/best_rq_960_v5e16")
    parser.description = "Compiles a run's train step for accelerators that are not here. Exit status 3: does not fit."
    parser.add_argument("--topology", help="v5e-256, v5p-512, v6e-64, h100-64, ... (default: the experiment's own)")
    parser.add_argument("--slices", type=int, help="TPU slices that the network joins; sets mesh.replica")
    parser.add_argument("--all", action="store_true", help="plan every shipped experiment; prints a table in Markdown")
    parser.add_argument("--fit", action="store_true", help="search mesh, remat and batch for the fastest that fits")
    parser.add_argument("--max-compiles", type=int, default=12, help="of --fit (default: %(default)s)")
    parser.add_argument("--longest-only", action="store_true", help="compile the longest batch shape alone")
    parser.add_argument("--price", type=float, help="of one chip for one hour, in any currency")
    parser.add_argument(
        "--vocab-size", type=int, help="where the tokenizer is not here (default: by its folder's name)"
    )
    parser.add_argument("--out", type=Path, help="folder of plan.html and plan.json (default: plans/CONFIG-TOPOLOGY)")
    experiment, known = parse_experiment(parser, argv, prog)

    from jax_speechlm.planning.run import plan_shipped, run_plan
    from jax_speechlm.recipes import registry

    if known.all:
        print(plan_shipped(known.out or Path("plans"), lambda text: print(text, file=sys.stderr)))
        return 0
    return run_plan(
        experiment,
        known.topology,
        known.slices,
        known.out or Path("plans") / f"{registry.run_name(known.config)}-{known.topology or experiment.topology}",
        longest_only=known.longest_only,
        search=known.fit,
        max_compiles=known.max_compiles,
        price=known.price,
        vocab_size=known.vocab_size,
    )
