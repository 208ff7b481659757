"""Durations by the aligner of a voice: those of training, stored next to the index once for each checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage import durations as store
from data_pipelines.storage.index import read_index
from data_pipelines.tokenizers.base import CharTokenizer
from data_pipelines.tokenizers.phones import train_phones
from jax_speechlm import cli
from jax_speechlm.apps.align_voice import compare_part
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.alignment import AlignmentReport, compare
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.durations import DurationAligner, word_times
from jax_speechlm.models.tts.text import boundary_id
from jax_speechlm.nn import functional
from jax_speechlm.training.runs import LoadedRun
from tests.apps.test_aligner import FRAME, FRAMES, Heard
from tests.apps.test_aligner import TEXTS as HEARD
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.spoken_sets import write_spoken_set
from tests.evaluation.runs import write_run
from tests.training import tiny

TOKENIZER = CharTokenizer("abcdefgh .")
TEXTS = "bad cafe.", "a", "", "fed", "a deaf head, a bad cafe. a fed head.", "abc"
LENGTHS = 9_000, 5_500, 6_000, 7_700, 3_000, 12_000  # of row 4 fewer frames than tokens
CORRUPT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    clips = [(noise(row, length), text) for row, (length, text) in enumerate(zip(LENGTHS, TEXTS, strict=True))]
    write_prepared(folder / "data" / "voice", {"train": clips, "dev": clips[:1]}, corrupt=[CORRUPT])
    write_run(folder / "run", tiny.experiment("tts"), TOKENIZER)
    return folder


def align(folder, sets="voice", run="run"):
    return cli.main(["align", str(folder / run), "--sets", sets, f"--data-dir={folder / 'data'}"])


def expected(folder):
    """Returns durations of rows 0, 1 and 3 by the path that training finds in one packed row of them."""
    run = LoadedRun.read(folder / "run", training_only=True)
    objective, frontend = run.experiment.objective, run.experiment.frontend
    batch = tiny.BatchSpec.speech(packed=True, text=False)
    starts, rows = (0, 12_800, 20_480), (0, 1, 3)
    batch = batch.empty({"rows": 1, "samples": 32_000, "tokens": 24, "utterances": 3})
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        batch["audio"][0, start : start + LENGTHS[row]] = noise(row, LENGTHS[row])
        batch["audio_start"][0, place], batch["audio_length"][0, place] = start, LENGTHS[row]
        ids = TOKENIZER.encode(TEXTS[row])
        batch["tokens"][0, place, : len(ids)], batch["token_length"][0, place] = ids, len(ids)
    batch = jax.tree.map(jnp.asarray, batch)
    module = objective.build(run.experiment.model, frontend, TOKENIZER).make
    module = functional.bind(functional.declare(module).graphdef, run.params)
    mel, segments = features(batch, frontend, None)
    path = np.asarray(objective.align(module.aligner, batch, mel, segments, boundary_id(TOKENIZER)).path[0])
    spans = zip(np.asarray(segments.start[0]), np.asarray(segments.length[0]), rows, strict=True)
    return {
        row: np.bincount(path[start : start + length], minlength=len(TEXTS[row]) + 2) for start, length, row in spans
    }


def test_durations_are_those_of_training_and_sum_to_the_frames(folder, capsys):
    assert align(folder) == 0
    printed = capsys.readouterr().out
    assert "voice/train: 19 tokens of 3 utterances" in printed
    assert "3 left out" in printed
    assert "voice/dev: 11 tokens of 1 utterances" in printed
    (part,) = read_index(folder / "data" / "voice", "train").parts
    found = store.find_durations(part)
    assert [len(found.of(row)) for row in range(6)] == [11, 3, 0, 5, 0, 0]
    for row, frames in expected(folder).items():
        np.testing.assert_array_equal(found.of(row), frames)
        assert found.of(row).sum() == LENGTHS[row] // 256 + 1
        assert found.of(row).min() >= 1
    assert len(set(found.frames.tolist())) > 3


def test_a_split_is_aligned_once_and_anew_by_another_checkpoint(folder, capsys):
    align(folder)
    files = {path: path.stat().st_mtime_ns for path in (folder / "data" / "voice" / "index").glob("*.durations-*")}
    assert len(files) == 2
    capsys.readouterr()
    assert align(folder) == 0
    assert capsys.readouterr().out.count("(kept)") == 2
    assert {path: path.stat().st_mtime_ns for path in files} == files

    write_run(folder / "other", tiny.experiment("tts", seed=3), TOKENIZER)
    settings, other = (DurationAligner.load(folder / name).settings for name in ("run", "other"))
    (part,) = read_index(folder / "data" / "voice", "train").parts
    store.read_durations(part, settings)
    with pytest.raises(DataError, match=r"by another run.*jax-speechlm align a/b --sets voice:train --data-dir"):
        store.read_durations(part, other, "a/b")
    assert align(folder, "voice:train", "other") == 0
    printed = capsys.readouterr().out
    assert "voice/train" in printed
    assert "kept" not in printed
    assert "voice/dev" not in printed
    assert store.read_durations(part, other).settings == other
    align(folder)


def test_what_cannot_be_aligned_is_named(folder, capsys):
    write_run(folder / "vocoder", tiny.experiment("vocoder"), None)
    assert align(folder, run="vocoder") == USER_ERROR
    assert "was trained by vocoder, which has no align; ctc, joint, transducer, tts have" in " ".join(
        capsys.readouterr().err.split()
    )
    run = write_run(folder / "bare", tiny.experiment("tts"), TOKENIZER)
    whole = LoadedRun.read(run, training_only=True)
    assert whole.params.keys() == {"acoustic", "aligner"}
    assert LoadedRun.read(run).params.keys() == {"acoustic"}


def test_a_voice_without_an_aligner_is_refused(folder, monkeypatch):
    load = LoadedRun.load
    monkeypatch.setattr(LoadedRun, "load", lambda *arguments, training_only: load(*arguments))
    with pytest.raises(CheckpointError, match="has no aligner, as voices that were imported"):
        DurationAligner.load(folder / "run")


class TestStore:
    SETTINGS = store.DurationSettings(16_000, 256, "t", "a")

    @pytest.fixture
    def part(self, folder):
        (part,) = read_index(folder / "data" / "voice", "dev").parts
        return part

    def write(self, part, settings=SETTINGS):
        return store.write_durations(part, [np.array([30, 2, 4])], settings)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hop": 300}, "in frames of 256 samples at 16000 Hz, not of 300 at 16000 Hz"),
            ({"sample_rate": 24_000}, "not of 256 at 24000 Hz"),
            ({"tokenizer": "u"}, "of the tokens of another tokenizer"),
            ({"aligner": "b"}, "by another run, or by another of its checkpoints"),
        ],
    )
    def test_durations_of_other_settings_are_refused(self, part, change, message):
        self.write(part)
        assert store.read_durations(part, self.SETTINGS).of(0).tolist() == [30, 2, 4]
        settings = store.DurationSettings(**(vars(self.SETTINGS) | change))
        with pytest.raises(DataError, match=f"{message}. Run: jax-speechlm align RUN --sets voice:dev"):
            store.read_durations(part, settings)

    def test_a_damaged_or_absent_file_is_none(self, part):
        path = self.write(part)
        path.write_bytes(path.read_bytes()[:-30])
        assert store.find_durations(part) is None
        path.unlink()
        with pytest.raises(DataError, match="its tokens have no durations"):
            store.read_durations(part, self.SETTINGS)

    def test_durations_of_other_frames_are_never_written(self, part):
        with pytest.raises(ValueError, match="has 36 frames, and its durations sum to 35"):
            store.write_durations(part, [np.array([30, 2, 3])], self.SETTINGS)

    def test_an_interrupted_write_leaves_what_was_there(self, part, monkeypatch):
        path = self.write(part)

        def fail(file, **arrays):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(store.np, "savez", fail)
        with pytest.raises(KeyboardInterrupt):
            self.write(part, store.DurationSettings(16_000, 256, "t", "b"))
        assert store.find_durations(part).settings == self.SETTINGS
        assert list(path.parent.glob("*.partial")) == []


SETTINGS = store.DurationSettings(16_000, 160, "t", "a")  # frames of 10 ms


def test_times_of_words_are_those_of_their_letters():
    frames = np.array([5, *range(1, 12), 7])
    times = word_times(CharTokenizer("abc ,-"), "ab, c - bca", frames, SETTINGS)
    seconds = lambda start, stop: [(frames[:start].sum() - 0.5) / 100, (frames[:stop].sum() - 0.5) / 100]  # noqa: E731
    np.testing.assert_allclose(times[[0, 1, 3]], [seconds(1, 3), seconds(5, 6), seconds(9, 12)])
    assert np.isnan(times[2]).all()
    # Without the hyphen the tokens have a word fewer than the text.
    assert word_times(CharTokenizer("abc ,"), "ab, c - bca", frames[:-1], SETTINGS) is None


def test_times_of_words_by_pieces_and_by_phones():
    phones = train_phones(["hello, world", "twenty one."])
    ids = phones.encode("Hello, world")
    comma = [phones.pieces[token] for token in ids].index(",")
    times = word_times(phones, "Hello, world", np.full(len(ids) + 2, 2), SETTINGS)
    np.testing.assert_allclose(times[0], [0.015, (2 * (comma + 1) - 0.5) / 100])
    np.testing.assert_allclose(times[1], [(2 * (comma + 3) - 0.5) / 100, (2 * (len(ids) + 1) - 0.5) / 100])
    assert word_times(phones, "twenty-one", np.ones(99, int), SETTINGS) is None


class Speech(EvaluationSpeech):
    """The texts that `Heard` hears, as two batches."""

    def __init__(self, folder):
        self.index = read_index(
            write_spoken_set(folder, {"train": [(text, FRAMES * FRAME) for text in HEARD]}), "train"
        )

    def batches(self):
        return iter([[0, 1, 2], [3, 4, 5]])


def test_distances_of_word_boundaries_to_those_of_a_recognizer(tmp_path):
    # The recognizer hears "ab c" at 60 to 140 and 180 to 220 ms, "cab" at 100 to 220 ms, and "c a b" at 160 to 200, 240
    # to 280 and 320 to 360 ms. Row 1 has no text, row 3 no durations, row 4 is too long for the recognizer.
    rows = [[8, 4, 4, 10, 4, 10], [], [9, 4, 4, 5, 9], [], [40, *[1] * 120, 40], [17, 4, 4, 4, 4, 4, 3]]
    frames = store.PartDurations(np.cumsum([len(row) for row in rows]), np.concatenate(rows).astype(np.int32), SETTINGS)
    report = compare_part(frames, CharTokenizer("abc -"), Heard(), Speech(tmp_path / "set"))
    assert (report.utterances, report.words, report.skipped) == (3, 6, 3)
    for found, distances in ((report.starts, [15, 75, -15, 5, 5, 5]), (report.ends, [15, 75, -5, 5, 5, 5])):
        size = np.abs(distances)
        expected = np.median(size), size.mean(), np.mean(distances), 5 / 6
        np.testing.assert_allclose((found.median, found.mean, found.later, found.within), expected)


def test_distances_without_a_common_word_are_an_error():
    with pytest.raises(ValueError, match="no word has times in both"):
        compare([(np.array([[0.1, 0.2]]), np.full((1, 2), np.nan))])
    report = compare([(np.array([[0.1, 0.25]]), np.array([[0.15, 0.3001]]))])
    assert (report.starts.within, report.ends.within) == (1.0, 0.0)


def test_the_command_reports_the_distances(folder, capsys):
    write_run(folder / "ctc", tiny.experiment("ctc"), TOKENIZER)
    command = ["align", str(folder / "run"), "--sets", "voice:dev", f"--data-dir={folder / 'data'}"]
    assert cli.main([*command, f"--against={folder / 'ctc'}"]) == 0
    assert "2 words of 1 utterances, 0 left out" in capsys.readouterr().out
    (path,) = folder.glob("run/**/voice-dev-alignment/report.json")
    report = AlignmentReport.model_validate_json(path.read_text())
    assert (report.sets, report.split) == (("voice",), "dev")
    assert report.against.startswith(str(folder / "ctc"))
    assert 0 < report.starts.median < 500
    assert cli.main([*command, f"--against={folder / 'run'}"]) == USER_ERROR
    assert "which does not transcribe" in " ".join(capsys.readouterr().err.split())
