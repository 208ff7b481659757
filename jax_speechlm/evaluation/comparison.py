"""Paired comparison of two reports of the same data, by bootstrap over items, corrected for the number of measures."""

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic
from jaxtyping import Int
from tyro.conf import Positional

from data_pipelines.core.paths import AnyPath, as_path
from jax_speechlm.core.config import Config
from jax_speechlm.evaluation import base, resampling

_REPORTS = (
    "report:EvaluationReport",
    "translation:TranslationReport",
    "text_to_text:TextToTextReport",
    "classification:ClassificationReport",
    "intent:CommandReport",
    "language:LanguageReport",
    "unit_language:UnitReport",
    "masked_text:MaskedReport",
    "minimal_pairs:PairReport",
    "few_shot:FewShotReport",
    "answers:AnswerReport",
    "synthesis_report:SynthesisReport",
    "probing:ProbeReport",
)
"""Kinds of reports that keep their items, in `jax_speechlm.evaluation`."""


class Comparison(Config):
    """Two systems on the same items, by paired bootstrap.

    Attributes:
      metric: name of the measure.
      difference: second minus first.
      interval: 95 % interval of the difference; None below `resampling.MIN_UTTERANCES` items.
      p_value: two-sided; None likewise.
      corrected: `p_value` corrected for the number of measures that the reports share (Holm 1979).
      as_percent: whether the measure is a share.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    corrected: float | None = None
    as_percent: bool = True

    def __str__(self) -> str:
        scale, unit, digits = (100, " %", 2) if self.as_percent else (1, "", 3)
        first, second = (f"{scale * value:.{digits}f}{unit}" for value in (self.first, self.second))
        text = f"{self.metric} {first} -> {second}: {scale * self.difference:+.{digits}f}"
        if self.interval is None:
            return f"{text} (no interval: fewer than {resampling.MIN_UTTERANCES} utterances have a reference)"
        low, high = (f"{scale * bound:+.{digits}f}" for bound in self.interval)
        text += f" [{low}, {high}], p = {self.p_value:.2g}"
        return text if self.corrected == self.p_value else f"{text} ({self.corrected:.2g} by Holm)"


def compare(
    first: base.Report, second: base.Report, *, resamples: int | None = None, seed: int = 0
) -> list[Comparison]:
    """Tests the differences of two reports in all measures that both have, on the same items in any order.

    The resampled unit is the item, or the speaker where there are many (`resampling.units_of`).

    Raises:
      ValueError: the reports are of different kinds or data, or keep no items.
    """
    if type(first) is not type(second):
        kinds = " and a ".join(type(each).__name__ for each in (first, second))
        raise ValueError(f"a {kinds} have no measure in common: compare two reports of one kind")
    one, other = first.measures(), second.measures()
    names = [name for name in one if name in other]
    if not names:
        of_each = " and ".join(", ".join(each) or "none" for each in (one, other))
        raise ValueError(
            f"the reports have no measure in common whose items they keep ({of_each}): evaluate both again, in the "
            "same way"
        )
    compared = [_compare(name, one[name], other[name], resamples, seed) for name in names]
    corrected = resampling.holm([each.p_value for each in compared])
    return [each.replace(corrected=p_value) for each, p_value in zip(compared, corrected, strict=True)]


def _compare(name: str, first: base.Measure, second: base.Measure, resamples: int | None, seed: int) -> Comparison:
    if first.setting != second.setting:
        raise ValueError(
            f"one report was made with {first.setting}, the other with {second.setting}: evaluate both with the same"
        )
    rows = matching_rows([(first.ids, first.references), (second.ids, second.references)])
    terms = first.terms.T, second.terms[rows[1]].T
    values = [float(first.statistic(each.sum(1)[:, None])[0]) for each in terms]
    if any(map(math.isnan, values)):
        raise ValueError(f"{name} is not defined on these items, which have no reference: compare on other data")
    units = resampling.units_of(first.speakers)
    difference = resampling.paired_bootstrap(*terms, first.statistic, units, resamples=resamples, seed=seed)
    return Comparison(
        metric=name,
        first=values[0],
        second=values[1],
        difference=difference.value,
        interval=difference.interval,
        p_value=difference.p_value,
        as_percent=first.as_percent,
    )


def matching_rows(systems: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Int[np.ndarray, " rows"]]:
    """Matches the items of several systems by id.

    Args:
      systems: ids and references of each.

    Returns:
      For each system its rows, in the order of the first system's items.

    Raises:
      ValueError: the systems differ in items or references.
    """
    (ids, references), *others = systems
    matched = [np.arange(len(ids))]
    for other_ids, other_references in others:
        row_of = {name: row for row, name in enumerate(other_ids)}
        if only := sorted(row_of.keys() ^ set(ids)):
            raise ValueError(
                f"{len(only)} utterances are in one report only, such as {only[0]!r}: evaluate all on the same data set"
            )
        rows = [row_of[name] for name in ids]
        for name, reference, row in zip(ids, references, rows, strict=True):
            if other_references[row] != reference:
                raise ValueError(
                    f"the references of utterance {name!r} differ, {reference!r} and {other_references[row]!r}: "
                    "evaluate all on the same version of the data set"
                )
        matched.append(np.array(rows, int))
    return matched


def read_report(path: AnyPath) -> base.Report:
    """Reads a report.json of any kind that can be compared.

    Raises:
      ValueError: the file is missing, or is no such report.
    """
    try:
        content = path.read_bytes()
        keys = set(json.loads(content))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: run `jax-speechlm eval` first, and name its report.json") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a report of `jax-speechlm eval`: {error}") from error
    for name in _REPORTS:
        module, _, kind = name.partition(":")
        report = getattr(importlib.import_module(f"jax_speechlm.evaluation.{module}"), kind)
        needed = {field for field, info in report.model_fields.items() if info.is_required()}
        if needed <= keys <= set(report.model_fields):
            try:
                return report.from_json(content)
            except pydantic.ValidationError as error:
                raise ValueError(f"{path} is not a report of this version: {error}") from error
    kinds = ", ".join(name.partition(":")[2] for name in _REPORTS)
    raise ValueError(f"{path} is not a report whose items can be compared; those are {kinds}")


def compare_reports(first: Positional[Path], second: Positional[Path]) -> None:
    """Compares two evaluations of the same data by paired bootstrap, in every measure that both report.

    With several measures, p-values are also given as corrected for their number (Holm 1979).

    Args:
      first: a report.json of `jax-speechlm eval` (recognition, translation, classes, commands, language models, speech)
        or of another evaluation that keeps its items (pairs, few-shot, answers, probes).
      second: another; the difference is second minus first.
    """
    for comparison in compare(*(read_report(as_path(path)) for path in (first, second))):
        print(comparison)
