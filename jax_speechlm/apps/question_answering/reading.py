"""Answers from passages: a reader's span, or the best sentence."""

from data_pipelines.text.cleaning import split_sentences
from jax_speechlm.apps.question_answering.index import PassageIndex
from jax_speechlm.apps.question_answering.reply import UNKNOWN, Reply
from jax_speechlm.inference.text_tokens import Reader

_READ = 5  # passages that a reader reads
_LEAST_SIMILAR, _LEAST_PROBABLE = 0.5, 0.3


class PassageAnswers:
    """Answers questions from an index of passages.

    With a reader, a model of `question_answering`, the answer is the likeliest span of the five best passages, and its
    probability the confidence. Without, it is the best passage's sentence that has most of the question; the confidence
    is how much of the question the passage has.
    """

    def __init__(self, index: PassageIndex, reader: Reader | None = None, threshold: float | None = None):
        """
        Args:
          threshold: confidence below which there is no answer; None is 0.3 with a reader and 0.5 without.
        """
        self.index, self.reader = index, reader
        usual = _LEAST_SIMILAR if reader is None else _LEAST_PROBABLE
        self.threshold = usual if threshold is None else threshold
        ranking = "words" if index.encoder is None else "words and meaning"
        shown = "sentences" if reader is None else "a reader"
        self.method = f"{len(index.passages):,} passages by {ranking}, {shown}, threshold {self.threshold:g}"

    def ask(self, question: str) -> Reply:
        """Answers a question from a passage, which the reply names."""
        found = self._read(question) if self.reader is not None else self._best_sentence(question)
        if found is None or found.confidence < self.threshold:
            return Reply(None, UNKNOWN, 0.0 if found is None else found.confidence)
        return found

    def _best_sentence(self, question: str) -> Reply | None:
        for number in self.index.search(question, 1):
            text, source = self.index.passages[number]
            sentences = split_sentences(text)
            likeness = self.index.similarities(question, [text, *sentences])
            sentence = sentences[int(likeness[1:].argmax())]
            return Reply(sentence, sentence, float(likeness[0]), source, text)
        return None

    def _read(self, question: str) -> Reply | None:
        passages = [self.index.passages[number] for number in self.index.search(question, _READ)]
        spans = zip(self.reader.answer(question, [each.text for each in passages]), passages, strict=True)
        replies = [
            Reply(span.text, span.text, span.probability, passage.source, passage.text)
            for span, passage in spans
            if span is not None and span.text.strip()
        ]
        return max(replies, key=lambda reply: reply.confidence, default=None)
