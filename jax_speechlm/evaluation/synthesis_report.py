"""The table of judged speech: values with intervals, differences from natural speech, transcripts of the judges."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from rich.markup import escape
from rich.table import Table

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.resampling import MIN_UTTERANCES
from jax_speechlm.units.measures import Bitrate

NATURAL = "natural"
"""Name of the row of natural recordings, which all others are compared with."""

Group = Literal["errors", "quality", "distance"]

_TITLES: dict[Group, str] = {
    "errors": "word and character errors of recognizers",
    "quality": "quality and voice (higher is better)",
    "distance": "distance to the natural recording (lower is better)",
}

_RATES = ["units/second", "bits/second", "entropy/second"]


def value_of(is_root: bool) -> resampling.Statistic:
    """Returns the statistic of a column from sums of numerators and denominators: their ratio, or its square root."""
    return (lambda sums: np.sqrt(resampling.ratio(sums))) if is_root else resampling.ratio


class Column(Config):
    """One measure.

    Attributes:
      judge: the judge that it comes from; "" if it is computed without one.
      unit: "%" for shares, which are stored as shares.
      is_root: whether values are square roots of ratios.
    """

    name: str
    group: Group
    judge: str = ""
    unit: Literal["%", "dB", ""] = ""
    digits: int = 2
    is_root: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def number(self, value: float, sign: str = "") -> str:
        """Formats a value in the unit of the title."""
        return f"{100 * value if self.unit == '%' else value:{sign}.{self.digits}f}"

    def interval(self, bounds: tuple[float, float] | None, sign: str = "") -> str:
        return "" if bounds is None else " [{}, {}]".format(*(self.number(bound, sign) for bound in bounds))


class Measurement(Config):
    """One measure of one row.

    Attributes:
      value: total over total; None if no utterance has one.
      interval: 95 % bootstrap interval over utterances; None below 30 utterances.
      utterances: number of utterances with a value.
      difference, difference_interval, p_value: this row minus natural speech on the same utterances, by paired
        bootstrap; None for natural speech, for distances to it, and for intervals below 30 utterances.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    utterances: int
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p_value: float | None = None


class JudgedRow(Config):
    """One system.

    Attributes:
      measures: by name of column.
      real_time_factor: seconds of computation per second of speech; None if not measured.
      first_audio_ms: time from the request to the first samples; None likewise.
      bitrate: of the units that the speech was computed from; None if it was not.
    """

    name: str
    measures: dict[str, Measurement]
    real_time_factor: float | None = None
    first_audio_ms: float | None = None
    bitrate: Bitrate | None = None


class JudgedUtterance(Config):
    """What the judges made of one utterance.

    Attributes:
      transcripts: by row, then by judge.
      sums: by row, then by column: the numerator and the denominator of the measure.
    """

    id: str
    reference: str
    speaker: str = ""
    language: str = ""
    transcripts: dict[str, dict[str, str]]
    sums: dict[str, dict[str, tuple[float, float]]]


class SynthesisReport(base.Report):
    """Speech of several systems with the same texts, judged.

    Attributes:
      title: the utterances that were judged.
      normalizer: applied to references and transcripts.
      columns: of the judges that judged.
      missing: reasons of the judges that did not, by name.
      failed: numbers of recordings without a judgement, by judge, with the first error.
      packages: versions of the judges.
      rows: natural speech first.
      resamples, seed: of the bootstrap intervals.
    """

    title: str
    normalizer: NormalizerName
    columns: tuple[Column, ...]
    missing: dict[str, str]
    failed: dict[str, str]
    packages: dict[str, str]
    rows: tuple[JudgedRow, ...]
    resamples: int
    seed: int
    utterances: tuple[JudgedUtterance, ...]

    def measures(self) -> dict[str, base.Measure]:
        """Returns the columns of the last row, which is the system that was evaluated."""
        row, measures = self.rows[-1].name, {}
        for column in self.columns:
            judged = [each for each in self.utterances if column.name in each.sums.get(row, {})]
            if judged:
                about = ([getattr(each, name) for each in judged] for name in ("id", "reference", "speaker"))
                measures[column.name] = base.Measure(
                    *about,
                    np.array([each.sums[row][column.name] for each in judged], np.float64),
                    value_of(column.is_root),
                    as_percent=column.unit == "%",
                    setting=f"--normalizer {self.normalizer}",
                )
        return measures

    def tables(self) -> Iterator[Table]:
        """Yields a table for each group of columns, then differences from natural speech, speeds and rates of units."""
        for group, title in _TITLES.items():
            if columns := [column for column in self.columns if column.group == group]:
                rows = [row for row in self.rows if group != "distance" or row.name != NATURAL]
                if rows:
                    yield self._table(title, columns, rows)
        if (differences := self._differences()).rows:
            yield differences
        if timed := self._timed():
            table = base.new_table("", "real-time factor", "first audio, ms", title="speed")
            for row in timed:
                table.add_row(escape(row.name), *self.speed_cells(row))
            yield table
        if coded := self._coded():
            table = base.new_table("", "units", *_RATES, title="units that the speech was computed from")
            for row in coded:
                table.add_row(escape(row.name), str(row.bitrate.num_units), *self.rate_cells(row))
            yield table

    def conditions(self) -> list[str]:
        """Returns what was compared, and by which versions of the judges."""
        notes = [
            f"{len(self.utterances)} utterances; normalizer {self.normalizer}; [95 % bootstrap interval over "
            f"utterances]; * differs from natural speech (paired bootstrap, p < 0.05)"
        ]
        if self._coded():
            notes.append(
                "bits/second: units/second times log2 of the number of different units; entropy/second: times the "
                "entropy of their frequencies in these utterances, in bits"
            )
        if len(self.utterances) < MIN_UTTERANCES:
            notes.append(f"no intervals: fewer than {MIN_UTTERANCES} utterances")
        if self.packages:
            notes.append("judges: " + ", ".join(f"{name} {version}" for name, version in self.packages.items()))
        return notes

    def problems(self) -> list[str]:
        """Returns which judgements are missing and why."""
        problems = [f"{judge} has no column: {reason}" for judge, reason in self.missing.items()]
        return problems + [f"{judge} failed on {what}" for judge, what in self.failed.items()]

    def texts(self) -> dict[str, str]:
        return {"table.md": self.as_markdown()}

    def as_markdown(self) -> str:
        """Returns one table of all columns with the notes below."""
        head = ["", *self.titles()]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join([row.name, *self.cells(row)])} |" for row in self.rows]
        return (
            "\n".join([f"{self.title}\n", *lines, "", *(f"- {note}" for note in self.conditions() + self.problems())])
            + "\n"
        )

    def titles(self) -> list[str]:
        """Returns the titles of the columns of one table with everything."""
        titles = [column.title for column in self.columns]
        return titles + ["real-time factor", "first audio, ms"] * bool(self._timed()) + _RATES * bool(self._coded())

    def cells(self, row: JudgedRow) -> list[str]:
        """Formats the values of a row below those titles."""
        cells = [self.cell(row, column) for column in self.columns]
        return cells + self.speed_cells(row) * bool(self._timed()) + self.rate_cells(row) * bool(self._coded())

    def cell(self, row: JudgedRow, column: Column) -> str:
        """Formats a value with its interval, a mark of its difference, and the utterances that lack it."""
        measure = row.measures[column.name]
        if measure.value is None:
            return "-"
        mark = "*" if measure.p_value is not None and measure.p_value < 0.05 else ""
        lacking = len(self.utterances) - measure.utterances
        some = f" ({measure.utterances} of {len(self.utterances)})" if lacking else ""
        return f"{column.number(measure.value)}{mark}{column.interval(measure.interval)}{some}"

    def speed_cells(self, row: JudgedRow) -> list[str]:
        """Formats the speeds of a row."""
        factor, first = row.real_time_factor, row.first_audio_ms
        return ["-" if factor is None else f"{factor:.3f}", "-" if first is None else f"{first:.0f}"]

    def rate_cells(self, row: JudgedRow) -> list[str]:
        """Formats the rate of the units of a row."""
        if (rate := row.bitrate) is None:
            return ["-"] * len(_RATES)
        return [f"{rate.units_per_second:.1f}", f"{rate.bits_per_second:.0f}", f"{rate.entropy_per_second:.0f}"]

    def _coded(self) -> list[JudgedRow]:
        return [row for row in self.rows if row.bitrate is not None]

    def _timed(self) -> list[JudgedRow]:
        return [row for row in self.rows if row.real_time_factor is not None or row.first_audio_ms is not None]

    def _differences(self) -> Table:
        """Returns a line for every measure of every row that is compared with natural speech."""
        columns = "", "measure", "minus natural", "95 %", "p"
        table = base.new_table(*columns, left=2, title="difference from natural speech, same utterances")
        for row in self.rows:
            table.add_section()
            for column in self.columns:
                measure = row.measures[column.name]
                if measure.difference is not None:
                    bounds = column.interval(measure.difference_interval, "+").strip() or "-"
                    p_value = "-" if measure.p_value is None else f"{measure.p_value:.2g}"
                    value = column.number(measure.difference, "+")
                    table.add_row(escape(row.name), escape(column.title), value, escape(bounds), p_value)
        return table

    def _table(self, title: str, columns: list[Column], rows: list[JudgedRow]) -> Table:
        table = base.new_table("", *(column.title for column in columns), title=title)
        for row in rows:
            table.add_row(escape(row.name), *(escape(self.cell(row, column)) for column in columns))
        return table
