"""What all evaluators share: options of their commands, and reports."""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from pydantic import PositiveInt
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from data_pipelines.core.paths import AnyPath, as_path
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation.resampling import Interval, Statistic, ratio

Checkpoint = Positional[Annotated[Path, arg(help="a run's directory, or one of its checkpoints/<step> folders.")]]
Sets = Annotated[
    tuple[str, ...],
    arg(help='names of prepared data sets; "name:split" selects another split than --split.'),
]
Split = Annotated[str, arg(help='"test", "dev" or "train".')]
DataDir = Annotated[Path, arg(help="folder of the prepared data sets.")]
Limit = Annotated[PositiveInt | None, arg(help="only the first utterances, this many.")]
Out = Annotated[Path | None, arg(help="folder of the report; by default <checkpoint>/eval/<sets>-<split>.")]
Adapter = Annotated[Path | None, arg(help="folder of LoRA in peft's format, trained on this run.")]
BatchSeconds = Annotated[float, arg(help="padded audio per batch, in seconds; affects memory and speed only.")]

Self = TypeVar("Self", bound="Report")


class Item(Config):
    """What a report keeps of one item, such as an utterance, for paired comparisons.

    Attributes:
      id: unique in the report.
      speaker: '' if unknown.
      reference: what reports of the same data agree in.
      sums: by measure: terms that add up over items; numerator and denominator of a rate.
    """

    id: str
    speaker: str = ""
    reference: str = ""
    sums: dict[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of a report by item, for paired comparisons.

    Attributes:
      ids, references, speakers: of the items, as in `Item`.
      terms: what adds up over items.
      statistic: computes the measure from sums of the terms.
      as_percent: whether it is a share.
      setting: what two reports must agree in, such as the normalizer, as they name it.
    """

    ids: Sequence[str]
    references: Sequence[str]
    speakers: Sequence[str | None]
    terms: Float[np.ndarray, "items terms"]
    statistic: Statistic = ratio
    as_percent: bool = True
    setting: str = ""

    @classmethod
    def of_items(cls, items: Sequence[Item], name: str, **options: Any) -> "Measure":
        """Returns the measure of this name of those items that have it."""
        items = [item for item in items if name in item.sums]
        columns = ([getattr(item, field) for item in items] for field in ("id", "reference", "speaker"))
        return cls(*columns, np.array([item.sums[name] for item in items], np.float64), **options)


class Report(Config):
    """The result of an evaluation: values, which are saved as JSON, and their presentation."""

    def measures(self) -> dict[str, Measure]:
        """Returns the measures that `jax-speechlm compare` tests, by name; none if no items are kept."""
        return {}

    @abc.abstractmethod
    def tables(self) -> Iterable[Table]:
        """Yields the report as tables for the terminal."""

    def texts(self) -> dict[str, str]:
        """Returns further files to save, by name."""
        return {}

    def save(self, folder: AnyPath) -> None:
        """Writes `report.json`, which `from_json` parses, and the files of `texts`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"report.json": self.model_dump_json(indent=2) + "\n", **self.texts()}.items():
            (folder / name).write_text(text, encoding="utf-8")

    def publish(self: Self, out: AnyPath, source: str, *, warning: str = "") -> Self:
        """Saves the report, prints it with a warning and the line "SOURCE; FILES", and returns it."""
        out = as_path(out)
        self.save(out)
        console = Console(highlight=False)
        for table in self.tables():
            console.print(table)
        if warning:
            console.print(warning, style="yellow", markup=False, soft_wrap=True)
        files = ", ".join((str(out / "report.json"), *self.texts()))
        console.print(f"{source}; {files}", markup=False, soft_wrap=True)
        return self


class SetReport(Report):
    """The evaluation of a run on prepared sets.

    Attributes:
      checkpoint, sets, split: the run and its test data.
    """

    checkpoint: str = ""
    sets: tuple[str, ...] = ()
    split: str = ""

    @property
    def title(self) -> str:
        return f"{', '.join(self.sets)} {self.split}"


def report_folder(checkpoint: AnyPath, sets: Sequence[str], *parts: str) -> AnyPath:
    """Returns the default folder of a report."""
    return checkpoint / "eval" / "-".join(("+".join(sets), *parts))


def new_table(*columns: str, left: int = 1, **options: Any) -> Table:
    """Returns an empty table whose first `left` columns are left-justified, and all others right-justified."""
    table = Table(title_justify="left", **options)
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index < left else "right"
        table.add_column(escape(column), justify=justify)
    return table


def percent(share: float, interval: Interval | None) -> str:
    """Formats a share and its interval, such as "12.3 % [10.1, 14.5]"."""
    bounds = "" if interval is None else " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in interval))
    return f"{100 * share:.1f} %{bounds}"


def number(value: float, interval: Interval | None, digits: str = ".3f") -> str:
    """Formats a value and its interval, such as "1.514 [1.498, 1.531]"."""
    bounds = "" if interval is None else " [{}, {}]".format(*(f"{bound:{digits}}" for bound in interval))
    return f"{value:{digits}}{bounds}"
