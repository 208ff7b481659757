"""A voice and its vocoder in the hands of transformers' pipeline."""

import dataclasses
import lzma

import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.ipa import IpaTokenizer
from data_pipelines.tokenizers.phones import PhoneTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.interop.folders import read_record
from jax_speechlm.interop.hf.export import write_checked
from tests.interop.tiny_runs import save, tiny_run

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

PHONES = PhoneTokenizer(["AH0", "HH", "L", "OW1", " ", "."], lzma.compress(b"hello HH AH0 L OW1\n"), "a test", "none")
IPA = IpaTokenizer(" .helot\u02b2\u02c8\u0259\u028a", "en-us", ["LATIN"], "1.52.0")


def require_equal(verdict):
    assert verdict.is_full
    assert not verdict.failed
    assert {"ids", "durations", "spectrogram", "pipeline"} < {check.name for check in verdict.checks}


def test_the_pipeline_plays_what_synthesize_gives(tmp_path):
    """Two folders, opened as the model card says."""
    voice, vocoder = (save(tmp_path / name, tiny_run(name)) for name in ("tts", "vocoder"))
    assert cli.main(["export", str(vocoder), "--out", str(tmp_path / "hifigan")]) == 0
    command = ["export", str(voice), "--out", str(tmp_path / "voice"), "--vocoder", str(tmp_path / "hifigan")]
    assert cli.main(command) == 0
    results = {check["name"]: check["result"] for check in read_record(tmp_path / "voice")["check"]["checks"]}
    assert "by SpeechT5HifiGan" in results["pipeline"]
    (ours,) = Synthesizer.load(voice, vocoder).synthesize("Where is it?")
    player = transformers.SpeechT5HifiGan.from_pretrained(tmp_path / "hifigan")
    speak = transformers.pipeline("text-to-speech", model=str(tmp_path / "voice"), vocoder=player)
    speech = speak("Where is it")
    assert speech["sampling_rate"] == ours.sample_rate
    assert np.abs(ours.samples).max() > 0.01
    np.testing.assert_allclose(speech["audio"], ours.samples, atol=1e-4)


def test_voices_of_phones_and_one_of_capitals(tmp_path):
    require_equal(write_checked(tiny_run("speakers", PHONES), tmp_path / "phones"))
    require_equal(write_checked(tiny_run("tts", IPA), tmp_path / "ipa"))
    capitals = CharTokenizer(" 'ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    require_equal(write_checked(tiny_run("tts", capitals), tmp_path / "capitals"))
    open_tokenizer = transformers.AutoTokenizer.from_pretrained
    assert open_tokenizer(tmp_path / "phones")("HH AH0 L OW1 / L")["input_ids"] == [7, 2, 1, 3, 4, 5, 3, 7]
    with pytest.raises(Exception, match="UNK"):
        open_tokenizer(tmp_path / "phones")("hello")
    phones = IPA.decode(IPA.encode("hello."))
    assert open_tokenizer(tmp_path / "ipa")(phones + "\u02b2")["input_ids"] == [12, *IPA.encode("hello."), 8, 12]
    assert open_tokenizer(tmp_path / "capitals")("aB")["input_ids"] == [29, 3, 4, 29]


def test_a_vocoder_of_other_spectrograms_is_refused(tmp_path, capsys):
    mel = SynthesisMel(num_mel_bins=20, low_hertz=20.0)
    run = tiny_run("vocoder")
    other = dataclasses.replace(run, experiment=run.experiment.replace(frontend=FrontEnd(mel=mel)))
    write_checked(other, tmp_path / "hifigan")
    voice = save(tmp_path / "run", tiny_run("tts"))
    for trained, message in ((voice, "takes spectrograms of the form"), (save(tmp_path / "v", run), "is for voices")):
        command = ["export", str(trained), "--out", str(tmp_path / "out"), "--vocoder", str(tmp_path / "hifigan")]
        assert cli.main(command) == USER_ERROR
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
