"""Comparisons of text models, with tokenizers of this project and imported ones: ids, logits, texts and classes."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jaxtyping import Bool, Float, Int32

from jax_speechlm.core.vocabulary import PADDING, pad
from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop.hf.registry import TEXT_MODELS
from jax_speechlm.interop.hf.tokenizer_files import SPEECH, TEXT
from jax_speechlm.interop.hf.verify.subject import Subject, compiled, distance, outputs, within
from jax_speechlm.interop.hf.verify.verdict import Differs, expect_equal
from jax_speechlm.objectives.lm.causal_lm import TextModel

_MOST_TOKENS, _NEW_TOKENS = 200, 20  # of a row of logits, and of a continuation
LONG_TEXT = "a text that no setting of a tokenizer's may cut, " * 1000
"""Longer than any model's rows; compared for imported tokenizers."""


def _texts_and_ids(subject: Subject) -> list[tuple[str, list[int]]]:
    """Returns texts with the run's ids; of a model with units also one text that holds every unit."""
    pairs = [(text, subject.run.tokenizer.encode(text)) for text in subject.texts]
    vocabulary, (text, ids) = subject.vocabulary, pairs[0]
    if count := vocabulary.num_units:
        units = "".join(f"<unit_{unit}>" for unit in range(count))
        unit_ids = range(vocabulary.first_unit, vocabulary.first_unit + count)
        mixed = [*ids, vocabulary.speech, *unit_ids, vocabulary.text, *ids]
        pairs.append((text + SPEECH + units + TEXT + text, mixed))
    return pairs


def _rows(subject: Subject) -> list[list[int]]:
    """Returns the run's rows of ids of the texts, as the model reads them."""
    frame = subject.vocabulary.prompt if subject.run.experiment.model.causal else subject.vocabulary.enclose
    return [frame(ids) for _, ids in _texts_and_ids(subject)]


def ids(subject: Subject) -> str:
    """Compares the ids of texts, the ids that the tokenizer adds around them, the texts of ids, and the special ids.

    An imported tokenizer may leave out the end after a text, and, if the model is not causal, the prefix.
    """
    vocabulary, tokenizer, causal = subject.vocabulary, subject.tokenizer, subject.run.experiment.model.causal
    pairs, foreign = _texts_and_ids(subject), subject.is_foreign
    if foreign:
        pairs.append((LONG_TEXT, subject.run.tokenizer.encode(LONG_TEXT)))
    prefix, end = subject.to_folder_ids(vocabulary.prefix), subject.to_folder_ids([vocabulary.boundary])
    prefixes = [prefix, []] if foreign and not causal else [prefix]
    suffixes = [[], end] if foreign else [[] if causal else end]
    for text, text_ids in pairs:
        row, inside = tokenizer(text)["input_ids"], subject.to_folder_ids(text_ids)
        compare_text(subject, text, text_ids, inside if foreign else row)
        allowed = [before + inside + after for before, after in itertools.product(prefixes, suffixes)]
        if row not in allowed and (inside or not foreign):
            expect_equal(f"{text[:60]!r} with what the tokenizer adds around it", row, allowed[0])
    begin, stop = ("bos", "eos") if causal or not foreign else ("cls", "sep")
    special = {stop: vocabulary.boundary} | ({begin: vocabulary.begin} if vocabulary.has_prefix else {})
    places = subject.run.tokenizer.places if foreign else None
    special |= {"pad": PADDING} if places is None or places.padding is not None else {}
    special |= {"mask": vocabulary.mask} if places is None or places.mask is not None else {}
    config, folder_ids = subject.model.config, {name: subject.to_folder_ids([id_])[0] for name, id_ in special.items()}
    for name, expected in folder_ids.items():
        holders = (tokenizer,) if name == "mask" and not foreign else (tokenizer, config)
        values = [getattr(holder, f"{name}_token_id", None) for holder in holders]
        if not foreign:
            expect_equal(name, values, [expected] * len(values))
        in_folder = {id_ for value in values for id_ in (value if isinstance(value, list) else [value])} - {None}
        if in_folder and expected not in in_folder:
            expect_equal(name, values, expected)
    expect_equal("the size of the vocabulary", config.vocab_size, places.num_rows if foreign else vocabulary.size)
    listed = ", ".join(f"{name} {id_}" + f" is {special[name]} here" * foreign for name, id_ in folder_ids.items())
    return f"of {len(pairs)} texts; {listed}{_bare_note(subject)}"


def _bare_note(subject: Subject) -> str:
    is_bare = not subject.run.experiment.model.causal and not subject.tokenizer("")["input_ids"]
    return "; the tokenizer adds nothing around a text, and here it stands between two tokens" if is_bare else ""


def compare_text(subject: Subject, text: str, text_ids: list[int], row: list[int]) -> None:
    """Compares the ids of a text alone, and the text that the folder's ids `row` are decoded to."""
    alone = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    expect_equal(repr(text[:60]), alone, subject.to_folder_ids(text_ids))
    if not np.any(subject.vocabulary.is_unit(np.array(text_ids))):
        expect_equal(f"the text of {row[:20]}", decode(subject, row), subject.run.tokenizer.decode(text_ids))


def decode(subject: Subject, folder_ids: list[int]) -> str:
    """Returns the text of the folder's ids without special tokens."""
    options = {"clean_up_tokenization_spaces": False} if subject.is_foreign else {}
    return subject.tokenizer.decode(folder_ids, skip_special_tokens=True, **options)


def logits(subject: Subject) -> str:
    """Compares the outputs for every token, or for every text where the model classifies, of the texts in one batch:
    logits, or the hidden states of a bare encoder.
    """
    rows = [row[: _most_tokens(subject)] for row in _rows(subject)]
    tokens, inside, expected = _run_outputs(subject, rows)
    inputs = {"input_ids": subject.to_folder_rows(tokens), "attention_mask": inside.astype(np.int64)}
    (computed,) = outputs(subject.model, inputs)
    if computed.ndim == 2:
        return within(distance(expected, computed), f"{len(rows)} texts in a batch")
    expected, computed, of_what = expected[inside], computed[inside], f"{inside.sum()} positions"
    if not _has_vocabulary_map(subject):
        return within(distance(expected, computed), of_what)
    result = within(distance(expected[:, subject.columns], computed), of_what)
    if expected.shape == computed.shape:
        return result
    sums = [np.logaddexp.reduce(x.astype(np.float64), axis=-1) for x in (expected, computed)]
    return f"{result}; rows that are ours alone take {distance(*sums):.1e} nats at most"


def _most_tokens(subject: Subject) -> int:
    """Returns the most tokens of a row that is compared, of which the model has positions."""
    learnt = subject.run.experiment.model.positions
    return min(_MOST_TOKENS, learnt.longest) if learnt else _MOST_TOKENS


def _has_vocabulary_map(subject: Subject) -> bool:
    return subject.made.architecture in TEXT_MODELS


def _run_outputs(
    subject: Subject, rows: list[list[int]]
) -> tuple[Int32[np.ndarray, "row time"], Bool[np.ndarray, "row time"], Float[np.ndarray, "row ..."]]:
    """Returns rows as one batch of tokens, which of these are no padding, and the run's outputs.

    Where a mask exists every fifth token of a model that is not causal is hidden; a classifier gets the whole text.
    """
    run, experiment, vocabulary = subject.run, subject.run.experiment, subject.vocabulary
    has_mask = not subject.is_foreign or run.tokenizer.places.mask is not None
    if has_mask and _has_vocabulary_map(subject) and not experiment.model.causal:
        rows = [[vocabulary.mask if i % 5 == 2 else token for i, token in enumerate(row)] for row in rows]
    tokens, lengths = pad(rows, max(map(len, rows))), np.array([len(row) for row in rows])
    position = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    inside = position < lengths[:, None]
    batch = {"tokens": tokens, "segment": inside.astype(np.int32), "position": position}
    if hasattr(experiment.objective, "classifier"):
        classify = experiment.objective.classifier(experiment.model, experiment.frontend, run.tokenizer)
        computed = jax.jit(lambda params, batch: classify(params, batch, None))(run.params, batch)
        return tokens, inside, np.asarray(computed)
    is_map = _has_vocabulary_map(subject)

    def compute(module, tokens, segment, position):
        hidden = module.transformer(tokens, segment, position)
        return (module.transformer.logits(hidden) if is_map else hidden).astype(jnp.float32)

    make, params = partial(TextModel, experiment.model, vocabulary.size), {"transformer": run.params["transformer"]}
    return tokens, inside, compiled(lambda rngs: make(rngs=rngs), params, compute)(*batch.values())


def continuations(subject: Subject) -> str:
    """Compares greedy continuations: of halves of rows in one batch, padded on the left, with the folder's settings.

    An imported model, which may have no padding, continues the first halves of texts one at a time, with our settings.
    """
    run, vocabulary, tokenizer, model = subject.run, subject.vocabulary, subject.tokenizer, subject.model
    if vocabulary.num_sentinels:
        return ""
    context = run.experiment.data.context
    most = max(1, min(_MOST_TOKENS, context - _NEW_TOKENS))
    lm = LanguageModel(run.experiment.model, run.tokenizer, run.params, context, run.checkpoint, vocabulary.num_units)
    if subject.is_foreign:
        halves = {text[: len(text) // 2]: None for text in subject.texts}
        prompts = {half: lm.prompt(half) for half in halves if half and run.tokenizer.encode(half)}
        prompts = {half: ids for half, ids in prompts.items() if len(ids) <= most}
    else:
        prompts = {str(i): row[: max(1, min(most, len(row) // 2))] for i, row in enumerate(_rows(subject))}
    if not prompts:
        raise Differs(f"no half of a text has {most} tokens or fewer: name a shorter --text")
    new = min(_NEW_TOKENS, context - max(map(len, prompts.values())))
    if subject.is_foreign:
        places, end = run.tokenizer.places, subject.to_folder_ids([vocabulary.boundary])
        never = subject.to_folder_ids(np.flatnonzero(~vocabulary.may_follow()))
        model.generation_config = transformers.GenerationConfig(  # one given to `generate` is filled up by the folder's
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=[places.end, *places.other_ends],
            pad_token_id=places.end,
            suppress_tokens=[token for token in never if token >= 0],
        )
        rows = []
        for half, ids in prompts.items():
            given, expected = tokenizer(half)["input_ids"], subject.to_folder_ids(ids)
            if given not in (expected, expected + end):
                expect_equal(repr(half), given, expected)
            inputs = torch.tensor([expected])
            row = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs))[0]
            rows.append(row[len(ids) :].tolist())
    else:
        batch = tokenizer.pad({"input_ids": list(prompts.values())}, return_tensors="pt")
        rows = model.generate(**batch, max_new_tokens=new)[:, batch["input_ids"].shape[1] :].tolist()
    generated = lm.continue_ids(list(prompts.values()), GREEDY, max_tokens=new)
    for (name, prompt), row, continuation in zip(prompts.items(), rows, generated, strict=True):
        (ids,), (length,) = continuation.tokens.tolist(), continuation.length.tolist()
        filler = [] if subject.is_foreign else [PADDING] * (len(row) - length)
        expect_equal(f"the continuation of {name}, {prompt},", row, subject.to_folder_ids(ids[:length]) + filler)
    return f"{len(prompts)} prompts, up to {new} tokens each, greedy"


def pairs(subject: Subject) -> str:
    """Compares ids, token types and logits of pairs of texts."""
    run, experiment, texts = subject.run, subject.run.experiment, subject.texts
    compute = experiment.objective.classifier(experiment.model, None, run.tokenizer)
    jitted, worst, compared = jax.jit(lambda params, batch: compute(params, batch, None)), 0.0, 0
    for first, second in itertools.pairwise(filter(None, texts)):  # transformers takes an empty second text for none
        pair, inputs = run.tokenizer.encode_pair(first, second), subject.tokenizer(first, second)
        if len(pair.ids) > _most_tokens(subject):
            continue
        expect_equal(f"ids of {first[:30]!r} and {second[:30]!r}", inputs["input_ids"], subject.to_folder_ids(pair.ids))
        types = inputs.get("token_type_ids", [0] * len(pair.ids))
        expect_equal(f"types of {first[:30]!r} and {second[:30]!r}", types, pair.types)
        tokens = np.array([pair.ids], np.int32)
        batch = {"tokens": tokens, "segment": np.ones_like(tokens), "token_type": np.array([pair.types], np.int32)}
        batch["position"] = np.arange(tokens.shape[1], dtype=np.int32)[None]
        (computed,) = outputs(subject.model, {name: np.array([value]) for name, value in inputs.items()})
        worst = max(worst, distance(np.asarray(jitted(run.params, batch)), computed))
        compared += 1
    return within(worst, f"{compared} pairs")


def class_names(subject: Subject) -> str:
    """Compares the names of the classes, or of the speakers, and their order."""
    classes = subject.run.experiment.objective.classes
    names = [subject.model.config.id2label[label] for label in range(len(classes))]
    expect_equal("id2label", names, list(classes))
    return f"{len(names)}, in their order"


def pipeline(subject: Subject) -> str:
    """Compares the likeliest class of texts with the pipeline's, where the tokenizer adds the same ids as ours."""
    if _bare_note(subject):
        return ""
    rows, classes = _rows(subject), subject.run.experiment.objective.classes
    short = [(text, row) for text, row in zip(subject.texts, rows, strict=True) if len(row) < _most_tokens(subject)]
    _, _, scores = _run_outputs(subject, [row for _, row in short])
    classifier = transformers.pipeline("text-classification", model=str(subject.folder), device="cpu")
    for (text, _), expected in zip(short, scores.argmax(-1).tolist(), strict=True):
        expect_equal(f"the class of {text!r}", classifier(text)[0]["label"], classes[expected])
    return f"equal classes of {len(short)} texts"
