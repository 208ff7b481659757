"""Asks "What is X?" for headwords of FOLDOC (Debian's dict-foldoc), with and without their entries in the index.

    python scripts/foldoc_questions.py
    python scripts/foldoc_questions.py --encoder runs/minilm
    python scripts/foldoc_questions.py --tts runs/voice --asr runs/whisper --questions 100

It prints how often the answer comes from the entry itself, and how often a question without its entry is refused, with
95 % intervals (Wilson). With a voice and a recognizer the same questions are spoken and recognised too, so that the
difference is the loss by both.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import soxr
import tyro

from data_pipelines.audio.wav import to_int16
from data_pipelines.sources import debian
from data_pipelines.sources.debian_texts import dictionary
from jax_speechlm.apps.question_answering.index import PassageIndex
from jax_speechlm.apps.question_answering.passages import passages_of
from jax_speechlm.apps.question_answering.reading import PassageAnswers
from jax_speechlm.evaluation.normalizers import normalizer
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.text_embed import TextEmbedder
from jax_speechlm.inference.vocode import GRIFFIN_LIM

_LEAST_WORDS = 20  # of an entry that is asked for


def measure(
    cache: Path = Path("data/packages"),
    questions: int = 300,
    thresholds: tuple[float, ...] = (0.5, 1.0),
    seed: int = 0,
    encoder: Path | None = None,
    tts: Path | None = None,
    vocoder: str = GRIFFIN_LIM,
    asr: Path | None = None,
) -> None:
    """Measures retrieval and refusal.

    Args:
      cache: folder of downloaded packages.
      questions: of either kind.
      thresholds: scores below which it does not know.
      seed: of the choice of headwords.
      encoder: a run that embeds texts, for the ranking by meaning beside that by words.
      tts: a voice, which speaks the questions; with `asr`. Headwords are then words, no abbreviations.
      vocoder: directory of the voice's vocoder's run, or griffin-lim.
      asr: a run that transcribes them.
    """
    if (tts is None) != (asr is None):
        raise ValueError("spoken questions need both a voice and a recognizer: name --tts and --asr")
    entries = [entry.text for entry in dictionary(debian.fetch("dict-foldoc", cache).root)]
    heads = [entry.partition("\n")[0].strip() for entry in entries]
    counts = Counter(map(str.lower, heads))
    rows = [
        row
        for row, (entry, head) in enumerate(zip(entries, heads, strict=True))
        if counts[head.lower()] == 1 and len(entry.split()) > _LEAST_WORDS and (tts is None or _is_words(head))
    ]
    drawn = np.random.default_rng(seed).permutation(rows)[: 2 * questions].tolist()
    indexed, left_out = drawn[:questions], drawn[questions:]
    kept = set(range(len(entries))) - set(left_out)
    embedder = None if encoder is None else TextEmbedder.load(encoder)
    parts = (part for row in sorted(kept) for part in passages_of(entries[row], str(row)))
    index = PassageIndex.build(parts, encoder=embedder)
    print(f"{len(entries):,} entries, {len(index.passages):,} passages, {questions} questions of either kind")
    asked = {"typed": {row: f"What is {heads[row]}?" for row in drawn}}
    if tts is not None:
        asked["spoken"] = _recognised(asked["typed"], Synthesizer.load(tts, vocoder), open_transcriber(asr))
        typed, spoken = (list(each.values()) for each in asked.values())
        clean = normalizer("basic")
        same = sum(clean(one) == clean(other) for one, other in zip(typed, spoken, strict=True))
        print(f"recognised without an error: {_share(same, len(typed))}")
    for threshold in thresholds:
        answers = PassageAnswers(index, threshold=threshold - 1e-9)
        for kind, questions_of in asked.items():
            found = sum(answers.ask(questions_of[row]).source == str(row) for row in indexed)
            refused = sum(answers.ask(questions_of[row]).answer is None for row in left_out)
            shares = f"from the entry {_share(found, questions)}, refused {_share(refused, questions)}"
            print(f"threshold {threshold:g}, {kind}: {shares}", flush=True)


def _is_words(head: str) -> bool:
    """Returns whether a headword can be spoken as it is written: words of lower-case letters."""
    return re.fullmatch(r"[A-Z]?[a-z]+( [A-Z]?[a-z]+)*", head) is not None


def _recognised(texts: dict[int, str], voice: Synthesizer, transcriber: Transcriber) -> dict[int, str]:
    """Returns what a recognizer makes of texts that a voice speaks."""
    rate = transcriber.experiment.sample_rate
    speech = voice.synthesize(list(texts.values()))
    spoken = (to_int16(soxr.resample(each.samples, each.sample_rate, rate)) for each in speech)
    return dict(zip(texts, (transcript.text for transcript in transcriber.transcribe(spoken)), strict=True))


def _share(count: int, total: int) -> str:
    low, high = wilson_interval(count / total, total)
    return f"{count / total:.0%} [{100 * low:.0f}, {100 * high:.0f}]"


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
