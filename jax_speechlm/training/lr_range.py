"""The learning rate range test: a short run with a rising rate shows which rates train (Smith 2017, section 3.3)."""

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jax_speechlm.optim.optimizers import Ramp
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training import loop
from jax_speechlm.training.logs import METRICS
from jax_speechlm.training.source import BatchSource, open_source

SMOOTHING = 0.9
"""Decay of the mean over steps that smooths the losses."""

_ROWS = 24  # of the printed table
_NO_FALL = 1e-3  # relative to the first loss: less is noise
_DIVERGED = 2.0  # a smoothed loss of so many times its fall above the lowest has diverged


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    Attributes:
      rates: learning rates of the steps.
      losses: smoothed losses of the steps, before each update, relative to the untrained model's.
      steepest: the rate at which the loss falls fastest, a good peak of a schedule; None if it never falls.
      highest: a third of the rate at which the loss is lowest, beyond which training becomes unstable.
    """

    rates: list[float]
    losses: list[float]
    steepest: float | None
    highest: float | None


def analyse(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Smooths the losses of a run with rising rates and finds the useful ones.

    Args:
      rates: learning rates by step.
      losses: losses by step, relative to the untrained model's; the test ends at the first that is not finite.
    """
    smooth, total = [], 0.0
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            break
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        smooth.append(total / (1 - SMOOTHING ** (step + 1)))
    rates = list(rates[: len(smooth)])
    if len(smooth) < 3:
        return RangeTest(rates, smooth, None, None)
    lowest = min(range(len(smooth)), key=smooth.__getitem__)
    fall = smooth[0] - smooth[lowest]
    if lowest < 2 or fall <= _NO_FALL * abs(smooth[0]):
        return RangeTest(rates, smooth, None, None)
    end = next((step for step in range(lowest, len(smooth)) if smooth[step] > smooth[lowest] + _DIVERGED * fall), None)
    # Rates rise by a constant factor, so that a difference of losses is the slope over the logarithm of the rate.
    width = max(2, len(rates) // 12)
    slopes = {step: smooth[step - width] - smooth[step] for step in range(width, lowest + 1)}
    steepest = max(slopes, key=slopes.__getitem__) if slopes else lowest
    return RangeTest(rates[:end], smooth[:end], rates[steepest], rates[lowest] / 3)


def run(experiment: Experiment, lowest: float, highest: float, steps: int) -> RangeTest:
    """Trains an experiment with a rising learning rate in a temporary folder, and analyses its losses.

    Batches differ in length and difficulty, so each loss is divided by that of the untrained model on the same batch,
    of a second run whose rate is next to zero. `optimizer.schedule` is not used; groups of parameters with an optimizer
    of their own keep their schedules.
    """
    experiment = experiment.replace(
        num_steps=steps,
        max_bad_steps=1,
        loop=experiment.loop.replace(log_every=1, eval_every=steps, checkpoint_every=steps),
    )
    source = dataclasses.replace(open_source(experiment), dev_plan=None)
    ramp = Ramp(lowest=lowest, peak=highest)
    losses, untrained = (_losses(experiment, source, schedule) for schedule in (ramp, Ramp(lowest=1e-30, peak=1e-30)))
    ratios = [loss / before for loss, before in zip(losses, untrained, strict=False)]
    return analyse([float(ramp.build(steps)(step)) for step in range(len(ratios))], ratios)


def _losses(experiment: Experiment, source: BatchSource, schedule: Ramp) -> list[float]:
    """Returns the training losses of a run with a schedule, up to a first that is not finite."""
    experiment = experiment.replace(optimizer=experiment.optimizer.replace(schedule=schedule))
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(loop.TrainingStopped):  # the rate became too high, as it is meant to
            loop.train(experiment, folder, source)
        lines = [json.loads(line) for line in (Path(folder) / METRICS).read_text().splitlines()]
    return [line["loss"] for line in lines if line["part"] == "train"]


def describe(result: RangeTest) -> str:
    """Formats a range test as a table of rates and losses with bars, and its advice."""
    rows = range(0, len(result.losses), max(1, math.ceil(len(result.losses) / _ROWS)))
    low, high = min(result.losses, default=0.0), max(result.losses, default=0.0)
    scale = 40 / (high - low) if high > low else 0.0
    lines = [f"{'learning rate':>13}  {'loss':>8}  (1: the untrained model's)"] + [
        f"{result.rates[row]:13.2e}  {result.losses[row]:8.4g}  {'#' * round((result.losses[row] - low) * scale)}"
        for row in rows
    ]
    if result.steepest is None:
        lines.append(
            "The loss does not fall at any of these rates: use more --steps, other rates, or look at the data."
        )
    else:
        lines.append(
            f"The loss falls fastest at {result.steepest:.1e}; rates above {result.highest:.1e} are at risk of "
            f"diverging. Try --optimizer.schedule.peak {result.steepest:.1e}"
        )
    return "\n".join(lines)
