"""`jax-speechlm synthesize`: texts to audio files, or to the loudspeaker."""

import tempfile
from pathlib import Path

import soundfile
from tyro.conf import Positional

from data_pipelines.audio.player import find_player, play_sound
from data_pipelines.audio.wav import to_int16
from data_pipelines.core.files import replacing
from jax_speechlm.inference.synthesize import Speech, SynthesisError, Synthesizer
from jax_speechlm.inference.vocode import GRIFFIN_LIM

FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
_LARGEST_FILE = 2**24  # bytes of --text-file


def synthesize_texts(
    run: Positional[Path],
    texts: Positional[tuple[str, ...]] = (),
    out: Path | None = None,
    text_file: Path | None = None,
    vocoder: str = GRIFFIN_LIM,
    speaker: str | None = None,
    speed: float = 1.0,
    language: str = "en",
    play: bool = False,
) -> None:
    """Synthesises texts of any length with a trained voice.

    Args:
      run: directory of a run of task tts, or one of its checkpoints/<step> folders.
      texts: the texts to say.
      out: audio file to write: wav, flac, ogg or mp3, by its suffix. For several texts a folder, of 1.wav, 2.wav, ...
      text_file: a UTF-8 file with one more text, of any number of sentences and lines.
      vocoder: directory of a vocoder's run, or griffin-lim, which needs no training.
      speaker: name of a speaker, of a run with several; the first by default.
      speed: above 1 is faster; from 0.25 to 4.
      language: two-letter code, of the words for numbers and signs.
      play: play the speech too, by the system's player.
    """
    texts = (*texts, _read(text_file)) if text_file else texts
    if not texts:
        raise SynthesisError('there is nothing to say: give a text in quotes, "Hello there.", or --text-file')
    if out is None and not play:
        raise SynthesisError("there is nowhere to put the speech: name a file with --out, or listen to it with --play")
    files = _files(out, len(texts)) if out else []
    player = find_player("--play", "write a file with --out instead") if play else []
    spoken = Synthesizer.load(run, vocoder).synthesize(texts, speaker, speed, language)
    for file, speech in zip(files, spoken, strict=False):
        try:
            with replacing(file) as partial:
                _write(partial, speech, FORMATS[file.suffix.lower()])
        except (OSError, soundfile.LibsndfileError) as error:
            raise SynthesisError(f"{file}: cannot be written ({error}): name another place with --out") from error
        print(f"{file}: {len(speech.samples) / speech.sample_rate:.2f} s at {speech.sample_rate} Hz")
    if play:
        for speech in spoken:
            play_sound(player, speech.samples, speech.sample_rate)


def _read(file: Path) -> str:
    if file.stat().st_size > _LARGEST_FILE:
        raise SynthesisError(f"{file} has more than {_LARGEST_FILE:,} bytes: split it")
    return file.read_text(encoding="utf-8-sig")


def _write(file: Path, speech: Speech, format: str) -> None:
    soundfile.write(file, to_int16(speech.samples), speech.sample_rate, format=format)


def _files(out: Path, count: int) -> list[Path]:
    """Returns the files to write; raises `SynthesisError` if that is not possible, before anything is computed."""
    if count > 1:
        if out.suffix.lower() in FORMATS or (out.exists() and not out.is_dir()):
            raise SynthesisError(f"{out} is one file, and there are {count} texts: name a folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"{number}.wav" for number in range(1, count + 1)]
    else:
        if out.suffix.lower() not in FORMATS or out.is_dir():
            raise SynthesisError(f"{out}: name a file that ends in {', '.join(FORMATS)} with --out")
        files = [out]
    folder = files[0].parent
    if not folder.is_dir():
        raise SynthesisError(f"{folder} is no folder: make it first, or name another file with --out")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return files
    except OSError as error:
        raise SynthesisError(f"{folder}: cannot be written to ({error.strerror}): name another with --out") from error
