"""Sweeps over settings of an experiment, by Optuna: resumable, in parallel over processes, with pruning."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from data_pipelines.core.errors import DataError
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import at, replace
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training import loop, run_lock

JOURNAL = "journal.log"
"""Optuna's record of the trials in a sweep's folder."""

_SETTINGS = "settings.json"  # the experiment and the ranges of a sweep


class Range(NamedTuple):
    """Values of a setting.

    Attributes:
      name: dotted path in an `Experiment`.
      choices: the values; empty for a range.
      low, high: bounds, both included; of whole numbers if both are.
      log: whether values are drawn on a logarithmic scale.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float | int = 0
    high: float | int = 0
    log: bool = False

    def draw(self, trial: optuna.Trial) -> Any:
        """Draws a value for a trial."""
        if self.choices:
            return json.loads(trial.suggest_categorical(self.name, [json.dumps(value) for value in self.choices]))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def parse_range(text: str) -> Range:
    """Parses "setting=low..high", "setting=low..high:log" or "setting=a,b,c".

    Raises:
      DataError: the text has another form, or the bounds are in the wrong order.
    """
    name, equals, values = text.partition("=")
    name, log = name.replace("-", "_"), values.endswith(":log")
    bounds = values.removesuffix(":log").split("..")
    if not equals or not name or not values:
        raise DataError(f"--vary {text!r}: write setting=low..high, setting=low..high:log or setting=a,b,c")
    if len(bounds) == 1 and not log:
        return Range(name, tuple(_value(value) for value in values.split(",")))
    low, high = (_value(bound) for bound in bounds) if len(bounds) == 2 else (None, None)
    if not all(isinstance(bound, int | float) for bound in (low, high)) or low >= high or (log and low <= 0):
        raise DataError(
            f"--vary {text!r}: a range takes two rising numbers{', above 0,' if log else ''} as in 0.1..0.5"
        )
    return Range(name, low=low, high=high, log=log)


def _value(text: str) -> Any:
    """Parses JSON's numbers, true, false and null; other texts are themselves."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except ValueError:
        return float(text) if re.fullmatch(r"[+-]?\.?\d[\d.]*(e[+-]?\d+)?", text, re.IGNORECASE) else text


def with_settings(experiment: Experiment, settings: dict[str, Any]) -> Experiment:
    """Returns an experiment with settings by their dotted paths replaced.

    Raises:
      DataError: a setting does not exist.
      ValueError: a value does not fit.
    """
    values = experiment.model_dump()
    for name, value in settings.items():
        *parents, last = name.split(".")
        part = at(values, parents)
        if not isinstance(part, dict) or last not in part:
            known = sorted(part) if isinstance(part, dict) else sorted(values)
            raise DataError(f"--vary {name}: an experiment has no such setting; here are {', '.join(known)}")
        values = replace(values, name.split("."), value)
    return Experiment.model_validate(values)


def run(
    experiment: Experiment,
    out: Path,
    ranges: Sequence[Range],
    num_trials: int,
    metric: str = "loss",
    prune: bool = True,
) -> optuna.Study:
    """Trains trials until the sweep in a folder has `num_trials`, those of other processes included.

    Args:
      experiment: settings that all trials share.
      out: folder of the sweep; one with trials is continued.
      ranges: the settings to vary.
      metric: metric of validation to minimise. A trial's value is the lowest of its validations.
      prune: whether to end trials early whose metric is above the median of the others at the same step.

    Raises:
      DataError: no range is given, the folder has another sweep, or a validation lacks the metric.
    """
    if not ranges:
        raise DataError("a sweep needs at least one --vary, such as --vary optimizer.schedule.peak=1e-4..1e-2:log")
    for each in ranges:  # before anything is written; values may fit only together with others
        with contextlib.suppress(ValueError):
            with_settings(experiment, {each.name: each.choices[0] if each.choices else each.low})
    _check_same(out, experiment, ranges, metric)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
        study_name="sweep",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=None, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner(),
    )
    for trial in _claimed(study, out, num_trials):
        _train(study, trial, experiment, out, ranges, metric)
    return study


def _check_same(out: Path, experiment: Experiment, ranges: Sequence[Range], metric: str) -> None:
    own = {
        "experiment": experiment.model_dump(mode="json"),
        "ranges": [each._asdict() for each in ranges],
        "metric": metric,
    }
    own = json.loads(json.dumps(own))
    out.mkdir(parents=True, exist_ok=True)
    file = out / _SETTINGS
    if not file.exists():
        file.write_text(json.dumps(own, indent=1))
    elif json.loads(file.read_text()) != own:
        raise DataError(f"{out} holds a sweep with other settings: name another --out, or give the same settings")


def _claimed(study: optuna.Study, out: Path, num_trials: int) -> Iterator[optuna.Trial]:
    """Yields trials that this process alone trains: those that were interrupted, then new ones.

    A trial counts as running from its creation on, and belongs to the process that locks it.
    """
    while True:
        for running in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            folder = out / "locks" / _name(running)
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(run_lock.held(folder))
                except CheckpointError:  # another process trains it
                    continue
                if study.get_trials(deepcopy=False)[running.number].state == TrialState.RUNNING:
                    yield optuna.Trial(study, running._trial_id)
                    break
        else:
            if len(study.get_trials(deepcopy=False)) >= num_trials:
                return
            study.ask()


def _name(trial: optuna.Trial | FrozenTrial) -> str:
    return f"{trial.number:04d}"


def _train(
    study: optuna.Study, trial: optuna.Trial, experiment: Experiment, out: Path, ranges: Sequence[Range], metric: str
) -> None:
    settings = {each.name: each.draw(trial) for each in ranges}
    folder = out / "trials" / _name(trial)
    print(f"trial {folder.name}: {', '.join(f'{name} {value}' for name, value in settings.items())}", flush=True)
    reported = study.get_trials(deepcopy=False)[trial.number].intermediate_values  # before an interruption

    def ends(step: int, metrics: dict[str, float]) -> bool:
        if metric not in metrics:
            known = ", ".join(sorted(metrics)) or "nothing: the data have no dev split"
            raise DataError(f"--metric {metric}: a validation of this run has {known}")
        if step not in reported:
            trial.report(metrics[metric], step)
        return trial.should_prune()

    try:
        result = loop.train(with_settings(experiment, settings), folder, ends=ends)
    except (loop.TrainingStopped, ValueError) as error:  # settings that diverge, or do not fit together
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {folder.name}: {error}")
        return
    if result.stopped_by:
        raise DataError(f"{result.stopped_by} received: the same command goes on with trial {folder.name}")
    values = study.get_trials(deepcopy=False)[trial.number].intermediate_values.values()
    if trial.should_prune() and result.ended_early:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, min(values))


def write_report(study: optuna.Study, out: Path, metric: str) -> str:
    """Writes the table of a sweep's trials, best first, and a parallel-coordinates plot; returns the table."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    names = sorted({name for trial in trials for name in trial.params})
    rows = [["trial", metric, "validations", "", *names]]
    for trial in sorted(trials, key=_order):
        value = min(trial.intermediate_values.values(), default=trial.value)
        state = "ended early" if trial.state == TrialState.PRUNED else ""
        settings = [_shown(trial.params.get(name, "")) for name in names]
        rows.append([_name(trial), _shown(value), str(len(trial.intermediate_values)), state, *settings])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    table = "\n".join(lines)
    (out / "trials.md").write_text(table + "\n")
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if complete:
        figure = optuna.visualization.plot_parallel_coordinate(study, target_name=metric)
        figure.write_html(out / "parallel.html")
        table += f"\nbest: {out / 'trials' / _name(min(complete, key=_order))}   plot: {out / 'parallel.html'}"
    return table


def _order(trial: FrozenTrial) -> tuple[bool, float]:
    values = trial.intermediate_values.values()
    return trial.state == TrialState.PRUNED, min(values, default=float("inf"))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
