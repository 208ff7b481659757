"""Commands of an experiment: --config and --from choose it, and every setting is an option."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

from tyro.conf import AvoidSubcommands, FlagConversionOff, UseAppendAction, arg

from jax_speechlm.cli.console import options
from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import at, replace
from jax_speechlm.frontend.frontend import AnyMel
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom

ExperimentOptions = Annotated[Experiment, arg(name=""), AvoidSubcommands, FlagConversionOff]
"""Type of the argument `experiment` of a command's function: the settings become options without a prefix."""

From = Annotated[tuple[str, ...], arg(name="from"), UseAppendAction]
"""Type of the argument `start` of a command's function, which `bind_experiment` applies."""


def bind_experiment(
    function: Callable[..., Any], argv: Sequence[str], config: str
) -> tuple[Callable[..., Any], list[str]]:
    """Binds the arguments `experiment` and `config` of a command's function, as defaults that tyro can change.

    tyro derives the options from their defaults, so it cannot itself parse the ones that select the defaults: --config,
    --from and the kinds.

    Args:
      function: of `experiment: ExperimentOptions`, `config: str` and options of the command.
      config: the default of --config.

    Returns:
      The function to call by tyro, and its command line: `argv` without the options that choose a kind.
    """
    config = next((option.values[0] for option in options(argv) if option.name == "config" and option.values), config)
    experiment = registry.load(config)
    if start := [path for option in options(argv) if option.name == "from" for path in option.values]:
        experiment = experiment.replace(init_from=tuple(InitFrom(checkpoint=path) for path in start))
    experiment, argv = choose_kinds(experiment, argv)
    return functools.partial(function, experiment=experiment, config=config), argv


def choose_kinds(experiment: Experiment, argv: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Applies the options that choose a kind: --objective.kind, --model.kind, --optimizer.schedule.kind, ...

    --frontend.mel.variant chooses too, among the variants of all kinds of features.

    Settings that both kinds have are kept. Further settings that the new kind requires are read from their options.

    Returns:
      The experiment and the remaining options.

    Raises:
      ValueError: a part or kind does not exist, or the new kind requires settings that are not given.
    """
    given = {option.name: option.values for option in options(argv)}
    chosen = {name.removesuffix(".kind"): words for name, words in given.items() if name.endswith(".kind")}
    left = [word for option in options(argv) if not option.name.endswith(".kind") for word in option.words]
    if words := given.get("frontend.mel.variant"):
        experiment = _choose_features(experiment, words[-1], given.get("frontend.augment.freq_masks"))
        left = [word for option in options(left) if option.name != "frontend.mel.variant" for word in option.words]
    values = experiment.model_dump()
    for path, words in chosen.items():
        *parents, last = names = path.split(".")
        parent = functools.reduce(lambda part, name: getattr(part, name, None), parents, experiment)
        if not isinstance(parent, Config):  # of several parts, such as streams, a recipe chooses the kinds
            raise ValueError(f"--{path}.kind: {'.'.join(parents)} is no single part of an experiment: write a recipe")
        if last not in type(parent).model_fields:
            raise ValueError(f"--{path}.kind: {type(parent).__name__} has no setting {last!r}")
        configs = _classes(type(parent).model_fields[last].annotation)
        kinds = {config.model_fields["kind"].default: config for config in configs}
        kind = words[-1] if words else ""
        if kind not in kinds:
            raise ValueError(f"--{path}.kind {kind}: choose one of {', '.join(kinds)}")
        old = at(values, names) or {}  # a part may be unset
        part = {"kind": kind}
        for name, field in kinds[kind].model_fields.items():
            if name != "kind" and name in old:
                part[name] = old[name]
            elif field.is_required() and (own := given.get(f"{path}.{name}")):
                part[name] = own if len(own) > 1 else own[0]
        values = replace(values, names, part)
    return (Experiment.model_validate(values) if chosen else experiment), left


def _choose_features(experiment: Experiment, variant: str, freq_masks: list[str] | None) -> Experiment:
    """Returns an experiment with features of a variant: with their own defaults, if they are of another kind.

    Args:
      freq_masks: values of the option, with which the features have to agree.
    """
    old = experiment.frontend.mel
    names = {name: mel for mel in get_args(AnyMel) for name in get_args(mel.model_fields["variant"].annotation)}
    if variant not in names:
        raise ValueError(f"--frontend.mel.variant {variant}: choose one of {', '.join(names)}")
    mel = {"variant": variant}
    for name in names[variant].model_fields:
        is_kept = name == "sample_rate" or isinstance(old, names[variant])
        if name != "variant" and is_kept:
            mel[name] = getattr(old, name)
    values = replace(experiment.model_dump(), ["frontend", "mel"], mel)
    if freq_masks:
        values = replace(values, ["frontend", "augment", "freq_masks"], freq_masks[-1])
    return Experiment.model_validate(values)


def _classes(annotation: Any) -> list[type[Config]]:
    """Returns the configs that an annotation allows."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) and "kind" in annotation.model_fields else []
    return [config for part in get_args(annotation) for config in _classes(part)]
