"""The comparison with transformers where ids are not the same on both sides: every one goes through `IdMap`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from data_pipelines.tokenizers.hugging_face import IdMap
from jax_speechlm.core.vocabulary import PADDING, Vocabulary
from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop.hf.verify.our_logits import text_logits
from jax_speechlm.interop.hf.verify.torch_models import distance, outputs, within, words
from jax_speechlm.interop.hf.verify.verdict import Check, guarded

_MOST_TOKENS, _NEW_TOKENS = 200, 20  # of a row of logits, and of a continuation
LONG_TEXT = "a text that no setting of a tokenizer's may cut, " * 1000
"""Longer than any model's rows, to compare ids on."""


def ctc_ids(folder: Path, model: Any, run: LoadedRun) -> Check:
    """The blank, what each id spells, and what a text of all letters is, on both sides."""
    ours, places = run.tokenizer, run.tokenizer.places
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    blanks = {tokenizer.pad_token_id, model.config.pad_token_id, int(places.theirs[PADDING])}
    sizes = {model.config.vocab_size, ours.vocab_size, places.num_rows}
    if len(blanks) > 1 or len(sizes) > 1:
        return Check("ids", f"blanks {blanks}, vocabularies {sizes}", False)
    for number, theirs in enumerate(places.theirs.tolist()):
        one, other = ours.decode([number]), without_special(tokenizer, tokenizer.decode([theirs]))
        if words(one) != words(other):
            return Check("ids", f"{theirs} is {other!r}, and {number} here {one!r}", False)
    text = " ".join(piece.strip("\u2581") for piece in ours.pieces if len(piece.strip("\u2581")) == 1)
    one, other = places.theirs[ours.encode(text)].tolist(), tokenizer(text, add_special_tokens=False)["input_ids"]
    if one != other:
        return Check("ids", f"{text!r} is {one} by our reading, and {other}", False)
    return Check("ids", f"{ours.vocab_size}; the blank, {blanks.pop()} there, is {PADDING} here", True)


def without_special(tokenizer: Any, text: str) -> str:
    """A transcript of theirs as ours is: what a recognizer spells of special tokens is no text.

    `skip_special_tokens` would leave out the spaces too, as Wav2Vec2CTCTokenizer counts them among these.
    """
    for name in ("bos", "eos", "unk"):
        if token := getattr(tokenizer, f"{name}_token", None):
            text = text.replace(token, "")
    return text


def compare_text(folder: Path, run: LoadedRun, model: Any, texts: Sequence[str]) -> Iterator[Check]:
    """A language model's ids, numbers and continuations."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary, causal = Vocabulary.of(run.tokenizer), run.experiment.model.causal
    ids = guarded("ids", lambda: _text_ids(tokenizer, model, run, vocabulary, [*texts, LONG_TEXT]))
    yield ids
    if not ids.passed:
        return
    told = [run.tokenizer.encode(text) for text in texts]
    rows = [(vocabulary.prompt(row) if causal else vocabulary.enclose(row))[:_MOST_TOKENS] for row in told]
    yield guarded("logits", lambda: _text_logits(model, run, vocabulary, rows))
    if causal:
        yield guarded("continuation", lambda: _continuations(tokenizer, model, run, texts))


def _text_ids(tokenizer: Any, model: Any, run: LoadedRun, vocabulary: Vocabulary, texts: Sequence[str]) -> Check:
    ours, places, config = run.tokenizer, run.tokenizer.places, model.config
    for text in texts:
        ids = ours.encode(text)
        one, other = places.theirs[ids].tolist(), tokenizer(text, add_special_tokens=False)["input_ids"]
        if one != other:
            return Check("ids", f"{text[:60]!r} is {_shown(one)} by our reading, and {_shown(other)}", False)
        expected = [places.theirs[each].tolist() for each in (vocabulary.prefix, [vocabulary.boundary])]
        around = _around(tokenizer, text) if ids else expected
        if around[0] != expected[0] and (around[0] or run.experiment.model.causal):
            return Check("ids", f"before {text!r} there is {around[0]}, and {expected[0]} by our reading", False)
        if around[1] not in ([], expected[1]):
            return Check("ids", f"behind {text!r} there is {around[1]}, and {expected[1]} by our reading", False)
        back = tokenizer.decode(other, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if back != (said := ours.decode(ids)):
            return Check("ids", f"{other} are {back!r}, and {said!r} by our reading", False)
    begin, end = ("bos", "eos") if run.experiment.model.causal else ("cls", "sep")
    special = {end: vocabulary.boundary} | ({begin: vocabulary.begin} if vocabulary.has_prefix else {})
    special |= {"pad": PADDING} if places.padding is not None else {}
    special |= {"mask": vocabulary.mask} if places.mask is not None else {}
    for name, number in special.items():
        said = [getattr(each, f"{name}_token_id", None) for each in (config, tokenizer)]
        said = [number for each in said if each is not None for number in (each if isinstance(each, list) else [each])]
        if said and int(places.theirs[number]) not in said:
            return Check("ids", f"{name} is {said} there, and {places.theirs[number]} by our reading", False)
    if config.vocab_size != places.num_rows:
        return Check("ids", f"vocabularies {config.vocab_size} and {places.num_rows}", False)
    named = ", ".join(f"{name} {places.theirs[number]} is {number} here" for name, number in special.items())
    return Check("ids", f"of {len(texts)} texts; {named}", True)


def _text_logits(model: Any, run: LoadedRun, vocabulary: Vocabulary, rows: list[list[int]]) -> Check:
    places = run.tokenizer.places
    tokens, inside, every = text_logits(run, vocabulary, rows, hides=places.mask is not None)
    ours = every[inside]
    inputs = {"input_ids": their_ids(places, tokens), "attention_mask": inside.astype(np.int64)}
    theirs = outputs(model, inputs)[inside]
    worst = distance(ours[:, places.ours], theirs)
    more = distance(*(np.logaddexp.reduce(each.astype(np.float64), axis=-1) for each in (ours, theirs)))
    check = within("logits", worst, f"{inside.sum()} positions")
    if len(places.theirs) == vocabulary.size and (places.theirs >= 0).all():
        return check
    return Check("logits", f"{check.result}; rows that are ours alone take {more:.1e} nats at most", check.passed)


def _around(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """What a tokenizer of theirs puts before a text that has tokens and behind it, as a call without options does."""
    inside, whole = (tokenizer(text, add_special_tokens=adds)["input_ids"] for adds in (False, True))
    count = len(whole) - len(inside)
    before = next((n for n in range(count + 1) if whole[n : n + len(inside)] == inside), count)
    return whole[:before], whole[before + len(inside) :]


def _shown(ids: list[int]) -> str:
    return f"{ids[:20]}" if len(ids) <= 20 else f"{len(ids)} ids from {ids[:20]}"


def _continuations(tokenizer: Any, model: Any, run: LoadedRun, texts: Sequence[str]) -> Check:
    """Greedy continuations of the first half of each text, from the text on by each side."""
    context, places, vocabulary = run.experiment.data.context, run.tokenizer.places, Vocabulary.of(run.tokenizer)
    lm = LanguageModel(run.experiment.model, run.tokenizer, run.params, context, run.checkpoint)
    most = max(1, min(_MOST_TOKENS, context - _NEW_TOKENS))
    halves = {half: lm.prompt(half) for text in texts if (half := text[: len(text) // 2])}
    prompts = {half: ids for half, ids in halves.items() if len(ids) <= most and run.tokenizer.encode(half)}
    if not prompts:
        return Check("continuation", f"no half of a text has {most} tokens or fewer: name a shorter --text", False)
    new = min(_NEW_TOKENS, context - max(map(len, prompts.values())))
    never = places.theirs[~vocabulary.may_follow()[: len(places.theirs)]]
    model.generation_config = transformers.GenerationConfig(  # one given to `generate` is filled up by the folder's
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=[places.end, *places.other_ends],
        pad_token_id=places.end,
        suppress_tokens=never[never >= 0].tolist(),
    )
    ours = lm.continue_ids(list(prompts.values()), GREEDY, max_tokens=new)
    for prompt, expected in zip(prompts, ours, strict=True):
        given = tokenizer(prompt)["input_ids"]
        _, behind = _around(tokenizer, prompt)
        given = torch.tensor([given[: len(given) - len(behind)]])
        found = model.generate(input_ids=given, attention_mask=torch.ones_like(given))[0, given.shape[1] :].tolist()
        (ids,), (length,) = expected.tokens.tolist(), expected.length.tolist()
        if found != (there := places.theirs[ids[:length]].tolist()):
            return Check("continuation", f"of {prompt!r}: {found}, and {there} by our reading", False)
    return Check("continuation", f"{len(prompts)} prompts, up to {new} tokens each, greedy", True)


def their_ids(places: IdMap, tokens: np.ndarray) -> np.ndarray:
    """Their ids; padding, which is masked, may be any."""
    return np.where(tokens == PADDING, places.end, places.theirs[tokens]).astype(np.int64)
