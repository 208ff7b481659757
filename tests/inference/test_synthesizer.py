"""Synthesis: sentences, speakers, speed, errors, and the command, with an untrained model and a vocoder of noise."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference import synthesize
from jax_speechlm.inference.load import TrainedModel
from jax_speechlm.inference.synthesize import LONGEST_PART, PADDED_TOKENS, SynthesisError, Synthesizer
from jax_speechlm.inference.synthesize_steps import FRAMES_PER_TOKEN, StepSynthesizer
from jax_speechlm.inference.vocode import StreamedVocoder, Vocoder
from jax_speechlm.models.tts.fastspeech2 import TextLM
from jax_speechlm.models.tts.text import num_ids
from jax_speechlm.models.vocoders.vocos import Vocos, VocosConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.training.runs import LoadedRun
from tests.training import tiny

TOKENIZER = CharTokenizer("abcdefgh .")


class NoiseVocoder(Vocoder):
    """Every sample of a frame is the mean of its log-mel."""

    def __init__(self, mel):
        self.mel, self.calls = mel, 0

    def vocode(self, mels):
        self.calls += 1
        return [np.repeat(np.tanh(mel.mean(1)), self.mel.hop).astype(np.float32) for mel in mels]


def make(classes=(), text_lm=None):
    experiment = tiny.experiment("tts")
    model = experiment.model.replace(text_lm=text_lm)
    experiment = experiment.replace(objective=experiment.objective.replace(classes=classes), model=model)
    objective = experiment.objective.build(experiment.model, experiment.frontend, TOKENIZER)
    params = jax.device_get(functional.init(objective.make, jax.random.key(0)))
    assert params["acoustic"]["tokens"].shape[0] == num_ids(TOKENIZER)
    params["acoustic"]["duration"]["out"]["bias"] = np.full(1, np.log(5), np.float32)
    del params["aligner"]  # as `LoadedRun` leaves out what only training needs
    run = LoadedRun(Path("runs/voice/checkpoints/3"), 3, experiment, TOKENIZER, params)
    return Synthesizer(run, NoiseVocoder(experiment.frontend.mel))


@pytest.fixture(scope="module")
def voice():
    return make()


def test_speech_has_samples_durations_and_spectrogram_of_the_text(voice):
    (speech,) = voice.synthesize("bad cafe.")
    assert len(speech.durations) == len("bad cafe.") + 2
    assert speech.durations.sum() == len(speech.mel) > 20
    assert len(speech.samples) == len(speech.mel) * voice.experiment.frontend.mel.hop
    assert speech.samples.dtype == np.float32
    assert speech.sample_rate == 16_000
    assert np.isfinite(speech.mel).all()
    assert speech.mel.std() > 0


def test_a_sentence_does_not_depend_on_the_others(voice):
    alone = [voice.synthesize(text)[0] for text in ("a bad cafe.", "a fed head.")]
    both = voice.synthesize("a bad cafe. a fed head.")[0]
    several = voice.synthesize(["a fed head.", "a bad cafe.", "a fed head."])
    streamed = np.concatenate(list(voice.stream("a bad cafe. a fed head.")))
    for name in ("samples", "durations", "mel"):
        together = np.concatenate([getattr(each, name) for each in alone])
        np.testing.assert_array_equal(getattr(both, name), together)
        np.testing.assert_array_equal(getattr(several[1], name), getattr(alone[0], name))
        np.testing.assert_array_equal(getattr(several[2], name), getattr(several[0], name))
    np.testing.assert_array_equal(streamed, both.samples)


def test_a_stream_gives_the_samples_of_one_pass_in_chunks_of_a_sentence(voice, monkeypatch):
    model = VocosConfig(input_dim=16, dim=8, num_layers=2, kernel_size=3)
    experiment = tiny.experiment("vocoder").replace(model=model, frontend=voice.experiment.frontend)
    params = {"generator": jax.device_get(functional.init(lambda rngs: Vocos(model, rngs=rngs), jax.random.key(1)))}
    run = LoadedRun(Path("runs/vocos/checkpoints/3"), 3, experiment, None, params)
    streaming = dataclasses.replace(voice, vocoder=StreamedVocoder(run))
    whole, sentence = (streaming.synthesize(text)[0] for text in ("a bad cafe. a fed head.", "a bad cafe."))
    spectrogram, computed = Synthesizer.spectrogram, []
    monkeypatch.setattr(Synthesizer, "spectrogram", lambda *args: computed.append(args) or spectrogram(*args))
    stream = streaming.stream("a bad cafe. a fed head.")
    first = next(stream)
    assert 0 < len(first) < len(sentence.samples)
    assert len(computed) == 1
    rest = list(stream)
    assert len(rest) >= 3
    np.testing.assert_allclose(np.concatenate([first, *rest]), whole.samples, atol=1e-5)
    assert np.std(whole.samples) > 1e-3


def test_speed_changes_the_length(voice):
    normal, fast = (voice.synthesize("a bad cafe.", speed=speed)[0] for speed in (1.0, 2.0))
    np.testing.assert_allclose(len(fast.mel), len(normal.mel) / 2, atol=1)
    for speed in (0.0, -1.0, 9.0, float("nan")):
        with pytest.raises(SynthesisError, match=r"choose one from 0.25 to 4"):
            voice.synthesize("a bad cafe.", speed=speed)


def test_texts_of_similar_lengths_share_programs(voice):
    voice.synthesize("a bad cafe.")
    compiled = voice._encode._cache_size(), voice._decode._cache_size()
    for text in ("bad.", "a bad head. dead.", "cab"):
        voice.synthesize(text)
    assert (voice._encode._cache_size(), voice._decode._cache_size()) == compiled


def test_speakers_have_voices_of_their_own():
    voice = make(("ann", "ben", "cat"))
    assert voice.speakers == ("ann", "ben", "cat")
    ann, ben = (voice.synthesize("a bad cafe.", speaker)[0].mel for speaker in ("ann", "ben"))
    np.testing.assert_array_equal(voice.synthesize("a bad cafe.")[0].mel, ann)
    assert ann.shape != ben.shape or np.abs(ann - ben).max() > 0.01
    with pytest.raises(SynthesisError, match=r"has no speaker 'dan': choose one of 'ann', 'ben', 'cat'"):
        voice.synthesize("a bad cafe.", "dan")


def test_a_language_model_is_read_with_its_updates():
    voice = make(text_lm=TextLM(transformer=tiny.MODELS["speech_lm"].transformer, lora=LoRA(rank=2)))
    before = voice.spectrogram([1, 2, 3])[0]
    update = voice.params["lora"]["transformer"]["layers"]["attention"]["query"]
    update["b"] = np.full_like(update["b"], 0.5)
    after = voice.spectrogram([1, 2, 3])[0]
    assert before.shape != after.shape or np.abs(before - after).max() > 1e-4


@pytest.fixture(scope="module")
def stepper():
    experiment = tiny.experiment("tacotron")
    experiment = experiment.replace(objective=experiment.objective.replace(classes=()))
    objective = experiment.objective.build(experiment.model, experiment.frontend, TOKENIZER)
    params = jax.device_get(functional.init(objective.make, jax.random.key(0)))
    params["stop"]["bias"] = np.full(1, -50, np.float32)
    run = LoadedRun(Path("runs/steps/checkpoints/3"), 3, experiment, TOKENIZER, params)
    return StepSynthesizer(run, NoiseVocoder(experiment.frontend.mel))


def test_an_autoregressive_model_synthesises_until_it_stops_or_the_bound(stepper):
    mel, durations = stepper.spectrogram([1, 2, 3])
    assert len(mel) == durations.sum() == FRAMES_PER_TOKEN * PADDED_TOKENS[0]
    assert len(durations) == 5
    stepper.params["stop"]["bias"][:] = 50
    mel, durations = stepper.spectrogram([1, 2, 3])
    assert len(mel) == durations.sum() == stepper.experiment.model.reduction
    (speech,) = stepper.synthesize("a bad cafe.")
    assert len(speech.samples) == len(speech.mel) * stepper.experiment.frontend.mel.hop


def test_an_autoregressive_model_has_one_speed(stepper):
    with pytest.raises(SynthesisError, match="leave the speed at 1"):
        stepper.synthesize("a bad cafe.", speed=1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        (" \n ", "the text is empty"),
        ("...", "has no words"),
        ("a bad \u0416cafe", r"not trained on: '\u0416' \(U\+0416 CYRILLIC CAPITAL LETTER ZHE\)"),
        ("a bad cafe \U0001f600", "U\\+1F600 GRINNING FACE"),
        ("a zoo", "not trained on: 'z'"),
    ],
)
def test_what_cannot_be_said_is_named_before_anything_is_computed(voice, text, message):
    calls = voice.vocoder.calls
    with pytest.raises(DataError, match=message):
        voice.synthesize(["a bad cafe.", text])
    with pytest.raises(DataError, match=message):
        next(voice.stream(text))
    with pytest.raises(SynthesisError, match="it has one voice, so leave the speaker out"):
        voice.synthesize("a bad cafe.", "ann")
    assert voice.vocoder.calls == calls


def test_long_texts_are_cut_at_sentences_then_pauses_then_words(voice):
    def fits(part):
        return len(part) <= 12

    cut = synthesize._cut("one two. three four, five six seven eight! a\nabcdefghijklmnop", fits)
    assert cut == ["one two.", "three four,", "five six", "seven eight!", "a", "abcdefghijkl", "mnop"]
    sentences = voice._sentences("bad cafe " * 12_000, "en")
    assert sum(map(len, sentences)) > 100_000 - len(sentences)
    assert max(map(len, sentences)) <= LONGEST_PART
    assert min(map(len, sentences[:-1])) > LONGEST_PART - 10


def test_programs_compile_what_a_stream_runs():
    voice = make()
    for compile_one in voice.programs():
        compile_one()
    compiled = voice._encode._cache_size()
    list(voice.stream("a bad cafe."))
    assert voice._encode._cache_size() == compiled


def test_a_loaded_model_synthesises_with_the_vocoder_of_the_call(voice, monkeypatch):
    opened = []

    def load(name, mel):
        opened.append(name)
        return NoiseVocoder(mel)

    monkeypatch.setattr(synthesize.Vocoder, "load", load)
    model = TrainedModel(Path("runs/voice/checkpoints/3"), "tts", voice)
    for vocoder in (None, "runs/vocos", "runs/vocos", None):
        np.testing.assert_array_equal(
            model.synthesize("a bad cafe.", vocoder=vocoder)[0].samples, voice.synthesize("a bad cafe.")[0].samples
        )
    assert opened == ["runs/vocos"]


@pytest.fixture
def command(voice, monkeypatch, capsys):
    monkeypatch.setattr(Synthesizer, "load", lambda run, vocoder: voice)

    def run(*arguments):
        status = cli.main(["synthesize", "runs/voice", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_command_writes_a_file(command, voice, tmp_path, suffix):
    status, printed = command("a bad cafe.", "--out", tmp_path / f"a.{suffix}", "--speed", 1.5)
    assert status == 0, printed
    samples, rate = soundfile.read(tmp_path / f"a.{suffix}")
    expected = voice.synthesize("a bad cafe.", speed=1.5)[0]
    assert (rate, len(samples)) == (16_000, len(expected.samples))
    assert suffix == "ogg" or np.abs(samples - expected.samples).max() < 2**-14
    assert [file.name for file in tmp_path.iterdir()] == [f"a.{suffix}"]


def test_command_writes_a_folder_for_several_texts(command, voice, tmp_path):
    (tmp_path / "text.txt").write_text("a bad head.\na fed cafe.\n")
    status, printed = command("a bad cafe.", "--text-file", tmp_path / "text.txt", "--out", tmp_path / "said")
    assert status == 0, printed
    lengths = [len(soundfile.read(tmp_path / "said" / f"{number}.wav")[0]) for number in (1, 2)]
    expected = voice.synthesize(["a bad cafe.", "a bad head. a fed cafe."])
    assert lengths == [len(each.samples) for each in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "a.wav"), "there is nothing to say"),
        (("a bad cafe.",), "there is nowhere to put the speech"),
        (("a bad cafe.", "--out", "a.txt"), "name a file that ends in .wav"),
        (("a bad cafe.", "--out", "missing/a.wav"), "missing is no folder"),
        (("a bad cafe.", "a head.", "--out", "a.wav"), "there are 2 texts: name a folder"),
        (("a zoo.", "--out", "a.wav"), "not trained on: 'z'"),
        (("", "--out", "a.wav"), "the text is empty"),
        (("a bad cafe.", "--out", "a.wav", "--speaker", "ann"), "it has one voice"),
        (("a bad cafe.", "--out", "a.wav", "--speed", "0"), "choose one from 0.25 to 4"),
        (("--text-file", "nothing.txt", "--out", "a.wav"), "nothing.txt"),
    ],
)
def test_command_explains_and_leaves_nothing(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, printed = command(*arguments)
    assert status == USER_ERROR
    assert message in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_command_leaves_an_older_file_if_writing_fails(command, tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"old")

    def write(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "a.wav"))

    monkeypatch.setattr(soundfile, "write", write)
    status, printed = command("a bad cafe.", "--out", tmp_path / "a.wav")
    assert status != 0
    assert "No space left" in printed
    assert (tmp_path / "a.wav").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


def test_command_plays_by_the_player_that_is_there(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, printed = command("a bad cafe.", "--play")
    assert status == USER_ERROR
    assert "--play needs one of" in printed
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\nread -r first < "$2"\necho "$1" > "{tmp_path}/played"\n')
    player.chmod(0o755)
    assert command("a bad cafe.", "--play")[0] == 0
    assert (tmp_path / "played").read_text() == "-q\n"
