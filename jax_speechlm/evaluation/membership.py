"""Membership inference: whether the loss tells utterances that a run was trained on from others (Yeom et al. 2018)."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float
from rich.table import Table

from data_pipelines.core.errors import DataError
from jax_speechlm.core.batch import Batch
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.objectives.base import mean
from jax_speechlm.training.runs import LoadedRun
from jax_speechlm.training.source import open_source

_FALSE_POSITIVES = 0.01


class MembershipReport(base.SetReport):
    """The attack that takes an utterance for a member if its loss is below a threshold.

    Attributes:
      auc: probability that a member has a lower loss than another utterance: 0.5 for an attack that guesses.
      interval: 95 % interval of it, over utterances (DeLong et al. 1988).
      found_interval, member_loss_interval, other_loss_interval: 95 % intervals by bootstrap over utterances, of members
        and others alike; None for few.
      found: share of the members that the attack finds at a threshold which takes 1 % of the others for members.
      members, others: numbers of utterances.
      member_loss, other_loss: mean losses per target.
    """

    auc: float
    interval: tuple[float, float]
    found: float
    found_interval: resampling.Interval | None = None
    members: int
    others: int
    member_loss: float
    member_loss_interval: resampling.Interval | None = None
    other_loss: float
    other_loss_interval: resampling.Interval | None = None

    def tables(self) -> Iterator[Table]:
        """Yields one table."""
        table = base.new_table("", "trained on", "others", title=self.title)
        table.add_row("utterances", f"{self.members:,}", f"{self.others:,}")
        losses = (self.member_loss, self.member_loss_interval), (self.other_loss, self.other_loss_interval)
        table.add_row("mean loss [95 %]", *(base.number(*each, ".4f") for each in losses))
        table.add_row("AUC of the loss [95 %]", base.percent(self.auc, self.interval), "")
        table.add_row("found at 1 % false positives [95 %]", base.percent(self.found, self.found_interval), "")
        yield table


def measure_membership(
    checkpoint: base.Checkpoint,
    sets: tuple[str, ...] = (),
    split: str = "dev",
    data_dir: Path | None = None,
    out: Path | None = None,
) -> MembershipReport:
    """Measures how well the loss tells utterances (or texts) that a run was trained on from others.

    The others should be of the same kind as the training data: of other speakers or recordings, the loss tells that
    difference too. Writes `report.json`.

    Args:
      sets: prepared sets of the others; by default those that the run was trained on.
      split: of them: "dev", "test" or another that was not trained on.
      data_dir: folder of the prepared data sets; by default that of the training.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>-membership.
    """
    run = LoadedRun.read(checkpoint, training_only=True)
    data = run.experiment.data
    if data.kind not in ("speech", "text"):
        raise CheckpointError(
            f"{run.checkpoint}: was trained on {data.kind}; runs on speech or on text can be measured"
        )
    trained = tuple(name if ":" in name else f"{name}:train" for name in data.sets)
    sets = sets or tuple(dict.fromkeys(name.partition(":")[0] for name in data.sets))
    others = tuple(name if ":" in name else f"{name}:{split}" for name in sets)
    if both := set(trained) & set(others):
        raise DataError(f"{run.checkpoint} was trained on {min(both)}: name another split with --split")
    members, rest = (losses_of(run, names, data_dir) for names in (trained, others))
    auc, interval = area(members, rest)
    report = MembershipReport(
        checkpoint=str(run.checkpoint),
        sets=sets,
        split=split,
        auc=auc,
        interval=interval,
        found=_found(members, rest),
        found_interval=_interval_of_found(members, rest),
        members=len(members),
        others=len(rest),
        member_loss=float(members.mean()),
        member_loss_interval=resampling.bootstrap_mean(members),
        other_loss=float(rest.mean()),
        other_loss_interval=resampling.bootstrap_mean(rest),
    )
    return report.publish(out or base.report_folder(checkpoint, sets, split, "membership"), str(run.checkpoint))


def _found(members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> float:
    return float(np.mean(members < np.quantile(others, _FALSE_POSITIVES)))


def _interval_of_found(members: Float[np.ndarray, " m"], others: Float[np.ndarray, " n"]) -> resampling.Interval | None:
    if min(len(members), len(others)) < resampling.MIN_UTTERANCES:
        return None
    rng = np.random.default_rng(0)
    drawn = (_found(*(rng.choice(each, len(each)) for each in (members, others))) for _ in range(1_000))
    return resampling.interval(np.array(list(drawn)))


def losses_of(run: LoadedRun, sets: tuple[str, ...], data_dir: Path | None) -> Float[np.ndarray, " rows"]:
    """Computes the loss per target of every utterance or text of sets, "name:split", as in evaluation."""
    experiment = run.experiment
    changes = {"dev_sets": sets} | ({"packed": False} if experiment.data.kind == "text" else {})
    changes |= {"data_dir": str(data_dir)} if data_dir else {}
    changes |= {"tokenizer": str(run.checkpoint.parent.parent)} if run.tokenizer else {}
    experiment = experiment.replace(data=experiment.data.replace(**changes))
    objective = experiment.build(run.tokenizer)

    def of_row(params, row: Batch) -> Float[Array, ""]:
        batch = {name: value[None] for name, value in row.items()}
        return mean(*objective.loss(params, batch, None)[1]["loss"])

    of_rows, losses = jax.jit(jax.vmap(of_row, in_axes=(None, 0))), []
    for batch in open_source(experiment).dev_batches():
        losses.append(np.asarray(of_rows(run.params, batch))[np.asarray(batch["example_id"]).reshape(-1) >= 0])
    found = np.concatenate(losses)
    if len(found) < 2:
        raise DataError(f"{', '.join(sets)} has fewer than two utterances of the lengths that the run takes")
    return found


def area(lower: Float[np.ndarray, " m"], higher: Float[np.ndarray, " n"]) -> tuple[float, tuple[float, float]]:
    """Returns the probability that a value of `lower` is below one of `higher`, ties counted half, and its interval."""

    def placements(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns the share of the others above each value, ties counted half."""
        ordered = np.sort(others)
        below, not_above = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        return 1 - (below + not_above) / (2 * len(others))

    of_lower, of_higher = placements(lower, higher), 1 - placements(higher, lower)
    auc = float(of_lower.mean())
    deviation = math.sqrt(of_lower.var(ddof=1) / len(lower) + of_higher.var(ddof=1) / len(higher))
    return auc, (max(0.0, auc - 1.96 * deviation), min(1.0, auc + 1.96 * deviation))
