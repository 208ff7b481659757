"""What is heard in long recordings: the same however they are cut, with the times at which words are said."""

import json
import re
import tracemalloc
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

import jax_speechlm
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.segmentation import shapes
from jax_speechlm.inference.transcript import Transcript
from tests.trained_tones import FRAME, QUIET, RATE, random_text, speak, trained_run


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.load(trained_run())


@pytest.fixture(scope="module")
def long() -> tuple[np.ndarray, str, list[tuple[str, float, float]]]:
    """A minute and a half: speech, twenty seconds of silence, speech without a pause that deserves the name."""
    rng = np.random.default_rng(1)
    first, second = random_text(rng, 50), random_text(rng, 50)
    samples, words = speak(first, 1)
    silence = (QUIET * rng.normal(size=20 * RATE)).astype(np.int16)
    more, later = speak(second, 2, gap=0.15)
    after = (len(samples) + len(silence)) / RATE
    words += [(word, start + after, end + after) for word, start, end in later]
    return np.concatenate([samples, silence, more]), f"{first} {second}", words


def check(transcript: Transcript, text: str, words: list[tuple[str, float, float]]) -> None:
    assert transcript.error is None
    assert transcript.text == text
    assert [word.word for word in transcript.words] == [word for word, _, _ in words]
    for found, (_, start, end) in zip(transcript.words, words, strict=True):
        assert found.start == pytest.approx(start, abs=FRAME + 1e-6)
        assert found.end == pytest.approx(end, abs=FRAME + 1e-6)
        assert 0.5 < found.confidence <= 1
    for segment in transcript.segments:
        assert segment.text.split() == [word.word for word in segment.words]
        assert segment.end - segment.start <= 30


@pytest.mark.parametrize("max_seconds", [6.0, 30.0, 200.0])
def test_text_and_times_do_not_depend_on_where_a_recording_is_cut(recognizer, long, max_seconds):
    """The tolerance for windows of 6 s and more: not one word differs, and no time by more than a frame."""
    samples, text, words = long
    (transcript,) = recognizer.transcribe([samples], max_seconds=max_seconds)
    assert transcript.seconds == pytest.approx(len(samples) / RATE)
    check(transcript, text, words)


def test_posteriors_near_a_cut_are_those_of_the_whole(recognizer, long):
    """Not equal, since log-mel is normalised over each window; yet 98 of 100 frames have the same likeliest token."""
    samples, _, _ = long
    beam = Recognizer.load(trained_run(), Decoding(decoder="beam", beam_size=2))

    def posteriors(max_seconds: float) -> np.ndarray:
        windows = list(beam._windows([samples], max_seconds))
        heard = beam.encode_audio([window.samples for window in windows if window.samples is not None])
        found = iter(heard)
        encoded = ((w, None if w.samples is None else next(found)) for w in windows)
        stretches = beam._stretches(encoded, with_posteriors=True)
        return np.exp(np.concatenate([each.posteriors for each in stretches]))

    whole, parts = posteriors(1000.0), posteriors(10.0)
    assert whole.shape == parts.shape == (recognizer.experiment.frontend.mel.num_frames(len(samples)), 5)
    skipped = np.abs(parts - [1, 0, 0, 0, 0]).max(-1) < 1e-9  # silence that nobody listened to
    assert 300 < skipped.sum() < 500
    assert (whole.argmax(-1) == parts.argmax(-1)).mean() > 0.98
    assert np.median(np.abs(whole - parts)[~skipped].max(-1)) < 0.02


def test_a_beam_search_finds_the_same_and_what_else_it_may_be(long):
    samples, text, words = long
    (transcript,) = Recognizer.load(trained_run(), Decoding(decoder="beam", beam_size=4)).transcribe([samples])
    check(transcript, text, words)
    for segment in transcript.segments:
        assert 2 <= len(set(segment.alternatives)) <= 4
        assert segment.alternatives[0] == segment.text


def test_a_recording_does_not_depend_on_the_others(recognizer, long, tmp_path):
    """Files, bytes and arrays of all lengths, one that cannot be read among them, in many batch sizes."""
    rng = np.random.default_rng(3)
    spoken = [speak(random_text(rng, count), count)[0] for count in (1, 2, 3, 1, 14, 2)]
    soundfile.write(tmp_path / "a.flac", spoken[0], RATE)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    recordings = [tmp_path / "a.flac", *spoken[1:3], tmp_path / "bad.wav", long[0][: 40 * RATE], *spoken[3:]]
    alone = [next(recognizer.transcribe([each])) for each in recordings]
    assert "cannot be decoded" in alone[3].error
    for seconds_per_batch in (1.0, 20.0, 600.0):
        together = list(recognizer.transcribe(recordings, seconds_per_batch=seconds_per_batch))
        for one, other in zip(alone, together, strict=True):
            assert (one.file, one.text, one.seconds, one.error) == (other.file, other.text, other.seconds, other.error)
            times = [[(word.word, word.start, word.end) for word in each.words] for each in (one, other)]
            assert times[0] == times[1]


def test_recordings_of_like_length_share_one_compiled_program():
    recognizer = Recognizer.load(trained_run())
    rng = np.random.default_rng(4)
    compiled = recognizer._greedy._cache_size()
    assert compiled == 0
    for count in (1, 1, 3, 2, 1, 4):
        length = int(rng.uniform(2.9, 3.7) * RATE)  # padded to 3.75 s
        list(recognizer.transcribe([speak("abc", count)[0][:length].repeat(2)[:length] for _ in range(count)]))
        list(recognizer.transcribe([np.ones(length, np.int16)] * count))
    assert recognizer._greedy._cache_size() <= 2 * 3
    before = recognizer._greedy._cache_size()
    for _ in range(5):
        list(recognizer.transcribe([np.ones(int(rng.uniform(2.9, 3.7) * RATE), np.int16)]))
    assert recognizer._greedy._cache_size() == before
    assert len(shapes(30.0, 60.0)) == 22  # all there are


def test_progress_is_told_and_transcripts_come_as_they_are_ready(recognizer):
    told = []
    found = recognizer.transcribe([speak("ab", n)[0] for n in range(40)], seconds_per_batch=4.0, progress=told.append)
    next(found)
    assert 0 < told[-1] < 40
    list(found)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(40 * len(speak("ab")[0]) / RATE)


def test_the_command_writes_every_format(tmp_path, capsys):
    samples, words = speak("ab ca bac", 5)
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    run, files = str(trained_run()), [str(tmp_path / f"{name}.wav") for name in ("one", "two")]
    assert cli.main(["transcribe", run, files[0], "--format", "srt"]) == 0
    assert re.fullmatch(r"1\n00:00:00,\d{3} --> 00:00:0\d,\d{3}\nab ca bac\n", capsys.readouterr().out)
    assert cli.main(["transcribe", run, *files, "--format", "vtt"]) == USER_ERROR
    assert "name a folder with --out" in capsys.readouterr().err
    assert cli.main(["transcribe", run, *files, "--format", "vtt", "--out", str(tmp_path / "subtitles")]) == 0
    assert (tmp_path / "subtitles" / "two.vtt").read_text().startswith("WEBVTT\n\n00:00:00.")
    assert cli.main(["transcribe", run, *files, "--format", "json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[1])
    assert line["text"] == "ab ca bac"
    assert [word["word"] for word in line["segments"][0]["words"]] == [word for word, _, _ in words]
    assert cli.main(["transcribe", run, files[0], files[0], "--out", str(tmp_path)]) == USER_ERROR
    assert "would overwrite each other" in capsys.readouterr().err


def test_opened_by_path_it_does_the_same():
    samples, _ = speak("cab ba", 6)
    model = jax_speechlm.load(trained_run())
    assert isinstance(model, jax_speechlm.TrainedModel)
    assert model.abilities == ("transcribe", "embed", "stream")
    assert [each.text for each in model.transcribe(samples)] == ["cab ba"]
    (hidden,) = model.embed(samples)
    assert hidden.shape == (model.model.experiment.frontend.mel.num_frames(len(samples)), 32)
    assert isinstance(model.checkpoint, Path)


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_ten_minutes(recognizer, tmp_path):
    """What Python and numpy hold at the peak, windows and a block; and no word is lost."""
    rng = np.random.default_rng(7)
    minute, words = [], []
    while sum(map(len, minute)) < 60 * RATE:
        text = random_text(rng, 8)
        minute.append(speak(text, len(minute))[0])
        words += text.split()
    peaks = []
    for minutes in (10, 60):
        with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE, 1, format="FLAC") as file:
            for _ in range(minutes):
                file.write(np.concatenate(minute))
        tracemalloc.start()
        (transcript,) = recognizer.transcribe([tmp_path / "long.flac"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert transcript.seconds > 3600
    assert peaks[1] < 1.1 * peaks[0] + 2e6  # its words; the samples of an hour would be 115 MB
    assert jiwer.wer(" ".join(60 * words), transcript.text) < 0.01
    assert transcript.words[-1].end <= transcript.seconds
