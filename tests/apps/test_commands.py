"""Commands of tones, by the grammar and a recognizer that knows them."""

import itertools
import json

import numpy as np
import pytest
import soundfile

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.apps.commands.grammar import Grammar
from jax_speechlm.apps.commands.run import CommandRecognizer, token_automaton
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.decoding.ctc.alignment import force_align
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.segmentation import in_batches
from tests.apps.test_command_grammars import sentences
from tests.trained_tones import speak, trained_run

GRAMMAR = """\
language: en
intents:
  go:
    data: [{sentences: ["ab {place} [{place:second}]"]}]
  stop:
    data: [{sentences: ["(cab;ba)"]}]
lists:
  place: {values: [ac, bac, {in: "ca[b]", out: home}]}
skip_words: [bcb]
"""
SAID = {
    "ab bac": ("go", {"place": "bac"}),
    "ab ca ac": ("go", {"place": "home", "second": "ac"}),
    "ba cab": ("stop", {}),
    "bcb ab bcb cab": ("go", {"place": "home"}),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("grammar") / "tones.yaml"
    path.write_text(GRAMMAR)
    return path


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(trained_run())


def constrained(path, recognizer):
    return CommandRecognizer(Grammar.load(path), recognizer)


def test_commands_are_recognised_and_other_speech_is_unlikely(path, recognizer):
    commands = constrained(path, recognizer)
    assert commands.method == "constrained"
    recordings = [speak(text, seed)[0] for seed, text in enumerate(SAID)]
    found = commands.recognize([np.zeros(16_000, np.int16), *recordings, speak("cbcbc bcbcb cbc", 9)[0]])
    assert [each[:2] for each in found[1:-1]] == list(SAID.values())
    assert [each.text for each in found[1:-1]] == list(SAID)
    assert min(each.confidence for each in found[1:-1]) > 0.9
    assert found[0] == (None, {}, 0.0, "")  # silence
    assert commands.recognize([np.zeros(16_000, np.int16)]) == found[:1]
    assert found[-1].intent is not None
    assert found[-1].confidence < 0.2
    assert found[-1].above(0.3).intent is None
    for one, together in zip(recordings, found[1:-1], strict=True):
        (alone,) = commands.recognize([one])
        assert alone[:2] == together[:2]
        assert alone.confidence == pytest.approx(together.confidence, rel=1e-4)


def test_the_nearest_sentence_is_found_in_what_is_recognised(path, recognizer):
    commands = CommandRecognizer(Grammar.load(path), recognizer, "nearest")
    (found,) = commands.recognize([speak("ab bacb", 1)[0]])
    assert found == ("go", {"place": "bac"}, pytest.approx(1 - 1 / 11), "ab bacb")


@pytest.mark.parametrize("seed", range(3))
def test_nothing_in_the_grammar_is_more_probable(path, recognizer, seed):
    """Of all sentences, aligned one by one to noise and to a sentence outside the grammar."""
    grammar = Grammar.load(path)
    automaton = token_automaton(grammar, recognizer.tokenizer)
    rng = np.random.default_rng(seed)
    samples = speak("cb abc bac", seed)[0] if seed else rng.normal(0, 4000, 24_000).astype(np.int16)
    (accepted,) = recognizer.within(in_batches([samples]), automaton).values()
    (log_probs,) = recognizer.posteriors(in_batches([samples])).values()
    scores = {}
    texts = list(sentences(grammar.words))
    texts += [f"bcb {text}" for text in texts] + [f"{text} bcb" for text in texts]
    for text, after in itertools.product(texts, (" ", "")):
        (spans,) = force_align([log_probs], [recognizer.tokenizer.encode(text) + recognizer.tokenizer.encode(after)])
        if spans is not None:
            used = {frame for span in spans for frame in range(span.start, span.end)}
            blanks = sum(log_probs[frame, 0] for frame in range(len(log_probs)) if frame not in used)
            scores[text] = max(scores.get(text, -np.inf), sum(span.log_prob for span in spans) + blanks)
    best = max(scores, key=scores.get)
    free = log_probs.max(-1).sum(dtype=np.float64)
    if "bcb" in recognizer.tokenizer.decode(accepted.tokens).split():
        assert accepted.margin * len(accepted.tokens) >= scores[best] - free - 1e-3
    else:
        assert recognizer.tokenizer.decode(accepted.tokens).strip() == best
        np.testing.assert_allclose(accepted.margin * len(accepted.tokens), scores[best] - free, rtol=1e-4)


def test_words_outside_the_recognizers_letters_are_named_with_their_line(tmp_path):
    path = tmp_path / "drinks.yaml"
    path.write_text(
        'language: en\nintents:\n  a:\n    data:\n      - sentences:\n          - "ab"\n          - "tea"\n'
    )
    with pytest.raises(DataError, match=r"drinks.yaml, line 7: the recognizer has no 't', 'e', as in 'tea'"):
        token_automaton(Grammar.load(path), CharTokenizer("abc "))


def test_the_tokens_are_those_of_whole_sentences(path):
    grammar, tokenizer = Grammar.load(path), CharTokenizer("abc ")
    automaton = token_automaton(grammar, tokenizer)
    for text in itertools.islice(sentences(grammar.words), 20):
        state = 0
        for token in tokenizer.encode(text):
            state = automaton.arcs[state, token]
        assert automaton.final[state]


def test_the_command_prints_a_line_for_each_file_and_names_bad_ones(path, tmp_path, capsys):
    soundfile.write(tmp_path / "go.wav", speak("ab bac", 0)[0], 16_000)
    soundfile.write(tmp_path / "other.wav", speak("cbcbc bcbcb cbc", 9)[0], 16_000)
    soundfile.write(tmp_path / "long.wav", np.tile(speak("ab bac", 0)[0], 40), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    files = [str(tmp_path / name) for name in ("go.wav", "other.wav", "long.wav", "bad.wav")]
    options = ["--grammar", str(path), "--asr", str(trained_run())]
    assert cli.main(["commands", *files, *options]) == USER_ERROR
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert (first["intent"], first["slots"], first["text"]) == ("go", {"place": "bac"}, "ab bac")
    assert (second["intent"], second["slots"]) == (None, {})
    assert "longer than a command, 30 s" in err
    assert "bad.wav" in err
    assert cli.main(["commands", *options]) == USER_ERROR
    assert "name audio files, or prepared sets" in capsys.readouterr().err
