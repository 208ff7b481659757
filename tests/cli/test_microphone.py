"""`transcribe --microphone` with a stand-in for sounddevice: machines of tests have no sound card."""

import json
import signal
import sys
import types

import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from tests.trained_tones import STREAMING, speak, trained_run

RATE = 16_000


class PortAudioError(Exception):
    """As sounddevice's."""


@pytest.fixture
def sound_card(monkeypatch):
    """Makes sounddevice record samples, or raise an error; returns the function that says which."""

    def use(found):
        class InputStream:
            def __init__(self, *, samplerate, blocksize, channels, dtype, callback):
                assert (samplerate, channels, dtype) == (RATE, 1, "int16")
                if isinstance(found, Exception):
                    raise found
                self._blocksize, self._callback = blocksize, callback

            def __enter__(self):
                buffer = np.zeros((self._blocksize, 1), np.int16)  # the driver uses it again
                for start in range(0, len(found) - self._blocksize + 1, self._blocksize):
                    buffer[:, 0] = found[start : start + self._blocksize]
                    self._callback(buffer, self._blocksize, None, None)
                signal.raise_signal(signal.SIGINT)  # Ctrl-C

            def __exit__(self, *error):
                return False

        module = types.SimpleNamespace(InputStream=InputStream, PortAudioError=PortAudioError)
        monkeypatch.setitem(sys.modules, "sounddevice", module)

    return use


def transcribe(*options):
    return cli.main(["transcribe", str(trained_run(STREAMING)), *options])


def test_it_prints_partial_transcripts_until_it_is_interrupted(sound_card, capsys):
    samples, _ = speak("ab cab", 1)
    sound_card(samples)
    before = signal.getsignal(signal.SIGINT)
    assert transcribe("--microphone", "--chunk-ms", "160") == 0
    assert signal.getsignal(signal.SIGINT) is before
    printed = capsys.readouterr()
    *partials, last = map(json.loads, printed.out.splitlines())
    assert last["text"] == "ab cab"
    assert len(partials) > 2
    assert {line["file"] for line in (*partials, last)} == {"microphone"}
    assert "Ctrl-C" in printed.err


def test_what_is_missing_is_named_with_the_remedy(sound_card, monkeypatch, capsys):
    sound_card(PortAudioError("Error querying device -1"))
    assert transcribe("--microphone") == USER_ERROR
    assert "microphone: Error querying device -1; connect one, or name audio files" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert transcribe("--microphone") == USER_ERROR
    assert "sounddevice is not installed; pip install -e '.[microphone]'" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("a.wav", "--microphone")])
def test_the_source_is_files_or_the_microphone(options, capsys):
    assert transcribe(*options) == USER_ERROR
    assert "name audio files, or record with --microphone" in capsys.readouterr().err
