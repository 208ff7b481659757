"""Judges a run by its losses on training and dev data: overfitting, too few steps, and when to stop early."""

import math
from collections.abc import Sequence
from typing import NamedTuple

NOTABLE_RISE = 0.02
"""Smallest rise of the dev loss over its lowest value, relative to it, that is called overfitting."""

NOTABLE_FALL = 0.05
"""Smallest fall of the dev loss over the last quarter of a run, relative to it, that calls for more steps."""

_BARS = "▁▂▃▄▅▆▇█"


class Losses(NamedTuple):
    """Losses at a validation: the mean over training steps since the last log line, and over the dev split."""

    step: int
    train: float
    dev: float


class LossHistory:
    """The losses of a run at all its validations. Checkpoints store it, so that a restart knows what came before."""

    def __init__(self, validations: Sequence[Sequence[float | int]] = ()):
        self.validations = [Losses(int(step), float(train), float(dev)) for step, train, dev in validations]

    def add(self, step: int, train: float | None, dev: float | None) -> None:
        """Adds a validation; one without finite losses is left out."""
        if train is not None and dev is not None and math.isfinite(train) and math.isfinite(dev):
            self.validations.append(Losses(step, train, dev))

    @property
    def best(self) -> Losses | None:
        """The validation with the lowest dev loss, the first of equal ones; None before any."""
        return min(self.validations, key=lambda losses: losses.dev, default=None)

    def is_exhausted(self, patience: int | None) -> bool:
        """Returns whether the last `patience` validations, or more, have not lowered the dev loss."""
        return patience is not None and self._since_best() >= patience

    def _since_best(self) -> int:
        return len(self.validations) - 1 - self.validations.index(self.best) if self.validations else 0

    def overfitting(self) -> str | None:
        """Describes a dev loss that rises while the training loss falls, with remedies; None if it does not."""
        best, last = self.best, self.validations[-1] if self.validations else None
        if best is None or last.dev <= best.dev + NOTABLE_RISE * abs(best.dev) or last.train >= best.train:
            return None
        return (
            f"overfits: the dev loss was lowest at step {best.step:,} ({best.dev:.3g}) and is {last.dev:.3g} now, "
            f"while the training loss fell from {best.train:.3g} to {last.train:.3g}. More data, augmentation, dropout "
            f"or a smaller model help; --loop.patience 3 ends such a run early.\n{self.curves()}"
        )

    def underfitting(self) -> str | None:
        """Describes a dev loss that still falls at the end of a run, with remedies; None if it does not."""
        if len(self.validations) < 4:
            return None
        last = self.validations[-1]
        earlier = [losses for losses in self.validations if losses.step <= 0.75 * last.step]
        before = earlier[-1] if earlier else last
        if last != self.best or before.dev - last.dev <= NOTABLE_FALL * abs(before.dev):
            return None
        return (
            f"not converged: the dev loss fell from {before.dev:.3g} to {last.dev:.3g} over the last quarter of the "
            f"run. More steps help: --num-steps {2 * last.step} in a new --run-dir.\n{self.curves()}"
        )

    def curves(self) -> str:
        """Draws both losses over the validations as lines of bars."""
        ends = f"steps {self.validations[0].step:,} to {self.validations[-1].step:,}"
        return "\n".join(
            f"  {name:8} {_bars([getattr(losses, field) for losses in self.validations])}  {ends}"
            for name, field in (("training", "train"), ("dev", "dev"))
        )


def _bars(values: Sequence[float], width: int = 40) -> str:
    """Draws values as bars between the lowest and the highest, at most `width` of them, evenly spaced."""
    if len(values) > width:
        values = [values[round(place * (len(values) - 1) / (width - 1))] for place in range(width)]
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)
