"""Asks "What is X?" for headwords of FOLDOC (Debian's dict-foldoc), with and without their entries in the index.

    python scripts/foldoc_questions.py

It prints how often the answer comes from the entry itself, and how often a question without its entry is refused, with
95 % intervals (Wilson), by words alone.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import tyro

from data_pipelines.sources import debian
from data_pipelines.sources.debian_texts import dictionary
from jax_speechlm.apps.question_answering.index import PassageIndex
from jax_speechlm.apps.question_answering.passages import passages_of
from jax_speechlm.apps.question_answering.reading import PassageAnswers
from jax_speechlm.evaluation.resampling import wilson_interval

_LEAST_WORDS = 20  # of an entry that is asked for


def measure(
    cache: Path = Path("data/packages"), questions: int = 300, thresholds: tuple[float, ...] = (0.5, 1.0), seed: int = 0
) -> None:
    """Measures retrieval and refusal.

    Args:
      cache: folder of downloaded packages.
      questions: of either kind.
      thresholds: scores below which it does not know.
      seed: of the choice of headwords.
    """
    entries = [entry.text for entry in dictionary(debian.fetch("dict-foldoc", cache).root)]
    heads = [entry.partition("\n")[0].strip() for entry in entries]
    counts = Counter(map(str.lower, heads))
    rows = [
        row
        for row, (entry, head) in enumerate(zip(entries, heads, strict=True))
        if counts[head.lower()] == 1 and len(entry.split()) > _LEAST_WORDS
    ]
    drawn = np.random.default_rng(seed).permutation(rows)[: 2 * questions].tolist()
    indexed, left_out = drawn[:questions], drawn[questions:]
    kept = set(range(len(entries))) - set(left_out)
    index = PassageIndex.build(part for row in sorted(kept) for part in passages_of(entries[row], str(row)))
    print(f"{len(entries):,} entries, {len(index.passages):,} passages, {questions} questions of either kind")
    for threshold in thresholds:
        answers = PassageAnswers(index, threshold=threshold - 1e-9)
        found = sum(answers.ask(f"What is {heads[row]}?").source == str(row) for row in indexed)
        refused = sum(answers.ask(f"What is {heads[row]}?").answer is None for row in left_out)
        print(
            f"threshold {threshold:g}: from the entry {_share(found, questions)}, refused {_share(refused, questions)}"
        )


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count / total, total)
    return f"{count / total:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
