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
from rich.console import Console
from tyro.conf import Positional

from data_pipelines.batching.unit_documents import deduplicate
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import csv_rows
from jax_speechlm.evaluation.language import save_report
from jax_speechlm.evaluation.minimal_pairs import Accuracy, PairReport
from jax_speechlm.evaluation.wer import MIN_UTTERANCES
from jax_speechlm.inference.lm.units import UnitModel
from jax_speechlm.inference.unit_encoder import UnitEncoder

RESAMPLES, SEED = 1000, 0
_FREQUENCIES = ((0, "not in LibriSpeech"), (1, "1 to 4"), (5, "5 to 19"), (20, "20 to 99"), (100, "100 and more"))
_FILES_AT_A_TIME = 256


class SpokenPair(NamedTuple):
    """A correct and an incorrect recording.

    Attributes:
      good, bad: audio files.
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
        found = _read_folder(folder)
        if not found:
            for each in sorted(path for path in folder.iterdir() if path.is_dir()):
                found += [pair._replace(groups=pair.groups | {"folder": each.name}) for pair in _read_folder(each)]
        if not found:
            raise DataError(
                f"{folder} holds no spoken pairs: it needs a gold.csv (sWUGGY, sBLIMP), *_correct.wav and "
                "*_incorrect.wav (StoryCloze), or sample_<n>_0.wav and sample_<n>_1.wav (SALMon)"
            )
        pairs += [pair._replace(item=f"{folder}/{pair.item}") for pair in found]
    return pairs


def compare_spoken(pairs: Sequence[SpokenPair], scores: Sequence[float], checkpoint: str) -> PairReport:
    """Computes the share of the pairs in which the correct recording is more probable.

    A tie counts half; the pairs of an item count as one.

    Args:
      scores: log-probabilities of the good and the bad recording of every pair, alternating.
      checkpoint: name of the model, for the report.
    """
    good, bad = np.asarray(scores, np.float64).reshape(-1, 2).T
    wins = np.where(good == bad, 0.5, good > bad)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, pair in enumerate(pairs):
        for name, value in pair.groups.items():
            groups[f"{name} {value}"].append(row)

    def of(rows):
        return _accuracy(wins[rows], [pairs[row].item for row in rows])

    by_group = {name: of(rows) for name, rows in sorted(groups.items()) if len(rows) < len(pairs)}
    return PairReport(checkpoint=checkpoint, total=of(list(range(len(pairs)))), groups=by_group)


def score_spoken_pairs(
    checkpoint: Positional[Path],
    folders: Positional[tuple[Path, ...]],
    units: Path | None = None,
    per_unit: bool = False,
    out: Path | None = None,
) -> PairReport:
    """Measures how often a unit language model assigns the correct recording of a pair the higher probability.

    Args:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders.
      folders: folders of sWUGGY, sBLIMP (with gold.csv), spoken StoryCloze or SALMon.
      units: folder of the k-means the model was trained on; by default as in the run.
      per_unit: compare the mean log-probability per unit; the default, the sum, favours short recordings.
      out: folder of report.json; by default <checkpoint>/eval/spoken-pairs.
    """
    pairs = read_spoken_pairs(folders)
    model = UnitModel.load(checkpoint)
    encoder = UnitEncoder.load(model.check(units))
    scores = score_recordings(model, encoder.encode_files, [file for pair in pairs for file in pair[:2]], per_unit)
    report = compare_spoken(pairs, scores, str(model.lm.checkpoint))
    save_report(report, out := out or checkpoint / "eval" / "spoken-pairs")
    console = Console(highlight=False)
    console.print(report.table())
    console.print(f"{report.checkpoint}; {out / 'report.json'}", soft_wrap=True)
    return report


def score_recordings(
    model: UnitModel,
    encode: Callable[[Sequence[Path]], Sequence[np.ndarray]],
    files: Sequence[Path],
    per_unit: bool = False,
) -> list[float]:
    """Computes the log-probability of every recording's units, in nats.

    Args:
      encode: computes the unit ids per frame of audio files.
      per_unit: return the mean per unit instead of the sum.
    """
    scores: list[float] = []
    for start in range(0, len(files), _FILES_AT_A_TIME):
        said = [deduplicate(codes)[0] for codes in encode(files[start : start + _FILES_AT_A_TIME])]
        for nats in model.unit_nats(said):
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
    for number, row in csv_rows(gold):
        try:
            identity = *(row.get(name) or "" for name in ("type", "subtype")), row["id"], row["voice"]
            sides[identity][row["correct"].strip()].append(row | {"path": _recording(gold, row["filename"])})
        except (KeyError, AttributeError, TypeError) as error:
            raise DataError(
                f"{gold}, line {number}: not a line of spoken pairs ({error!r}); it needs the columns id, "
                "filename, voice and correct (1 or 0)"
            ) from error
    pairs = []
    for identity, side in sides.items():
        if len(side["1"]) != len(side["0"]):
            raise DataError(
                f"{gold}: id {identity[2]!r} in voice {identity[3]!r} has {len(side['1'])} recordings with correct 1 "
                f"and {len(side['0'])} with 0"
            )
        for good, bad in zip(side["1"], side["0"], strict=True):
            item = "/".join((gold.parent.name, *identity[:3]))
            pairs.append(SpokenPair(good["path"], bad["path"], item, _groups(good)))
    return pairs


def _recording(gold: Path, name: str) -> Path:
    path = gold.parent / (name if name.endswith(".wav") else f"{name}.wav")
    if not path.is_file():
        raise DataError(f"{path}, which {gold} names, does not exist: keep the recordings beside gold.csv")
    return path


def _groups(row: dict[str, str]) -> dict[str, str]:
    groups = {name: row[name] for name in ("voice", "type") if row.get(name)}
    if frequency := row.get("frequency"):
        groups["frequency"] = [name for least, name in _FREQUENCIES if int(float(frequency)) >= least][-1]
    return groups


def _accuracy(wins: np.ndarray, items: Sequence[str]) -> Accuracy:
    """Averages over the pairs of an item, then over items; with a bootstrap interval over items if they suffice."""
    _, item = np.unique(items, return_inverse=True)
    means = np.bincount(item, wins) / np.bincount(item)
    if len(means) < MIN_UTTERANCES:
        return Accuracy(accuracy=float(means.mean()), interval=None, pairs=len(means))
    drawn = np.random.default_rng(SEED).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(1), (0.025, 0.975))
    return Accuracy(accuracy=float(means.mean()), interval=(float(low), float(high)), pairs=len(means))
