"""transformers on the folder of a text classifier, beside us: the same texts have to get the same ids and classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transformers

from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.vocabulary import pad
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop.hf.registry import vocabulary_of
from jax_speechlm.interop.hf.verify.ids import their_ids
from jax_speechlm.interop.hf.verify.torch_models import distance, outputs, within
from jax_speechlm.interop.hf.verify.verdict import Check, guarded

_MOST_TOKENS = 200


def compare_classes(folder: Path, run: LoadedRun, model: Any, texts: Sequence[str]) -> Iterator[Check]:
    """The checks of a `ModernBertForSequenceClassification` that transformers opened."""
    vocabulary, experiment = vocabulary_of(run), run.experiment
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [vocabulary.enclose(run.tokenizer.encode(text))[:_MOST_TOKENS] for text in texts]
    tokens, lengths = pad(rows, max(map(len, rows))), np.array([len(row) for row in rows])
    place = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    inside = place < lengths[:, None]
    is_bare = not tokenizer("")["input_ids"]
    is_foreign = isinstance(run.tokenizer, HuggingFaceTokenizer)
    theirs = their_ids(run.tokenizer.places, tokens) if is_foreign else tokens.astype(np.int64)
    _, classify, _ = experiment.objective.classifier(experiment.model, experiment.frontend, run.tokenizer)
    batch = {"tokens": tokens, "segment": inside.astype(np.int32), "position": place}
    ours = np.asarray(jax.jit(lambda params, batch: classify(params, batch, None))(run.params, batch))
    classes = experiment.objective.classes

    def ids() -> Check:
        for text, row, length in zip(texts, theirs, lengths, strict=True):
            expected, found = row[:length].tolist(), tokenizer(text)["input_ids"]
            if is_bare:  # a tokenizer that adds nothing around a text: ours does, and only what is inside compares
                expected = expected[1:] if length == _MOST_TOKENS else expected[1:-1]
            if found[: len(expected)] != expected:
                return Check("ids", f"{text!r} is {found}, not {expected}", False)
        named = tuple(model.config.id2label[number] for number in range(len(classes)))
        added = "; the tokenizer adds nothing around a text, and here it stands between two tokens" if is_bare else ""
        return Check("ids", f"of {len(texts)} texts{added}; classes {', '.join(named)}", named == classes)

    def logits() -> Check:
        found = outputs(model, {"input_ids": theirs, "attention_mask": inside.astype(np.int64)})
        return within("logits", distance(ours, found), f"{len(rows)} texts in a batch")

    def pipeline() -> Check:
        classifier = transformers.pipeline("text-classification", model=str(folder), device="cpu")
        for text, scores, length in zip(texts, ours, lengths, strict=True):
            if length == _MOST_TOKENS:
                continue
            if (found := classifier(text)[0]["label"]) != (expected := classes[int(scores.argmax())]):
                return Check("pipeline", f"{text!r} is {found}, not {expected}", False)
        return Check("pipeline", f"equal classes of {len(texts)} texts", True)

    yield guarded("ids", ids)
    yield guarded("logits", logits)
    if not is_bare:
        yield guarded("pipeline", pipeline)
