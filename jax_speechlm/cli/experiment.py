"""Parses an experiment from a command line: --config, and every setting as an option."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import at, replace
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom


def experiment_parser(prog: str, default_config: str) -> argparse.ArgumentParser:
    """Returns a parser with the option --config, to which a command adds its own."""
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", default=default_config, help="a shipped experiment, or a .py or .json file (default: %(default)s)"
    )
    return parser


def parse_experiment(
    parser: argparse.ArgumentParser, argv: Sequence[str], prog: str
) -> tuple[Experiment, argparse.Namespace]:
    """Parses a command line.

    Returns:
      The experiment of --config with the settings that the command line changes, and the command's own options.
    """
    import tyro

    known, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help(), "\nEvery setting of the experiment is an option too:\n")
    experiment = registry.load(known.config)
    if getattr(known, "start", None):
        experiment = experiment.replace(init_from=tuple(InitFrom(checkpoint=path) for path in known.start))
    experiment, rest = choose_kinds(experiment, rest)
    experiment = tyro.cli(
        Experiment,
        prog=prog,
        default=experiment,
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return experiment, known


def choose_kinds(experiment: Experiment, argv: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Applies the options that choose a kind: --objective.kind, --model.kind, --optimizer.schedule.kind, ...

    Settings that both kinds have are kept. Further settings that the new kind requires are read from their options.

    Returns:
      The experiment and the remaining options.

    Raises:
      ValueError: a part or kind does not exist, or the new kind requires settings that are not given.
    """
    given = _options(argv)
    chosen = {name.removesuffix(".kind"): values for name, values in given.items() if name.endswith(".kind")}
    left = [word for name, values in given.items() if not name.endswith(".kind") for word in values.words]
    values = experiment.model_dump()
    for path, option in chosen.items():
        names = path.split(".")
        *parents, last = names
        parent = functools.reduce(lambda part, name: getattr(part, name, None), parents, experiment)
        if not isinstance(parent, Config):  # of several parts, such as streams, a recipe chooses the kinds
            raise ValueError(f"--{path}.kind: {'.'.join(parents)} is no single part of an experiment: write a recipe")
        if last not in type(parent).model_fields:
            raise ValueError(f"--{path}.kind: {type(parent).__name__} has no setting {last!r}")
        kinds = {
            each.model_fields["kind"].default: each for each in _classes(type(parent).model_fields[last].annotation)
        }
        kind = option.values[-1] if option.values else ""
        if kind not in kinds:
            raise ValueError(f"--{path}.kind {kind}: choose one of {', '.join(kinds)}")
        old = at(values, names) or {}  # a part may be unset
        part = {"kind": kind}
        for field in kinds[kind].model_fields:
            if field != "kind" and field in old:
                part[field] = old[field]
            elif kinds[kind].model_fields[field].is_required() and (own := given.get(f"{path}.{field}")):
                part[field] = own.values if len(own.values) > 1 else own.values[0]
        values = replace(values, names, part)
    return (Experiment.model_validate(values) if chosen else experiment), left


class _Option(NamedTuple):
    words: list[str]
    values: list[str]


def _options(argv: Sequence[str]) -> dict[str, _Option]:
    """Groups a command line by option, the name with underscores; words before the first option are under ""."""
    options = {"": _Option([], [])}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            options[name] = _Option([word], [value] if value else [])
        else:
            options[name].words.append(word)
            options[name].values.append(word)
    return options


def _classes(annotation: Any) -> list[type[Config]]:
    """Returns the configs that an annotation allows."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) and "kind" in annotation.model_fields else []
    return [each for part in get_args(annotation) for each in _classes(part)]
