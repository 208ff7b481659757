"""Evaluates unit language models on spoken minimal pairs: is the correct recording the more probable one?

It reads the sets as distributed:

- sWUGGY and sBLIMP (Nguyen et al. 2020, ZeroSpeech 2021): a folder `lexical/dev`, `syntactic/test` ... with `gold.csv`
  and its recordings. A pair is recorded in several voices: its score is their mean, as in the challenge.
- spoken StoryCloze (Hassid et al. 2023): a folder of `<number>_<story>_correct.wav` and, with another number,
  `<number>_<story>_incorrect.wav`; or of `<story>_correct.wav` and `<story>_incorrect.wav`.
- SALMon (Maimon et al. 2025): folders of `sample_<n>_0.wav`, the correct recording, and `sample_<n>_1.wav`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import csv_rows
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.minimal_pairs import Accuracy, PairReport, report_of
from jax_speechlm.evaluation.resampling import bootstrap_mean
from jax_speechlm.inference.lm.units import UnitModel
from jax_speechlm.inference.unit_encoder import UnitEncoder

_FREQUENCIES = ((0, "not in LibriSpeech"), (1, "1 to 4"), (5, "5 to 19"), (20, "20 to 99"), (100, "100 and more"))
_FILES_AT_A_TIME = 256


class SpokenPair(NamedTuple):
    """A correct and an incorrect recording.

    Attributes:
      item: pairs of one item, which differ in the voice, count as one.
      groups: properties by which pairs are also counted separately: "voice", "type" ...
    """

    good: Path
    bad: Path
    item: str
    groups: dict[str, str]


def read_spoken_pairs(folders: Sequence[Path]) -> list[SpokenPair]:
    """Reads folders in the format of one of the sets above, or of such folders.

    Raises:
      DataError: a folder has no pairs, a recording is missing, or one has no partner; the message names it.
    """
    pairs = []
    for folder in folders:
        folder = folder.parent if folder.name == "gold.csv" else folder
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder: name folders of sWUGGY, sBLIMP, StoryCloze or SALMon")
        of_folder = _read_folder(folder)
        if not of_folder:
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                of_inner = _read_folder(inner)
                of_folder += [pair._replace(groups=pair.groups | {"folder": inner.name}) for pair in of_inner]
        if not of_folder:
            raise DataError(
                f"{folder} holds no spoken pairs: it needs a gold.csv (sWUGGY, sBLIMP), *_correct.wav and "
                "*_incorrect.wav (StoryCloze), or sample_<n>_0.wav and sample_<n>_1.wav (SALMon)"
            )
        pairs += [pair._replace(item=f"{folder}/{pair.item}") for pair in of_folder]
    return pairs


def compare_spoken(pairs: Sequence[SpokenPair], scores: Sequence[float], checkpoint: str) -> PairReport:
    """Computes the share of the pairs in which the correct recording is more probable.

    A tie counts half; the pairs of an item count as one.

    Args:
      scores: log-probabilities of the good and the bad recording of every pair, alternating.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        for name, value in pair.groups.items():
            groups[f"{name} {value}"].append(row)

    def accuracy(wins: np.ndarray, rows: list[int]) -> Accuracy:
        return _accuracy(wins[rows], [pairs[row].item for row in rows])

    return report_of(checkpoint, scores, dict(sorted(groups.items())), [pair.item for pair in pairs], accuracy)


def score_spoken_pairs(
    checkpoint: base.Checkpoint,
    folders: Positional[tuple[Path, ...]],
    units: Path | None = None,
    per_unit: bool = False,
    out: Path | None = None,
) -> PairReport:
    """Measures how often a unit language model assigns the correct recording of a pair the higher probability.

    Args:
      folders: folders of sWUGGY, sBLIMP (with gold.csv), spoken StoryCloze or SALMon.
      units: folder of the k-means the model was trained on; by default as in the run.
      per_unit: compare the mean log-probability per unit; the default, the sum, favours short recordings.
      out: folder of report.json; by default <checkpoint>/eval/spoken-pairs.
    """
    pairs = read_spoken_pairs(folders)
    model = UnitModel.load(checkpoint)
    encoder = UnitEncoder.load(model.check(units))
    scores = score_recordings(model, encoder.encode_sequences, [file for pair in pairs for file in pair[:2]], per_unit)
    report = compare_spoken(pairs, scores, str(model.lm.checkpoint))
    return report.publish(out or checkpoint / "eval" / "spoken-pairs", report.checkpoint)


def score_recordings(
    model: UnitModel,
    encode: Callable[[Sequence[Path]], Sequence[np.ndarray]],
    files: Sequence[Path],
    per_unit: bool = False,
) -> list[float]:
    """Computes the log-probability of every recording's units, in nats.

    Args:
      encode: computes the units of audio files, in the form that the model gets.
      per_unit: return the mean per unit instead of the sum.
    """
    scores: list[float] = []
    for start in range(0, len(files), _FILES_AT_A_TIME):
        for nats in model.unit_nats(encode(files[start : start + _FILES_AT_A_TIME])):
            score = -float(nats.sum(dtype=np.float64))
            scores.append(score / max(1, len(nats)) if per_unit else score)
    return scores


def _read_folder(folder: Path) -> list[SpokenPair]:
    gold = folder / "gold.csv"
    if gold.is_file():
        return _from_gold(gold)
    recordings: dict[str, dict[bool, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*.wav")):
        if match := re.fullmatch(r"(?:\d+_(?=.+_))?(.+)_(correct|incorrect)", path.stem):
            recordings[match[1]][match[2] == "correct"] = path
        elif match := re.fullmatch(r"sample_(\d+)_([01])", path.stem):
            recordings[match[1]][match[2] == "0"] = path
    for item, both in recordings.items():
        if len(both) != 2:
            (path,) = both.values()
            raise DataError(f"{path} has no partner: the other recording of pair {item!r} is missing")
    return [SpokenPair(both[True], both[False], f"{folder.name}/{item}", {}) for item, both in recordings.items()]


def _from_gold(gold: Path) -> list[SpokenPair]:
    """Reads lines with filename, id, voice, correct, and frequency (sWUGGY) or type and subtype (sBLIMP)."""
    sides: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = defaultdict(lambda: {"1": [], "0": []})
    for line_number, row in csv_rows(gold):
        try:
            identity = *(row.get(name) or "" for name in ("type", "subtype")), row["id"], row["voice"]
            path = gold.parent / f"{row['filename'].removesuffix('.wav')}.wav"
            sides[identity][row["correct"].strip()].append(row | {"path": path})
        except (KeyError, AttributeError, TypeError) as error:
            raise DataError(
                f"{gold}, line {line_number}: not a line of spoken pairs ({error!r}); it needs the columns id, "
                "filename, voice and correct (1 or 0)"
            ) from error
        if not path.is_file():
            raise DataError(f"{path}, which {gold} names, does not exist: keep the recordings beside gold.csv")
    pairs = []
    for identity, side in sides.items():
        if len(side["1"]) != len(side["0"]):
            raise DataError(
                f"{gold}: id {identity[2]!r} in voice {identity[3]!r} has {len(side['1'])} recordings with correct 1 "
                f"and {len(side['0'])} with 0"
            )
        for good, bad in zip(side["1"], side["0"], strict=True):
            groups = {name: good[name] for name in ("voice", "type") if good.get(name)}
            if frequency := good.get("frequency"):
                groups["frequency"] = [name for least, name in _FREQUENCIES if int(float(frequency)) >= least][-1]
            item = "/".join((gold.parent.name, *identity[:3]))
            pairs.append(SpokenPair(good["path"], bad["path"], item, groups))
    return pairs


def _accuracy(wins: np.ndarray, items: Sequence[str]) -> Accuracy:
    """Averages over the pairs of an item, then over items; with a bootstrap interval over items if they suffice."""
    _, item = np.unique(items, return_inverse=True)
    means = np.bincount(item, wins) / np.bincount(item)
    return Accuracy(accuracy=float(means.mean()), interval=bootstrap_mean(means), pairs=len(means))
