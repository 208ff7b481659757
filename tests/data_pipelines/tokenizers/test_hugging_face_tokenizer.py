"""Tokenizers of Hugging Face's read texts whole; what one cannot do is an error that names the text."""

import hashlib
import json
import time

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer, IdMap, ids_around, open_description
from data_pipelines.tokenizers.normalizer_growth import GrowthLimit

LETTERS = "abcdefghij"
TEXT = " ".join(LETTERS) * 20


def letters(**changes) -> tokenizers.Tokenizer:
    """One token a letter, and a few that no text has."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE({name: n for n, name in enumerate([*LETTERS, " ", "<pad>", "<end>"])}, [])
    )
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def opened(tokenizer: tokenizers.Tokenizer | dict) -> HuggingFaceTokenizer:
    values = tokenizer if isinstance(tokenizer, dict) else json.loads(tokenizer.to_str())
    places = IdMap(num_rows=13, padding=11, end=12)
    return HuggingFaceTokenizer(json.dumps(values), places, {"tokenizer.json": values}, {})


def pad_to(tokenizer, **settings):
    tokenizer.enable_padding(pad_id=0, pad_token="a", **settings)


SETTINGS = {
    "truncation": lambda tokenizer: tokenizer.enable_truncation(64),
    "truncation on the left": lambda tokenizer: tokenizer.enable_truncation(5, stride=2, direction="left"),
    "padding to the longest": pad_to,
    "padding to a length": lambda tokenizer: pad_to(tokenizer, length=1000),
    "padding to a multiple": lambda tokenizer: pad_to(tokenizer, pad_to_multiple_of=512, direction="left"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_truncation_and_padding_in_the_file_change_no_text(setting, tmp_path):
    tokenizer = letters()
    plain = opened(tokenizer)
    SETTINGS[setting](tokenizer)
    found = opened(tokenizer)
    assert len(plain.encode(TEXT)) == len(TEXT)
    assert found.encode_batch([TEXT, "ab"]) == plain.encode_batch([TEXT, "ab"])
    assert found.decode(found.encode(TEXT)).split() == plain.decode(plain.encode(TEXT)).split()
    found.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    again = HuggingFaceTokenizer.from_saved(saved)
    assert again.encode(TEXT) == plain.encode(TEXT)
    assert again.files["tokenizer.json"] == json.loads(tokenizer.to_str())  # an export has the file as it was


def test_stored_tokens_of_cut_texts_are_not_taken_for_those_of_whole_ones():
    """Tokens are stored under the fingerprint; the one that cut texts had is no more."""
    tokenizer = letters()
    tokenizer.enable_truncation(64)
    found = opened(tokenizer)
    assert found.fingerprint != digest(found._saved())
    assert opened(letters()).fingerprint == digest(opened(letters())._saved())


def digest(saved: dict) -> str:
    return hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:16]


def test_dropout_in_the_file_makes_no_text_random():
    merges = [("a", "b"), ("ab", "c")]
    vocab = {name: n for n, name in enumerate(["a", "b", "c", "ab", "abc", *"defghi", "<pad>", "<end>"])}
    found = opened(tokenizers.Tokenizer(models.BPE(vocab, merges, dropout=0.9)))
    assert {tuple(found.encode("abc")) for _ in range(20)} == {tuple(found.encode("abc"))}
    assert len(found.encode("abc")) == 1


STUCK = Regex("(a|aa)+$")  # takes longer than the library allows on many "a" and another letter
GIVES_UP = {
    "normalizer": normalizers.Replace(STUCK, "b"),
    "pre_tokenizer": pre_tokenizers.Split(STUCK, "isolated"),
}


@pytest.mark.parametrize("part", GIVES_UP)
def test_a_rust_panic_is_an_error_that_names_the_text(part):
    tokenizer = opened(letters(**{part: GIVES_UP[part]}))
    assert tokenizer.encode("abc")
    for read in (tokenizer.encode, lambda text: tokenizer.encode_batch(["ab", text])):
        with pytest.raises(DataError, match=r"tokenizer.json\) cannot read 'a{40}b'.*retry-limit"):
            read("a" * 40 + "b")


def test_a_rust_panic_in_a_decoder_is_an_error():
    tokenizer = tokenizers.Tokenizer(models.BPE({"a" * 40 + "b": 0, **{str(n): n for n in range(1, 13)}}, []))
    tokenizer.decoder = decoders.Replace(STUCK, "b")
    found = opened(tokenizer)
    (number,) = (n for n, theirs in enumerate(found.places.theirs) if theirs == 0)
    with pytest.raises(DataError, match=r"cannot decode.*retry-limit"):
        found.decode([number])


def test_a_text_that_the_library_refuses_is_an_error_that_names_it():
    found = opened(letters())
    with pytest.raises(DataError, match=r"cannot read '\\ud800'"):
        found.encode_batch(["ab", "\ud800"])
    unknown = tokenizers.Tokenizer(models.WordLevel({str(n): n for n in range(13)}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"cannot read 'zebra'.*UNK"):
        opened(unknown).encode("zebra")


TENFOLD = [normalizers.Replace("a", "a" * 10)] * 7
GROWS = {
    "one after the other": normalizers.Sequence(TENFOLD),
    "nested": normalizers.Sequence([normalizers.Sequence(TENFOLD[:4]), normalizers.Sequence(TENFOLD[:4])]),
    "by an expression": normalizers.Sequence([normalizers.Replace(Regex("a|b"), "a" * 10)] * 7),
    "at once": normalizers.Replace("a", "a" * 10**7),
    "out of nothing": normalizers.Sequence([normalizers.Replace(Regex("x*"), "b" * 20)] * 6),
    "before a text": normalizers.Sequence([*[normalizers.Prepend("a" * 100)] * 3, *TENFOLD]),
}


@pytest.mark.parametrize("rules", GROWS)
def test_growth_of_a_normalizer_is_bounded(rules):
    found = opened(letters(normalizer=GROWS[rules]))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot read 'aaa': its normalizer \(.*\) could make more than 10,300"):
        found.encode("aaa")
    assert time.monotonic() - start < 2
    assert found.encode_batch([]) == []


def test_growth_of_a_decoder_is_bounded():
    with pytest.raises(ValueError, match=r"its decoder can make a text 1e\+07 times as long"):
        opened(letters(decoder=decoders.Sequence([decoders.Replace("a", "a" * 10)] * 7)))


def test_normalizers_that_can_grow_but_do_not_are_read_as_they_are():
    """Many rules of which a text meets few, and such as are used."""
    rules = [normalizers.NFKC(), *(normalizers.Replace(Regex(f"[{letter}]"), "ab") for letter in "zyxwvu")]
    limit = GrowthLimit(letters(normalizer=normalizers.Sequence(rules)).to_str())
    assert limit._steps  # their product is beyond the limit, so each text is looked at
    found = opened(letters(normalizer=normalizers.Sequence(rules)))
    assert found.encode("az" * 1000) == found.encode("aab" * 1000)
    assert opened(letters(normalizer=TENFOLD[0])).encode("a" * 5000) == opened(letters()).encode("a" * 50_000)
    usual = [normalizers.NFC(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    assert not GrowthLimit(letters(normalizer=normalizers.Sequence(usual)).to_str())._steps


@pytest.mark.parametrize(
    ("single", "expected"),
    [("$A", ([], [])), ("<s> $A", ([7], [])), ("<s> $A </s>", ([7], [9])), ("<s> <s> $A", ([7, 7], []))],
)
def test_prefix_is_what_the_post_processor_adds(single, expected):
    tokenizer = letters()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 7), ("</s>", 9)])
    assert ids_around(open_description(tokenizer.to_str())) == expected
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), tokenizer.post_processor])
    assert ids_around(open_description(tokenizer.to_str())) == expected
    assert ids_around(letters()) == ([], [])


def test_prefix_of_a_post_processor_that_loses_the_text_is_refused():
    tokenizer = letters(post_processor=processors.TemplateProcessing(single="$A $A", special_tokens=[]))
    with pytest.raises(ValueError, match="repeats a text 2 times"):
        ids_around(tokenizer)
