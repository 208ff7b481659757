"""Weights of language models, chosen on a dev split."""

from collections.abc import Callable, Mapping, Sequence

from jax_speechlm.decoder import Decoder, Posteriors
from jax_speechlm.evaluation import wer
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer, written_without_spaces

_ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)
_BETAS = (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ROUNDS = 3


def tune_weights(
    decoder: Decoder, posteriors: Mapping[int, Posteriors], references: Sequence[str], normalizer_name: NormalizerName
) -> Decoder:
    """The decoder with the weights that make fewest errors.

    One weight at a time takes the best of a few values, until a round over all changes none: first those of the search,
    then those that rank its transcripts anew. Posteriors are computed once, by the caller. Errors are words, or
    characters where the references are written without spaces; of equal ones the fewer characters decide, then the
    value nearer to where the search began.

    Args:
      decoder: its weights are where the search begins; those that it has no use for are left alone.
      posteriors: log probabilities of utterances, by their place among the references.
      references: transcripts.
      normalizer_name: what both sides go through.
    """
    clean = normalizer(normalizer_name)
    cleaned = [clean(references[row]) for row in posteriors]
    by_character = written_without_spaces(cleaned)
    if by_character:  # as the report counts
        cleaned = [text.replace(" ", "") for text in cleaned]
    heard = list(posteriors.values())

    def errors(hypotheses: Sequence[str]) -> tuple[int, int]:
        spelled = [clean(text) for text in hypotheses]
        if by_character:
            spelled = [text.replace(" ", "") for text in spelled]
        words, characters = (
            int(wer.count(wer.align(cleaned, spelled, unit))[:, :3].sum()) for unit in ("word", "character")
        )
        return (characters, words) if by_character else (words, characters)

    if decoder.decoding.lm:
        decoder = _descend(decoder, ("alpha", "beta"), lambda trial: errors(trial.decode(heard)))
    if decoder.decoding.rescore:
        found = decoder.search(heard)
        decoder = _descend(decoder, ("rescore_alpha", "rescore_beta"), lambda trial: errors(trial.choose(found)))
    return decoder


def _descend(decoder: Decoder, names: tuple[str, str], cost: Callable[[Decoder], tuple[int, int]]) -> Decoder:
    """`names` are a language model's weight and the bonus for its units."""
    known: dict[tuple[float, ...], tuple[int, int]] = {}

    def cost_of(weights: tuple[float, ...]) -> tuple[int, int]:
        if weights not in known:
            known[weights] = cost(decoder.with_weights(**dict(zip(names, weights, strict=True))))
        return known[weights]

    best = tuple(getattr(decoder.decoding, name) for name in names)
    for _ in range(_ROUNDS):
        before = best
        for place, values in enumerate((_ALPHAS, _BETAS)):
            trials = [(*best[:place], value, *best[place + 1 :]) for value in values]
            best = min([best, *trials], key=lambda weights: (cost_of(weights), abs(weights[place] - best[place])))
        if best == before:
            break
    return decoder.with_weights(**dict(zip(names, best, strict=True)))
