"""The comparison with transformers where ids are not the same on both sides: every one goes through `Places`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from data_pipelines.hugging_face_tokenizer import Places
from jax_speechlm.decoding.generate import GREEDY
from jax_speechlm.interop.checking import Check, guarded
from jax_speechlm.interop.our_logits import text_logits
from jax_speechlm.interop.torch_models import distance, outputs, within, words
from jax_speechlm.language_model import LanguageModel
from jax_speechlm.trained import Trained
from jax_speechlm.vocabulary import PADDING, Vocabulary

_MOST_TOKENS, _NEW_TOKENS = 200, 20  # of a row of logits, and of a continuation


def ctc_ids(folder: Path, model: Any, run: Trained) -> Check:
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


def compare_text(folder: Path, run: Trained, model: Any, texts: Sequence[str]) -> Iterator[Check]:
    """A language model's ids, numbers and continuations."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary, causal = Vocabulary.of(run.tokenizer), run.experiment.model.causal
    rows = [[vocabulary.begin, *run.tokenizer.encode(text)] + [vocabulary.boundary] * (not causal) for text in texts]
    rows = [row[:_MOST_TOKENS] for row in rows]
    yield guarded("ids", lambda: _text_ids(tokenizer, model, run, vocabulary, texts))
    yield guarded("logits", lambda: _text_logits(model, run, vocabulary, rows))
    if causal:
        yield guarded("continuation", lambda: _continuations(model, run, vocabulary, rows))


def _text_ids(tokenizer: Any, model: Any, run: Trained, vocabulary: Vocabulary, texts: Sequence[str]) -> Check:
    ours, places, config = run.tokenizer, run.tokenizer.places, model.config
    for text in texts:
        ids = ours.encode(text)
        one, other = places.theirs[ids].tolist(), tokenizer(text, add_special_tokens=False)["input_ids"]
        if one != other:
            return Check("ids", f"{text!r} is {one} by our reading, and {other}", False)
        back = tokenizer.decode(other, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if back != (said := ours.decode(ids)):
            return Check("ids", f"{other} are {back!r}, and {said!r} by our reading", False)
    begin, end = ("bos", "eos") if run.experiment.model.causal else ("cls", "sep")
    special = {end: vocabulary.boundary, begin: vocabulary.begin}
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


def _text_logits(model: Any, run: Trained, vocabulary: Vocabulary, rows: list[list[int]]) -> Check:
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


def _continuations(model: Any, run: Trained, vocabulary: Vocabulary, rows: list[list[int]]) -> Check:
    """Greedy continuations of half of each row, in one batch filled up on the left."""
    context, places = run.experiment.data.context, run.tokenizer.places
    most = max(1, min(_MOST_TOKENS, context - _NEW_TOKENS))
    prompts = [row[: max(1, min(most, len(row) // 2))] for row in rows]
    new = min(_NEW_TOKENS, context - max(map(len, prompts)))
    ours = LanguageModel(run.experiment.model, run.tokenizer, run.params, context, run.checkpoint).continue_ids(
        prompts, GREEDY, max_tokens=new
    )
    width = max(map(len, prompts))
    tokens = np.stack([np.pad(row, (width - len(row), 0)) for row in prompts])
    never = places.theirs[~vocabulary.may_follow()[: len(places.theirs)]]
    model.generation_config = transformers.GenerationConfig(  # one given to `generate` is filled up by the folder's
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=places.end,
        pad_token_id=places.end,
        suppress_tokens=never[never >= 0].tolist(),
    )
    theirs = model.generate(
        input_ids=torch.tensor(their_ids(places, tokens)),
        attention_mask=torch.tensor((tokens != PADDING).astype(np.int64)),
    )[:, width:].tolist()
    for prompt, found, expected in zip(prompts, theirs, ours, strict=True):
        (ids,), (length,) = expected.tokens.tolist(), expected.length.tolist()
        if found[:length] != (there := places.theirs[ids[:length]].tolist()):
            return Check("continuation", f"of {prompt}: {found}, and {there} by our reading", False)
    return Check("continuation", f"{len(prompts)} prompts, up to {new} tokens each, greedy", True)


def their_ids(places: Places, tokens: np.ndarray) -> np.ndarray:
    """Their ids; padding, which is masked, may be any."""
    return np.where(tokens == PADDING, places.end, places.theirs[tokens]).astype(np.int64)
