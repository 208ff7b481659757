"""Reads an experiment from a command line: --config, and every setting as an option."""

import argparse
from collections.abc import Sequence

from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom


def experiment_parser(prog: str, default_config: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", default=default_config, help="a shipped experiment, or a .py or .json file (default: %(default)s)"
    )
    return parser


def parse_experiment(
    parser: argparse.ArgumentParser, argv: Sequence[str], prog: str
) -> tuple[Experiment, argparse.Namespace]:
    """The experiment that a command line names, with every setting that it changes, and the command's own options."""
    import tyro

    known, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help(), "\nEvery setting of the experiment is an option too:\n")
    experiment = registry.load(known.config)
    if getattr(known, "start", None):
        experiment = experiment.replace(init_from=tuple(InitFrom(checkpoint=path) for path in known.start))
    experiment = tyro.cli(
        Experiment,
        prog=prog,
        default=experiment,
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return experiment, known
