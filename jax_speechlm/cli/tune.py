"""`jax-speechlm lr-range` and `sweep`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from pydantic import PositiveFloat, PositiveInt
from tyro.conf import UseAppendAction

from data_pipelines.core.errors import DataError
from jax_speechlm.cli.experiment import ExperimentOptions, From
from jax_speechlm.training import lr_range as ranges


def lr_range(
    experiment: ExperimentOptions,
    config: str,
    lowest: PositiveFloat = 1e-7,
    highest: PositiveFloat = 1.0,
    steps: PositiveInt = 100,
    start: From = (),
    out: Path | None = None,
) -> None:
    """Trains a few steps while the learning rate rises, and shows at which rates the loss falls. Keeps no run.

    Every setting of the experiment is an option too. Its learning rate schedule is not used.

    Args:
      config: a shipped experiment, or a .py or .json file.
      lowest: learning rate of the first step.
      highest: learning rate of the last step.
      steps: training steps; with fewer than 50 the losses are noisy.
      start: take over encoder and transformer of this run or checkpoint; may be repeated.
      out: also write rates and losses to this JSON file.
    """
    del config, start  # in experiment
    if highest <= lowest:
        raise DataError(f"--highest {highest:g} must be above --lowest {lowest:g}")
    result = ranges.run(experiment, lowest, highest, steps)
    if out is not None:
        out.write_text(json.dumps(dataclasses.asdict(result), indent=1))
    print(ranges.describe(result))


def sweep(
    experiment: ExperimentOptions,
    config: str,
    out: Path,
    vary: Annotated[tuple[str, ...], UseAppendAction] = (),
    trials: PositiveInt = 20,
    metric: str = "loss",
    prune: bool = True,
    start: From = (),
) -> None:
    """Trains an experiment with many combinations of settings and shows which are best on dev data.

    Settings are chosen by Optuna's TPE from the results so far. The same command goes on with a sweep that was stopped,
    runs that were interrupted included; several at the same time, here or on machines that share the folder, work on
    the same trials. The folder receives `trials/N`, a run each, `trials.md` and `parallel.html`.

    Every setting of the experiment is an option too.

    Args:
      config: a shipped experiment, or a .py or .json file.
      out: folder of the sweep.
      vary: a setting and its values: "optimizer.schedule.peak=1e-4..1e-2:log" (a range, here on a logarithmic scale),
        "model.num_layers=2..6" (whole numbers), "frontend.augment.time_masks=0,2,4" (a choice); may be repeated.
      trials: number of combinations in all.
      metric: metric of validation to minimise, such as loss or wer.
      prune: end trials early whose metric is above the median of the others at the same step.
      start: take over encoder and transformer of this run or checkpoint; may be repeated.
    """
    del config, start  # in experiment
    from jax_speechlm.training import sweep as sweeps  # needs the extra [sweep]

    study = sweeps.run(experiment, out, [sweeps.parse_range(text) for text in vary], trials, metric, prune)
    print(sweeps.write_report(study, out, metric))
