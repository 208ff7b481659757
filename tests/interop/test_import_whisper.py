"""Whisper's folders become runs that transcribe, and go back as they were; damaged ones are refused with the file."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.aed import Answer, AttentionRecognizer, Fallback, Phrase
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.inference.segmentation import AudioWindow
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.nn import functional
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import ALIGNMENT_HEADS, TEXTS, change_json, load, write_whisper


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper") / "theirs"
    write_whisper(folder)
    return folder


@pytest.fixture(scope="module")
def run(theirs):
    import_run(theirs, theirs.parent / "run")
    return theirs.parent / "run"


def copied(theirs, folder):
    folder.mkdir()
    for file in theirs.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_folder_comes_back_as_it_was(theirs, run, tmp_path):
    loaded = LoadedRun.read(run)
    names, tokens = json.loads((theirs / "tokenizer.json").read_text()), loaded.experiment.objective.whisper
    ids = {token["content"]: token["id"] for token in names["added_tokens"]}
    folder_ids = loaded.tokenizer.places.theirs
    assert folder_ids[tokens.start] == ids["<|startoftranscript|>"]
    assert folder_ids[tokens.first_timestamp] == ids["<|notimestamps|>"] + 1
    assert {code: int(folder_ids[id_]) for code, id_ in tokens.languages} == {"en": ids["<|en|>"], "de": ids["<|de|>"]}
    generation = load(theirs, "generation_config.json")
    assert folder_ids[list(tokens.suppressed)].tolist() == generation["suppress_tokens"]
    assert folder_ids[list(tokens.suppressed_first)].tolist() == generation["begin_suppress_tokens"]
    for text in TEXTS:
        assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    write_checked(loaded, tmp_path / "again")
    arrays = weights.read_weights(tmp_path / "again")
    for name, array in weights.read_weights(theirs).items():
        np.testing.assert_array_equal(arrays[name], array)
    for name in ("generation_config.json", "tokenizer.json", "preprocessor_config.json"):
        assert load(tmp_path / "again", name) == load(theirs, name)
    original = load(theirs, "config.json")
    again = load(tmp_path / "again", "config.json")
    assert {name: again[name] for name in original} == original
    assert read_folder(tmp_path / "again").experiment.objective == loaded.experiment.objective


def test_it_transcribes_whatever_else_is_in_the_batch(run):
    model = open_transcriber(run)
    assert isinstance(model, AttentionRecognizer)
    assert model.fallback == Fallback()
    model = dataclasses.replace(
        model, fallback=Fallback(temperatures=(0.0, 0.7), log_prob=0.0)
    )  # so that all are drawn
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 2000, length).astype(np.int16) for length in (9000, 16_000, 3000, 12_000, 7000)]
    together = [each.text for each in model.transcribe(clips, max_seconds=2.0)]
    assert len(set(together)) > 1
    assert [next(model.transcribe([clip], max_seconds=2.0)).text for clip in clips[:2]] == together[:2]
    batch = {"audio": np.stack([np.pad(clip, (0, 16_000 - len(clip)), constant_values=9) for clip in clips])}
    batch |= {"audio_length": np.array(list(map(len, clips)), np.int32), "example_id": np.array([4, 2, -1, 7, 9])}
    found = model.transcribe_batches([batch])
    assert {row: " ".join(each.text.split()) for row, each in found.items()} == dict(
        zip((4, 2, 7, 9), (together[row] for row in (0, 1, 3, 4)), strict=True)
    )
    whole = np.concatenate(clips)[None]
    long = {"audio": whole, "audio_length": np.array([whole.shape[1]], np.int32), "example_id": np.array([3])}
    windows = next(model.transcribe([whole[0]], max_seconds=60.0))  # cut to windows of what the encoder takes
    assert len(windows.segments) > 2
    assert model.recognize(iter([long])) == {3: windows.text}
    assert {answer.temperature for answer in model.encode([batch]).values()} == {0.7}


def test_its_encoder_gives_the_frames_of_a_recording(run):
    encoder, clips = SpeechEncoder.load(run), [np.ones(9000, np.int16), np.full(16_000, 300, np.int16)]
    vectors = list(encoder.embed(clips))
    assert [each.shape for each in vectors] == [(28, 16), (50, 16)]  # a frame every 20 ms, of whole windows of 10 ms
    model = functional.bind(encoder._graphdef, encoder.params)
    batch = {"audio": jnp.asarray(clips[1])[None], "audio_length": jnp.array([16_000])}
    output, _ = model(*features(batch, encoder.frontend, None))
    np.testing.assert_allclose(vectors[1], output[0], atol=1e-5)
    assert [each.shape for each in encoder.embed(clips[1:], layer=0)] == [(50, 16)]
    (joined,) = encoder.embed([np.concatenate([clips[1]] * 3)])  # longer than a window
    assert len(joined) > 140


def test_times_in_a_text_are_those_of_its_segments(run):
    model = AttentionRecognizer.load(run, Decoding(decoder="greedy", timestamps=True))
    first = model.experiment.objective.whisper.first_timestamp
    a, b = (model.tokenizer.encode(text) for text in (" the cat", " sat"))
    ids = [first, *a, first + 20, first + 25, *b, first + 70]
    assert model._phrases(ids) == (Phrase(0.0, 0.4, "the cat"), Phrase(0.5, 1.4, "sat"))
    assert model._phrases([first + 5, *b]) == (Phrase(0.1, None, "sat"),)
    assert model._resume([first, *a, first + 20, first + 25]) == 0.5
    assert model._resume(ids) is None
    both = Answer(model._phrases(ids[:4]), -0.5, 4, 0.0, 0.0, 0.5).followed_by(_answer("sat", -1.0, 0.0), 0.5)
    assert both.text.endswith("sat")
    assert (both.phrases[-1].start, both.num_tokens, both.avg_logprob) == (0.5, 7, -5 / 7)
    window = AudioWindow(None, 16_000, 16_000, 32_000)
    (one, two) = model.decode([(window, Answer(model._phrases(ids), -0.5, 9, 0.0, 0.0))])
    assert (one.start, one.end, one.text) == (1.0, 1.4, "the cat")
    assert (two.start, two.end, two.text) == (1.5, 2.0, "sat")  # no later than its window ends
    clip = np.random.default_rng(0).normal(0, 2000, 16_000).astype(np.int16)
    batch = {"audio": clip[None], "audio_length": np.array([16_000], np.int32)}
    (answer,) = model.answers(batch)
    starts = [phrase.start for phrase in answer.phrases]
    assert starts == sorted(starts)
    plain = dataclasses.replace(model, timestamps=False)
    assert plain._phrases(ids) == (Phrase(0.0, None, "the cat sat"),)


def test_a_beam_gives_alternatives_whatever_else_is_in_the_batch(run):
    assert AttentionRecognizer.load(run, Decoding(decoder="greedy")).fallback.temperatures == (0.0,)
    model = open_transcriber(run, Decoding(decoder="beam", beam_size=3))
    model = dataclasses.replace(model, fallback=Fallback(temperatures=(0.0,)))
    assert model.decoding_description == "beam 3"
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 2000, length).astype(np.int16) for length in (9000, 16_000, 3000)]
    together = [next(model.transcribe([clip])) for clip in clips]
    assert any(each.segments for each in together)
    for one, other in zip(together, model.transcribe(clips), strict=True):
        assert one.text == other.text
        for segment in one.segments:
            assert segment.alternatives[0] == segment.text
            assert len(segment.alternatives) > 1
    with pytest.raises(ValueError, match=r"has no CTC head for --ctc-weight"):
        open_transcriber(run, Decoding(decoder="beam", ctc_weight=0.3))
    with pytest.raises(ValueError, match="only runs with CTC posteriors make an ensemble"):
        open_transcriber(run, ensemble=(run,))


@pytest.mark.parametrize("timestamps", [False, True])
def test_words_have_times_in_their_order(run, timestamps):
    model = open_transcriber(run, Decoding(decoder="greedy", timestamps=timestamps))
    answers = [
        Answer((Phrase(0.0, 0.4, "a"), Phrase(0.4, None, "b")), -1.0, 4, 0.0, 0.0),
        Answer((), -1.0, 0, 0.9, 0.0),
    ]
    window = AudioWindow(None, 0, 0, 16_000)
    every = model.utterances([(window, answers[0]), (window, None), (window, answers[1])])
    assert [answer.text for _, answer in every] == ["a", "b"]
    assert model.experiment.model.decoder.alignment_heads == tuple(map(tuple, ALIGNMENT_HEADS))
    rng = np.random.default_rng(1)
    clips = [rng.normal(0, 2000, length).astype(np.int16) for length in (9000, 16_000, 40_000)]
    together = list(model.transcribe(clips))
    for clip, transcript in zip(clips, together, strict=True):
        starts = [word.start for word in transcript.words]
        assert starts == sorted(starts)
        assert all(word.start < word.end <= len(clip) / 16_000 + 0.02 for word in transcript.words)
        assert all(0 < word.confidence <= 1 for word in transcript.words)
    (alone,) = model.transcribe(clips[:1])
    assert [(w.word, w.start, w.end) for w in alone.words] == [(w.word, w.start, w.end) for w in together[0].words]


def test_a_text_follows_its_prompt_and_the_text_before(run):
    options = {"decoder": "greedy", "prompt": "the cat"}
    model = open_transcriber(run, Decoding(**options, condition_on_previous=True))
    words, previous = tuple(model.tokenizer.encode(" the cat")), model.experiment.objective.whisper.previous
    assert model.prompt == words
    prompts = model._programs.prompts([model._context((7, 8)), []])
    before = [previous, *words, 7, 8]
    assert prompts.ids[0, : len(before)].tolist() == before
    assert prompts.length.tolist() == [len(before) + 4, 4]
    full = model._context((7,) * 90)
    assert full == [*words, *[7] * (19 - len(words))]  # half of the 40 positions, with `previous`
    clip = np.random.default_rng(2).normal(0, 2000, 40_000).astype(np.int16)

    def one_by_one(model, follow):
        history, texts = (), []
        for window in model._windows(iter([clip]), 30.0):
            batch = {"audio": window.samples[None], "audio_length": np.array([len(window.samples)], np.int32)}
            (answer,) = model._decoded(*model._frames(batch), [window.samples], [history], False)
            history += answer.ids if follow and answer.phrases else ()
            texts.append(answer.text)
        return " ".join(" ".join(texts).split())

    def drawn(temperature, model=model):  # a random model has words in texts that are drawn
        return dataclasses.replace(model, fallback=Fallback(temperatures=(0.0, temperature), log_prob=0.0))

    warm, hot = drawn(0.45), drawn(0.7)
    apart = drawn(0.45, open_transcriber(run, Decoding(**options)))
    assert next(warm.transcribe([clip])).text == one_by_one(warm, True) != one_by_one(warm, False)
    assert next(apart.transcribe([clip])).text == one_by_one(warm, False)
    assert next(hot.transcribe([clip])).text == one_by_one(hot, False)  # such texts are not read again
    batch = {"audio": clip[None, :16_000], "audio_length": np.array([16_000], np.int32)}
    beam = open_transcriber(run, Decoding(decoder="beam", beam_size=1, prompt="the cat"))
    (one,), (other,) = (dataclasses.replace(each, fallback=model.fallback).answers(batch) for each in (apart, beam))
    assert one.ids == other.ids != ()
    assert dataclasses.replace(model, prompt=()).answers(batch)[0].ids != one.ids
    with pytest.raises(ValueError, match="--condition-on-previous is for greedy decoding"):
        open_transcriber(run, Decoding(decoder="beam", condition_on_previous=True))


def test_a_text_of_noise_is_left_out(run):
    model = open_transcriber(run)
    answer = model.encode([])
    assert answer == {}
    quiet = model._without_noise(_answer("you", -1.5, 0.9))
    assert quiet.text == ""
    assert model._without_noise(_answer("you", -0.5, 0.9)).text == "you"
    assert model._fails(_answer("you", -1.5, 0.1))
    assert model._fails(_answer("ha " * 40, -0.1, 0.0))
    assert not model._fails(_answer("you", -1.5, 0.9))


def _answer(text, avg_logprob, no_speech):
    return Answer((Phrase(0.0, None, text),), avg_logprob, 3, no_speech, 0.0)


def _without(folder, name):
    (folder / name).unlink()


DAMAGES = {
    "another feature extractor": (
        lambda folder: change_json(folder, "preprocessor_config.json", feature_size=80),
        r"front end gives 80 features, model.input_dim is 16",
    ),
    "longer windows": (
        lambda folder: change_json(folder, "preprocessor_config.json", chunk_length=30),
        r"windows of 30 s, 1500 frames, and the encoder has positions for 50",
    ),
    "another tokenizer": (
        lambda folder: change_json(folder, "tokenizer.json", added_tokens=[]),
        r"has not the tokens <\|startoftranscript\|>|which the tokenizer has not",
    ),
    "another start": (
        lambda folder: change_json(folder, "config.json", decoder_start_token_id=3),
        r"decoder_start_token_id of config.json is 3",
    ),
    "a suppressed id": (
        lambda folder: change_json(folder, "generation_config.json", suppress_tokens=[1 << 20]),
        r"suppress_tokens has ids that the model has not",
    ),
    "a scaled embedding": (
        lambda folder: change_json(folder, "config.json", scale_embedding=True),
        r"scale_embedding=True has no counterpart here",
    ),
    "no tokenizer": (lambda folder: _without(folder, "tokenizer.json"), r"has no tokenizer.json"),
    "a count": (lambda folder: change_json(folder, "config.json", encoder_layers=-1), r"encoder_layers=-1 is not"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_its_file(theirs, tmp_path, damage):
    folder = copied(theirs, tmp_path / "damaged")
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(ExportError, match=message):
        read_folder(folder)


def test_a_folder_without_generation_config_has_stated_defaults(theirs, tmp_path, capsys):
    folder = copied(theirs, tmp_path / "bare")
    (folder / "generation_config.json").unlink()
    tokens = read_folder(folder).experiment.objective.whisper
    assert tokens.suppressed == ()
    assert tokens.languages == ()
    assert "no id is suppressed, and a vocabulary of" in capsys.readouterr().err
