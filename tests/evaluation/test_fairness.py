"""Error rates by group, and the permutation test of the largest gap."""

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.fairness import FairnessReport, fairness, group_names, measure_fairness
from jax_speechlm.evaluation.report import Utterance, evaluate
from tests.data_pipelines.prepared import write_prepared


def report_of(rates, per_group=60, speakers=None, seed=0):
    """Utterances of ten words; group g has errors with probability rates[g]."""
    rng, utterances = np.random.default_rng(seed), []
    for group, rate in enumerate(rates):
        for number in range(per_group):
            words = [f"w{word}" for word in range(10)]
            hypothesis = [("x" if rng.random() < rate else word) for word in words]
            speaker = f"g{group}" if speakers is None else f"g{group}s{number % speakers}"
            name = f"{group}-{number}"
            utterances.append(
                Utterance(id=name, reference=" ".join(words), hypothesis=" ".join(hypothesis), speaker=speaker)
            )
    return evaluate(utterances), [str(int(utterance.id[0])) for utterance in utterances]


def test_rates_are_those_of_each_group_alone():
    evaluation, groups = report_of([0.1, 0.3])
    report = fairness(evaluation, groups, "group")
    for name in ("0", "1"):
        alone = evaluate([each for each, own in zip(evaluation.utterances, groups, strict=True) if own == name])
        assert report.groups[name].rate == alone.wer.rate
        assert report.groups[name].interval == alone.wer.interval
    gap = report.gap
    assert (gap.best, gap.worst, gap.units) == ("0", "1", "utterances")
    assert gap.difference == pytest.approx(report.groups["1"].rate - report.groups["0"].rate)
    assert gap.p_value < 0.001
    assert 0 < gap.interval[0] < gap.difference < gap.interval[1]
    assert "[" in next(report.tables()).caption


def test_p_values_of_equal_groups_are_uniform():
    """Of three groups, whose largest difference is no surprise."""
    p_values = []
    for seed in range(30):
        evaluation, groups = report_of([0.2, 0.2, 0.2], per_group=30, seed=seed)
        p_values.append(fairness(evaluation, groups, "group").gap.p_value)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.3)
    assert min(p_values) > 1e-3


def test_speakers_are_permuted_where_each_is_of_one_group():
    """Two groups of two speakers each differ as widely as can be, yet 3 divisions of 4 speakers prove nothing."""
    evaluation, groups = report_of([0.0, 0.5], speakers=2)
    gap = fairness(evaluation, groups, "group").gap
    assert (gap.units, gap.interval) == ("speakers", None)
    assert gap.p_value == pytest.approx(1 / 3, abs=0.03)
    assert fairness(evaluation, [each.speaker for each in evaluation.utterances], "speaker").gap.units == "utterances"


def test_small_groups_have_neither_interval_nor_gap():
    evaluation, groups = report_of([0.1, 0.3], per_group=29)
    report = fairness(evaluation, [*groups[:-1], None], "group")
    assert report.gap is None
    assert report.groups["0"].interval is None
    assert report.unknown == 1
    assert "fewer than two groups" in next(report.tables()).caption


def test_numbers_are_divided_into_quarters_and_names_are_not():
    values = [float(x) for x in range(100)] + [None]
    names = group_names(values)
    assert names[-1] is None
    assert [names.count(name) for name in dict.fromkeys(names[:-1])] == [25, 25, 25, 25]
    assert group_names([1, 2, 1, None]) == ["1", "2", "1", None]
    assert group_names(["b", "", "a"]) == ["b", None, "a"]
    assert len(set(group_names([0.0] * 50 + list(range(1, 10))))) <= 4


def test_columns_of_reports_sets_and_tables(tmp_path, capsys):
    evaluation, groups = report_of([0.1, 0.4], per_group=40)
    evaluation.save(tmp_path)
    file = tmp_path / "report.json"
    report = measure_fairness(file)
    assert FairnessReport.from_json((tmp_path / "fairness-speaker" / "report.json").read_bytes()) == report
    assert "Largest gap" in capsys.readouterr().out

    table = tmp_path / "snr.csv"
    rows = zip(evaluation.utterances, groups, strict=True)
    table.write_text("id,snr\n" + "".join(f"{each.id},{20 if own == '0' else 5}\n" for each, own in rows))
    by_snr = measure_fairness(file, by="snr", table=table)
    assert list(by_snr.groups) == ["5.0", "20.0"]
    assert by_snr.gap.worst == "5.0"

    for by, options, message in (
        ("gender", {}, "name the prepared --sets, or a --table"),
        ("snr", {"sets": ("noise",), "data_dir": tmp_path}, "no string column 'snr'; it has .*gender"),
        ("gender", {"sets": ("noise",), "data_dir": tmp_path}, "has no column 'gender'"),
        ("text", {"sets": ("noise",), "data_dir": tmp_path}, "no utterance of the report has a value"),
        ("noise", {"table": table}, "snr.csv: has no column noise, but id, snr"),
    ):
        if "sets" in options and not (tmp_path / "noise").exists():
            write_prepared(tmp_path / "noise", {"test": [(np.zeros(800, np.int16), "a")]})
        with pytest.raises(DataError, match=message):
            measure_fairness(file, by=by, **options)
