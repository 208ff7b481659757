"""Our tokenizers as files that plain transformers opens, with the same ids and the same texts.

All tokenizers become a `tokenizer.json` of Hugging Face's `tokenizers`, except characters under CTC, for which
transformers has a class that also gives timestamps. In terms of that format:

- the ids are the same as in the model's vocabulary: 0 is `<pad>`, the CTC blank;
- NFKC and the handling of unknown characters (`data_pipelines.tokenizers.base`) are normalisers, without code;
- characters are byte pairs without merges; SentencePiece's byte pairs are merges in the order of their scores;
- a line end is an added token, so that each line is encoded by itself, as ours are.
"""

import collections
import functools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.base import CharTokenizer, SentencePieceTokenizer
from data_pipelines.tokenizers.ipa import IpaTokenizer
from data_pipelines.tokenizers.phones import WORD_END, PhoneTokenizer
from jax_speechlm.core.vocabulary import PADDING, Vocabulary
from jax_speechlm.interop.folders import ExportError

Files = dict[str, Any]
"""File names, and the JSON of each."""

PAD, BOUNDARY, MASK, SPEECH, TEXT = "<pad>", "<|endoftext|>", "<mask>", "<speech>", "<text>"
_SPACE = "\u2581"
_NEVER = -1000.0  # score of pieces that occur in no text


def ctc_files(tokenizer: Tokenizer) -> Files:
    """Returns the files of a tokenizer whose `decode` maps the likeliest ids of frames to the greedy transcript.

    Characters become a `Wav2Vec2CTCTokenizer`, which trims the text and gives the times of letters. Pieces become a
    `ParakeetTokenizer`, and so do characters that join when they are decoded (a letter and its accent) or that are the
    former's own signs.
    """
    names = [PAD, *_pieces(tokenizer)[1:]]
    config = {"pad_token": PAD, "bos_token": None, "eos_token": None, "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, CharTokenizer) and "|" not in names and not _compositions(tokenizer.characters):
        config |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "unk_token": PAD, "do_lower_case": False}
        vocab = {name.replace(" ", "|"): id_ for id_, name in enumerate(names)}
        config |= {"word_delimiter_token": "|" if "|" in vocab else None, "replace_word_delimiter_char": " "}
        return {"tokenizer_config.json": config, "vocab.json": vocab}
    config |= {"tokenizer_class": "ParakeetTokenizer"}
    return {"tokenizer_config.json": config, "tokenizer.json": _tokenizer_json(tokenizer, names, {PAD: PADDING}, None)}


def text_files(tokenizer: Tokenizer, vocabulary: Vocabulary, context: int, *, causal: bool) -> Files:
    """Returns the files of the tokenizer of a language model that was trained on rows of `context` tokens.

    The boundary precedes a text; for a model that is not causal it also follows it. It is both bos and eos.
    """
    special = {PAD: PADDING, BOUNDARY: vocabulary.boundary, MASK: vocabulary.mask}
    special |= {f"<extra_id_{n}>": vocabulary.sentinel + n for n in range(vocabulary.num_sentinels)}
    units = {}
    if vocabulary.num_units:
        units = {SPEECH: vocabulary.speech, TEXT: vocabulary.text}
        units |= {f"<unit_{n}>": vocabulary.first_unit + n for n in range(vocabulary.num_units)}
    names = [PAD, *_pieces(tokenizer)[1:], *(name for name in special if name != PAD), *units]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOUNDARY,
        "eos_token": BOUNDARY,
        "pad_token": PAD,
        "mask_token": MASK,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left" if causal else "right",
    }
    if not causal:
        config |= {"cls_token": BOUNDARY, "sep_token": BOUNDARY}
    encloses = _boundaries(vocabulary.boundary, has_end=not causal)
    return {
        "tokenizer_config.json": config,
        "tokenizer.json": _tokenizer_json(tokenizer, names, special, encloses, units),
    }


def voice_files(tokenizer: Tokenizer, boundary: int) -> Files:
    """Returns the files of the tokenizer of a voice, which puts the boundary at both ends of a text.

    Letters that the voice knows only as capitals, or only as small letters, are read as these. Phones are given as
    phones, such as "HH AH0 L OW1 / W ER1 L D" or "həlˈoʊ wˈɜːld", for a tokenizer without code has no pronunciations.
    """
    special, encloses = {PAD: PADDING, BOUNDARY: boundary}, _boundaries(boundary, has_end=True)
    if isinstance(tokenizer, PhoneTokenizer):
        names = [PAD, *(symbol.replace(" ", WORD_END) for symbol in tokenizer.symbols), BOUNDARY]
        model = {"type": "WordLevel", "vocab": {name: id_ for id_, name in enumerate(names)}}
        model |= {"unk_token": "<unk>"}  # which has no id, so that what is no phone of the voice is an error
        added = {name: (id_, True) for name, id_ in special.items()}
        described = description(added, [], [], model, encloses)
        described |= {"pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None}
    elif isinstance(tokenizer, IpaTokenizer):
        names = [PAD, *tokenizer.symbols, BOUNDARY]
        added = {name: (id_, True) for name, id_ in special.items()}
        model = _byte_pairs(names, [], byte_fallback=False)
        described = description(added, [], [{"type": "Fuse"}], model, encloses)
    else:
        names = [PAD, *_pieces(tokenizer)[1:], BOUNDARY]
        described = _tokenizer_json(tokenizer, names, special, encloses)
        normalizers = described["normalizer"]["normalizers"]
        if isinstance(tokenizer, CharTokenizer):
            normalizers[:0] = _known_case(tokenizer.characters)
        elif not tokenizer.has_bytes:
            normalizers[:0] = _known_case(tokenizer.known)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOUNDARY,
        "eos_token": BOUNDARY,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
    }
    return {"tokenizer_config.json": config, "tokenizer.json": described}


def _known_case(known: Iterable[str]) -> list[dict[str, Any]]:
    """Returns normalisers that replace letters whose case alone is unknown."""
    known = frozenset(known)
    if all(character == character.lower() for character in known):
        return [{"type": "Lowercase"}]
    others = ((character.swapcase(), character) for character in sorted(known))
    return [replacement(other, character) for other, character in others if len(other) == 1 and other not in known]


def _boundaries(boundary: int, *, has_end: bool) -> dict[str, Any]:
    """Returns the post-processor that puts the boundary before a text, and behind it where it has one there."""
    ends, text = {"SpecialToken": {"id": BOUNDARY, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [ends, text, ends] if has_end else [ends, text],
        "pair": [ends, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOUNDARY: {"id": BOUNDARY, "ids": [boundary], "tokens": [BOUNDARY]}},
    }


def _tokenizer_json(
    tokenizer: Tokenizer,
    names: Sequence[str],
    special: dict[str, int],
    post_processor: dict[str, Any] | None,
    plain: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Returns a `tokenizer.json` of the tokens `names`, in the order of ids.

    `skip_special_tokens` leaves `special` tokens out of a text, and keeps `plain` ones.
    """
    added = {name: (id_, True) for name, id_ in special.items()}
    added |= {name: (id_, False) for name, id_ in (plain or {}).items()}
    if isinstance(tokenizer, CharTokenizer):
        normalizers = _readable(tokenizer.characters)
        model = _byte_pairs(names, [], byte_fallback=False)
        decoders = [{"type": "Fuse"}, *(replacement(pair, one) for pair, one in _compositions(tokenizer.characters))]
    elif isinstance(tokenizer, SentencePieceTokenizer):
        if tokenizer.newline != PADDING:
            added["\n"] = (tokenizer.newline, False)
        normalizers, decoders = _sentencepiece_text(tokenizer)
        model = _sentencepiece_model(tokenizer, names, set(added))
    else:
        raise ExportError(f"a tokenizer of kind {tokenizer.kind!r} has no counterpart in Hugging Face's tokenizers")
    return description(added, normalizers, decoders, model, post_processor)


def description(
    added: Mapping[str, tuple[int, bool]],
    normalizers: Sequence[dict[str, Any]],
    decoders: Sequence[dict[str, Any]],
    model: dict[str, Any],
    post_processor: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a `tokenizer.json`, with the id of each added token and whether it is special."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **flags, "special": is_special}
            for name, (id_, is_special) in sorted(added.items(), key=lambda item: item[1][0])
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": post_processor,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _pieces(tokenizer: Tokenizer) -> list[str]:
    """Returns the tokens of the file in the order of ids: pieces; only SentencePiece has its sign for spaces."""
    if isinstance(tokenizer, CharTokenizer):
        return ["", *tokenizer.characters]
    pieces = list(tokenizer.pieces)
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.newline != PADDING:
        pieces[tokenizer.newline] = "\n"  # which may be a byte's
    return pieces


def _readable(known: Iterable[str]) -> list[dict[str, Any]]:
    """Returns normalisers that do the first steps of `encode`: NFKC, then removal of unknown characters.

    An unknown character leaves the known parts of its decomposition. Characters with the same parts share a rule.
    """
    known = frozenset(known)
    parts = collections.defaultdict(list)
    for code, decomposed in _decompositions().items():
        if chr(code) not in known and (left := "".join(part for part in decomposed if part in known)):
            parts[left].append(chr(code))
    return [
        {"type": "NFKC"},
        *([] if "\n" in known else [replacement("\n", " ")]),
        *(replacement(_any_of(characters), left, is_regex=True) for left, characters in sorted(parts.items())),
        replacement(_any_of(known, negated=True), "", is_regex=True),
    ]


def _sentencepiece_text(tokenizer: SentencePieceTokenizer) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns normalisers of one line of text, and decoders to text."""
    prefix = [{"type": "Prepend", "prepend": _SPACE}, replacement(" ", _SPACE)]
    back = [replacement(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if tokenizer.has_bytes:  # and keeps every space
        spaces = [replacement("\n ", "\n"), {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        return [{"type": "NFKC"}, *prefix], [*back, *spaces]
    trimmed = [replacement("^ +| +$", "", is_regex=True), replacement(" +", " ", is_regex=True)]
    spaces = [replacement("\n +", "\n", is_regex=True), {"type": "Strip", "content": " ", "start": 2**16, "stop": 0}]
    return [*_readable(tokenizer.known), *trimmed, *prefix], [*back, *spaces]


def _sentencepiece_model(tokenizer: SentencePieceTokenizer, names: Sequence[str], added: set[str]) -> dict[str, Any]:
    is_text = [name not in added and not tokenizer.is_byte(id_) for id_, name in enumerate(names)]
    if tokenizer.kind == "unigram":
        scores = [tokenizer.score(id_) if is_text[id_] else _NEVER for id_ in range(len(names))]
        vocab = [list(entry) for entry in zip(names, scores, strict=True)]
        return {"type": "Unigram", "unk_id": PADDING, "vocab": vocab, "byte_fallback": tokenizer.has_bytes}
    pieces = {name: id_ for id_, name in enumerate(names) if is_text[id_]}
    merges = []
    for piece in sorted((name for name in pieces if len(name) > 1), key=lambda name: -tokenizer.score(pieces[name])):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in halves if pair[0] in pieces and pair[1] in pieces]
        merges += sorted(known, key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
    return _byte_pairs(names, merges, byte_fallback=tokenizer.has_bytes)


def _byte_pairs(names: Sequence[str], merges: Sequence[tuple[str, str]], *, byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {name: id_ for id_, name in enumerate(names)},
        "merges": [list(pair) for pair in merges],
    }


def replacement(pattern: str, content: str, *, is_regex: bool = False) -> dict[str, Any]:
    """Returns a normaliser or decoder that replaces a text."""
    return {"type": "Replace", "pattern": {"Regex" if is_regex else "String": pattern}, "content": content}


def _any_of(characters: Iterable[str], *, negated: bool = False) -> str:
    listed = "".join(f"\\x{{{ord(character):X}}}" for character in sorted(characters))
    return f"[{'^' * negated}{listed}]"


def _compositions(alphabet: str) -> list[tuple[str, str]]:
    """Returns pairs of the alphabet's characters that NFKC in `CharTokenizer.decode` joins or swaps, and their results.

    They are to be replaced in this order. Exact for up to three characters of a letter; refused where NFKC changes
    three characters in another way than a pair at a time.
    """
    seconds = [character for character in alphabet if character in _second_parts() or _is_jamo(character)]
    pairs = {}
    for second in seconds:
        for first in alphabet:
            if (one := unicodedata.normalize("NFKC", first + second)) != first + second:
                pairs[first + second] = one
    swaps = [(two, one) for two, one in pairs.items() if len(one) == 2]
    rules = [*swaps, *swaps, *((two, one) for two, one in pairs.items() if len(one) == 1)]  # three marks need two swaps
    for third in seconds:
        for pair in {first + second for first in alphabet for second in seconds}:
            joined = pair + third
            for two, one in rules:
                joined = joined.replace(two, one)
            if joined != unicodedata.normalize("NFKC", pair + third):
                raise ExportError(
                    f"the characters {', '.join(map(repr, pair + third))} join in a way that Hugging Face's tokenizers "
                    "cannot express: train with a SentencePiece tokenizer, or with fewer accents to a letter"
                )
    return rules


@functools.cache
def _decompositions() -> dict[int, str]:
    """Returns all characters that NFKC keeps and NFD decomposes, and their parts."""
    codes = (code for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    taken = ((code, unicodedata.normalize("NFD", chr(code))) for code in codes)
    return {code: parts for code, parts in taken if parts != chr(code) and unicodedata.is_normalized("NFKC", chr(code))}


@functools.cache
def _second_parts() -> frozenset[str]:
    """Returns characters that may join the character before them, or swap with it."""
    parts = {part for decomposed in _decompositions().values() for part in decomposed[1:]}
    return frozenset(parts | {chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))})


def _is_jamo(character: str) -> bool:
    return "\u1160" <= character <= "\u11ff"
