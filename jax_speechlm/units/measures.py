"""Statistics of speech units: how many are used, their agreement with labels, and their leakage of the speaker.

All are computed from counts: `counts_KxC` is the number of frames with unit k and class c.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from jax_speechlm.core.config import Config


class Usage(Config):
    """Distribution of the units of some utterances.

    Attributes:
      frames: number of frames.
      used: share of the units that occur.
      entropy: of their frequencies, in nats.
      perplexity: exp(entropy): the number of equally frequent units with this entropy.
      frames_per_second: of speech.
      units_per_second: the same after merging runs of equal units.
      run_frames: mean length of such a run.
    """

    frames: int
    used: float
    entropy: float
    perplexity: float
    frames_per_second: float
    units_per_second: float
    run_frames: float


class Bitrate(Config):
    """Rate of speech as units, if nothing but the units is transmitted.

    Attributes:
      num_units: different units that there are.
      units_per_second: of speech.
      entropy: of the units' frequencies, in bits: what a code for single units needs at least for each.
    """

    num_units: int
    units_per_second: float
    entropy: float

    @property
    def bits_per_second(self) -> float:
        """With the same number of bits for each unit."""
        return self.units_per_second * float(np.log2(self.num_units))

    @property
    def entropy_per_second(self) -> float:
        """With fewer bits for frequent units."""
        return self.units_per_second * self.entropy


class Agreement(Config):
    """Agreement of units and labels, frame by frame (Hsu et al. 2021, section IV-D).

    Attributes:
      classes: labels that occur.
      frames: that have a label.
      label_purity: share of the frames whose label is the commonest of their unit ("phone purity" there).
      unit_purity: share of the frames whose unit is the commonest of their label ("cluster purity").
      majority: `label_purity` of a single unit.
      information: mutual information of unit and label, nats.
      pnmi: `information` as a share of the labels' entropy.
    """

    classes: int
    frames: int
    label_purity: float
    unit_purity: float
    majority: float
    information: float
    pnmi: float


class Leakage(Config):
    """Accuracy of identifying the speaker from the units of one utterance.

    Attributes:
      speakers: with enough utterances to learn and to test on.
      utterances: tested.
      accuracy: share of the tested utterances whose speaker is identified.
      majority: accuracy of always predicting the commonest speaker.
    """

    speakers: int
    utterances: int
    accuracy: float
    majority: float


def entropy(counts: Int[np.ndarray, "..."] | Float[np.ndarray, "..."]) -> float:
    """Returns the entropy of the distribution given by counts, in nats."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log(share)).sum())


def usage(codes: list[Int[np.ndarray, "..."]], num_units: int, frame_seconds: float) -> Usage:
    """Computes the statistics of the units of utterances, each of at least one frame."""
    counts = np.bincount(np.concatenate(codes), minlength=num_units)
    frames, runs = int(counts.sum()), sum(1 + int((np.diff(row) != 0).sum()) for row in codes)
    return Usage(
        frames=frames,
        used=float((counts > 0).mean()),
        entropy=entropy(counts),
        perplexity=float(np.exp(entropy(counts))),
        frames_per_second=1 / frame_seconds,
        units_per_second=runs / (frames * frame_seconds),
        run_frames=frames / runs,
    )


def bitrate(sequences: Sequence[Integer[np.ndarray, "..."]], num_units: int, seconds: float) -> Bitrate:
    """Computes the rate of utterances of `seconds` in all, from the units that language models get of them."""
    counts = np.bincount(np.concatenate(sequences), minlength=num_units)
    return Bitrate(
        num_units=num_units,
        units_per_second=int(counts.sum()) / max(seconds, 1e-9),
        entropy=entropy(counts) / float(np.log(2)),
    )


def agreement(counts_KxC: Int[np.ndarray, "units classes"]) -> Agreement:
    """Computes purities and mutual information of units and labels."""
    total, by_label = int(counts_KxC.sum()), counts_KxC.sum(0)
    information = max(entropy(counts_KxC.sum(1)) + entropy(by_label) - entropy(counts_KxC), 0.0)
    return Agreement(
        classes=int((by_label > 0).sum()),
        frames=total,
        label_purity=float(counts_KxC.max(1).sum() / total),
        unit_purity=float(counts_KxC.max(0).sum() / total),
        majority=float(by_label.max() / total),
        information=information,
        pnmi=information / entropy(by_label) if entropy(by_label) > 0 else 0.0,
    )


def speaker_leakage(
    histograms_NxK: Int[np.ndarray, "utterances units"], speakers_N: Int[np.ndarray, " utterances"], seed: int = 0
) -> Leakage | None:
    """Identifies speakers by multinomial naive Bayes on the unit counts of an utterance (McCallum and Nigam 1998).

    A random half of each speaker's utterances gives the unit frequencies (one added to each count); the others are
    tested, with equal prior probabilities. The order of units is not used, so a sequence model may find more.

    Returns:
      None if fewer than two speakers have two utterances each.
    """
    enough = np.isin(speakers_N, np.flatnonzero(np.bincount(speakers_N) >= 2))
    histograms, speakers = histograms_NxK[enough], np.unique(speakers_N[enough], return_inverse=True)[1]
    count = int(speakers.max(initial=-1)) + 1
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(speakers))
    order = order[np.argsort(speakers[order], kind="stable")]  # by speaker, at random within each
    rank = np.arange(len(order)) - np.searchsorted(speakers[order], speakers[order])
    learn, test = order[rank % 2 == 0], order[rank % 2 == 1]
    frequency = np.ones((count, histograms.shape[1]))
    np.add.at(frequency, speakers[learn], histograms[learn])
    log_share = np.log(frequency / frequency.sum(1, keepdims=True))
    guess, actual = (histograms[test] @ log_share.T).argmax(1), speakers[test]
    return Leakage(
        speakers=count,
        utterances=len(test),
        accuracy=float((guess == actual).mean()),
        majority=float(np.bincount(actual).max() / len(test)),
    )
