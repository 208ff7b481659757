"""The page of an evaluation of a recognizer: error rates, and what the words of some utterances depend on."""

import html
from collections.abc import Mapping

from jax_speechlm.evaluation import wer
from jax_speechlm.evaluation.normalizers import NormalizerName, normalizer
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.inference.explain import LEGEND, STYLE, Explanation, figures


def as_html(report: EvaluationReport, title: str, explained: Mapping[int, Explanation]) -> str:
    """Returns a self-contained page.

    Args:
      explained: explanations by the place of their utterance in the report, in the order of the page.
    """
    rates = "".join(
        f"<tr><td>{name}</td><td>{html.escape(str(score))}</td><td>{score.tokens:,}</td><td>{score.utterances:,}</td></tr>"
        for name, score in (("WER", report.wer), ("CER", report.cer))
    )
    utterances = []
    for place, explanation in explained.items():
        utterance = report.utterances[place]
        text = marked(utterance.reference, utterance.hypothesis, utterance.language, report.normalizer)
        utterances.append(f"<h2>{html.escape(utterance.id)}</h2><p>{text}</p>{figures(explanation)}")
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}'
        "table{border-collapse:collapse}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left}"
        f"del{{color:#b3261e}}ins{{color:#0b57d0}}</style><h1>{title}</h1>"
        f"<p>{html.escape(report.decoder)}</p>"
        f"<table><tr><th></th><th>rate [95 %]</th><th>tokens</th><th>utterances</th></tr>{rates}</table>"
        f"<p>The {len(explained)} utterances with the most errors. <del>Words that are missing</del> and "
        f"<ins>words that are not in the reference</ins> are marked. {LEGEND}</p>{''.join(utterances)}</html>\n"
    )


def marked(reference: str, transcript: str, language: str, normalizer_name: NormalizerName) -> str:
    """Marks the differences of a normalised transcript from the normalised reference, as HTML."""
    clean = normalizer(normalizer_name)
    (alignment,) = wer.align(*([clean(text, language)] for text in (reference, transcript)), "word")
    words = []
    for operation, expected, found in alignment.edits:
        if operation == "=":
            words.append(html.escape(expected))
        else:
            words += [f"<del>{html.escape(expected)}</del>"] * bool(expected)
            words += [f"<ins>{html.escape(found)}</ins>"] * bool(found)
    return " ".join(words)
