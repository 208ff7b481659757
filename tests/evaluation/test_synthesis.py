"""Judged speech: totals against naive computations, judges that fail, and what a row must have."""

import json
import math
import sys

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.core.errors import DataError
from jax_speechlm.cli import main
from jax_speechlm.evaluation import speech_distance, synthesis, synthesis_page, wer
from jax_speechlm.evaluation.judged_folders import judge_folders
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.normalizers import normalizer
from jax_speechlm.evaluation.synthesis import SpeechRow, SpokenText, judge_speech, measurement, write_clips
from jax_speechlm.evaluation.synthesis_report import SynthesisReport
from tests import trained_tones
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import write_run
from tests.evaluation.test_speech_distance import noise, voice

WORDS = ["red green blue", "grass sky", "fire", "snow night rose sand"]
HEARD = ["red queen blue", "grass sky fire", "", "snow night rose sand"]

FAKE = """
import json, os, sys
answers = json.load(open(sys.argv[1]))
print(json.dumps({"ready": {"fake " + sys.argv[2]: "1"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    row, name = request["audio"].split(os.sep)[-2:]
    answer = answers[int(row)][int(name.split(".")[0])]
    if answer == "crash":
        sys.exit("broken")
    print(json.dumps({"id": request["id"], **answer}), flush=True)
"""


@pytest.fixture
def fake_judges(tmp_path, monkeypatch):
    """Replaces judges by a program that gives prepared answers, by judge, row and utterance."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    real = JudgeSettings.command

    def install(**answers):
        def command(self, judge):
            if judge not in answers:
                return real(self, judge)
            file = tmp_path / f"{judge}.json"
            file.write_text(json.dumps(answers[judge]))
            return [sys.executable, str(program), str(file), judge]

        monkeypatch.setattr(JudgeSettings, "command", command)
        return JudgeSettings(judges=tuple(answers))

    return install


def texts_of(count: int, voices: int = 1) -> list[SpokenText]:
    return [SpokenText(f"u{n}", WORDS[n % 4], f"voice {n % voices}", "en") for n in range(count)]


def rows_of(texts, *names, samples=400) -> list[SpeechRow]:
    return [SpeechRow(name, {text.id: noise(n, samples) for n, text in enumerate(texts)}) for name in names]


@pytest.fixture
def no_distances(monkeypatch):
    """Leaves out the columns that take pitch."""
    monkeypatch.setattr(synthesis._Judgements, "_add_distances", lambda self, advance: None)


def test_errors_equal_those_of_recognizers(fake_judges, no_distances):
    texts = texts_of(40)
    said = [[{"text": text.text.title() + "."} for text in texts], [{"text": HEARD[n % 4]} for n in range(40)]]
    report = judge_speech(rows_of(texts, "natural", "model"), texts, fake_judges(whisper=said))
    natural, model = (row.measures for row in report.rows)
    assert report.normalizer == "whisper-english"
    assert [column.title for column in report.columns] == ["WER whisper, %", "CER whisper, %"]
    assert (natural["WER whisper"].value, natural["CER whisper"].value) == (0, 0)
    assert model["WER whisper"].value == pytest.approx(3 / 10)
    clean = normalizer("whisper-english")
    counts = wer.count(
        wer.align([clean(text.text) for text in texts], [clean(each["text"]) for each in said[1]], "word")
    )
    assert model["WER whisper"].interval == wer.bootstrap(counts)
    expected = wer.paired_bootstrap(np.concatenate([counts[:, :3] * 0, counts[:, 3:]], 1), counts)
    found = model["WER whisper"]
    assert (found.difference, found.difference_interval, found.p_value) == (
        pytest.approx(expected.value),
        pytest.approx(expected.interval),
        pytest.approx(expected.p_value),
    )
    assert natural["WER whisper"].difference is None
    assert report.utterances[1].transcripts["model"] == {"whisper": "grass sky fire"}
    assert report.utterances[1].sums["model"]["WER whisper"] == (1, 2)


def test_characters_of_scripts_without_spaces(fake_judges, no_distances):
    texts = [SpokenText("a", "今天 天气", "", "zh")]
    said = [[{"text": "今天天气"}]]
    report = judge_speech(rows_of(texts, "natural"), texts, fake_judges(whisper=said))
    assert report.normalizer == "basic"
    assert report.rows[0].measures["CER whisper"].value == 0


def test_scores_are_means_and_cosines_leave_the_same_text_out(fake_judges, no_distances):
    texts, rng = texts_of(5, voices=2), np.random.default_rng(0)  # voices 0 1 0 1 0
    vectors = rng.normal(size=(2, 5, 3))
    scores = rng.uniform(1, 5, (2, 5))
    names = "overall", "signal", "background", "p808"
    report = judge_speech(
        rows_of(texts, "natural", "model"),
        texts,
        fake_judges(
            dnsmos=[[{"scores": dict.fromkeys(names, score)} for score in row] for row in scores],
            resemblyzer=[[{"vector": vector.tolist()} for vector in row] for row in vectors],
        ),
    )
    for row, found in enumerate(report.rows):
        assert found.measures["DNSMOS"].value == pytest.approx(scores[row].mean())
        cosines = []
        for n in range(5):
            center = np.mean([vectors[0, m] for m in range(5) if m != n and m % 2 == n % 2], axis=0)
            own = vectors[row, n]
            cosines.append(center @ own / np.linalg.norm(center) / np.linalg.norm(own))
        assert found.measures["speaker cosine"].value == pytest.approx(np.mean(cosines))
    assert report.rows[1].measures["DNSMOS"].difference == pytest.approx(scores[1].mean() - scores[0].mean())
    assert report.rows[1].measures["DNSMOS"].p_value is None  # five utterances


def test_a_voice_with_one_text_has_no_cosine(fake_judges, no_distances):
    texts = texts_of(3, voices=3)
    answers = [[{"vector": [1.0, 0.0]}] * 3]
    report = judge_speech(rows_of(texts, "natural"), texts, fake_judges(resemblyzer=answers))
    assert report.rows[0].measures["speaker cosine"].value is None
    assert "| - |" in report.as_markdown()


def test_a_judge_that_fails_has_no_column_and_the_others_have(fake_judges, no_distances):
    texts = texts_of(2)
    good = [[{"text": text.text} for text in texts]] * 2
    crashes = [good[0], [{"text": ""}, "crash"]]
    settings = fake_judges(pocketsphinx=crashes, whisper=good)
    settings = settings.replace(judges=("pocketsphinx", "whisper", "dnsmos"), judge_python=sys.executable + "-absent")
    report = judge_speech(rows_of(texts, "natural", "model"), texts, settings)
    assert [column.judge for column in report.columns] == ["whisper", "whisper"]
    assert report.missing["pocketsphinx"] == "ended with status 1: broken"
    assert "does not start" in report.missing["dnsmos"]
    assert report.packages == {"fake whisper": "1"}
    assert "pocketsphinx has no column: ended with status 1: broken" in report.as_markdown()


def test_recordings_that_a_judge_cannot_judge_are_counted(fake_judges, no_distances):
    texts = texts_of(40)
    answers = [[{"text": text.text} for text in texts] for _ in range(2)]
    answers[1][3] = {"error": "no speech found"}
    answers[1][4] = {"text": "wrong"}
    report = judge_speech(rows_of(texts, "natural", "model"), texts, fake_judges(whisper=answers))
    assert report.failed == {"whisper": "1 of 80 recordings: no speech found"}
    found = report.rows[1].measures["WER whisper"]
    assert (found.utterances, found.value) == (39, pytest.approx(3 / 96))
    assert "(39 of 40)" in report.cell(report.rows[1], report.columns[0])


def test_measurements_equal_a_naive_bootstrap():
    rng = np.random.default_rng(0)
    sums = np.stack([rng.uniform(0, 4, 50), rng.integers(1, 9, 50)], axis=1).astype(float)
    natural = np.stack([rng.uniform(0, 4, 50), sums[:, 1]], axis=1)
    sums[7] = natural[9] = np.nan
    found = measurement(sums, natural, True)
    known = np.delete(sums, 7, axis=0)
    assert found.value == pytest.approx(math.sqrt(known[:, 0].sum() / known[:, 1].sum()))
    assert found.utterances == 49
    draws = [known[rng.integers(49, size=49)].sum(0) for _ in range(5_000)]
    np.testing.assert_allclose(
        found.interval, np.percentile([math.sqrt(a / b) for a, b in draws], [2.5, 97.5]), rtol=0.02
    )
    both = np.delete(np.stack([sums, natural]), [7, 9], axis=1)
    values = np.sqrt(both[:, :, 0].sum(1) / both[:, :, 1].sum(1))
    assert found.difference == pytest.approx(values[0] - values[1])
    differences = []
    for _ in range(5_000):
        (one, words), (two, others) = both[:, rng.integers(48, size=48)].sum(1)
        differences.append(math.sqrt(one / words) - math.sqrt(two / others))
    np.testing.assert_allclose(found.difference_interval, np.percentile(differences, [2.5, 97.5]), atol=0.01)
    few = measurement(sums[:20], natural[:20], False)
    assert few.difference is not None
    assert (few.interval, few.difference_interval, few.p_value) == (None, None, None)
    assert measurement(np.full((3, 2), np.nan), None, False).value is None


def test_distances_are_zero_for_a_copy_and_those_of_the_recordings_else(fake_judges):
    texts = texts_of(2)
    natural = {"u0": voice(120, 0.5), "u1": voice(200, 0.5)}
    higher = {"u0": voice(135, 0.5), "u1": voice(225, 0.5)}
    rows = [SpeechRow("natural", natural), SpeechRow("copy", dict(natural)), SpeechRow("higher", higher)]
    report = judge_speech(rows, texts, JudgeSettings(judges=()))
    own, copy, other = (row.measures for row in report.rows)
    assert all(measure.value is None for measure in own.values())
    assert [copy[name].value for name in ("MCD", "log F0", "voicing error")] == [0, 0, 0]
    assert other["log F0"].value == pytest.approx(math.log(9 / 8), abs=0.01)
    found = [
        speech_distance.distance(speech_distance.contours(natural[name]), speech_distance.contours(higher[name]))
        for name in natural
    ]
    total = sum(each.distortion for each in found) / sum(each.pairs for each in found)
    assert other["MCD"].value == pytest.approx(total, rel=0.01)  # 16 bits
    assert all(measure.difference is None for row in report.rows for measure in row.measures.values())


def test_clips_are_16_bits_at_16_khz_whatever_the_source(tmp_path):
    exact = np.array([0, 1, -32_768, 32_767, 5], np.int16)
    tone = np.sin(2 * np.pi * 200 * np.arange(24_000) / 24_000).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, tone], axis=1) / 2, 24_000)
    audio = {"int16": exact, "loud": np.array([2.0, -2.0]), "file": tmp_path / "a.flac", "none": np.zeros(0)}
    texts = [SpokenText(name, "") for name in audio]
    clips = write_clips(SpeechRow("model", audio), texts, tmp_path / "0")
    read = [soundfile.read(clip, dtype="int16") for clip in clips]
    assert {rate for _, rate in read} == {16_000}
    assert [samples[:5].tolist() for samples, _ in read[:2]] == [exact.tolist(), [32_767, -32_768, 0, 0, 0]]
    assert [len(samples) for samples, _ in read] == [1_600, 1_600, 16_000, 1_600]  # silence follows what is too short
    assert not read[0][0][5:].any()
    (clip,) = write_clips(SpeechRow("model", {"tone": tone / 2}, 24_000), [SpokenText("tone", "")], tmp_path / "1")
    samples = soundfile.read(clip)[0]
    expected = 0.5 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(samples[500:-500], expected[500:-500], atol=1e-3)
    with pytest.raises(DataError, match=r"model, bad: 1 samples are NaN"):
        write_clips(SpeechRow("model", {"bad": np.array([0.0, np.nan])}), [SpokenText("bad", "")], tmp_path / "2")


def test_rows_that_cannot_be_compared_are_refused():
    texts = texts_of(2)
    natural, model = rows_of(texts, "natural", "model")
    for rows, message in [
        ([model], "first row"),
        ([natural, model, model], "two rows have one name"),
        ([natural, SpeechRow("model", {"u1": model.audio["u1"]})], "model lacks 1 of 2 utterances, such as 'u0'"),
    ]:
        with pytest.raises(DataError, match=message):
            judge_speech(rows, texts, JudgeSettings(judges=()))
    with pytest.raises(DataError, match="nothing to judge"):
        judge_speech([natural], [], JudgeSettings(judges=()))


def test_report_and_page(fake_judges, tmp_path, capsys):
    texts = [SpokenText("a/<b>", "cats & dogs"), SpokenText("c", "birds")]
    rows = [SpeechRow("natural", {text.id: voice(150, 0.3) for text in texts})]
    rows.append(SpeechRow("<model>", rows[0].audio, real_time_factor=0.125, first_audio_ms=80.0))
    said = [[{"text": "cats and dogs"}, {"text": "birds"}], [{"text": "<i>"}, {"text": "birds"}]]
    settings = fake_judges(whisper=said).replace(judges=("whisper", "dnsmos"), judge_python=sys.executable + "-absent")
    out = tmp_path / "out"
    report = synthesis_page.judge_and_publish(rows, texts, settings, out, title="two texts")
    assert SynthesisReport.read(out / "report.json") == report
    table = (out / "table.md").read_text()
    assert "| <model> | 66.7 |" in table
    assert table.splitlines()[2].endswith("| real-time factor | first audio, ms |")
    assert "| 0.125 | 80 |" in table
    page = (out / "index.html").read_text()
    assert "<h3>a/&lt;b&gt;</h3>" in page
    assert "<i>" not in page
    assert "<del>dogs</del>" in page
    assert "<th>first audio, ms</th></tr>" in page
    assert "<td>0.125</td><td>80</td></tr>" in page
    for row in range(2):
        for number in range(2):
            assert f'src="audio/{row}/{number}.flac"' in page
            assert soundfile.info(out / "audio" / str(row) / f"{number}.flac").duration == pytest.approx(0.3)
    assert sorted(file.name for file in out.iterdir()) == ["audio", "index.html", "report.json", "table.md"]
    printed = capsys.readouterr().out
    assert "dnsmos has no column" in printed
    assert "speed" in printed
    synthesis_page.judge_and_publish(rows[:1], texts, settings, out)  # in the same folder
    assert [file.name for file in (out / "audio").iterdir()] == ["0"]


def test_folders_of_audio_beside_a_prepared_set(tmp_path, monkeypatch, capsys):
    data, copies = tmp_path / "data", tmp_path / "copies"
    clips = [(np.int16(20_000 * voice(pitch, 0.3)), "some words") for pitch in (120, 150, 180)]
    write_prepared(data / "tiny", {"test": clips})
    copies.mkdir()
    for number, (samples, _) in enumerate(clips[:2]):
        soundfile.write(copies / f"clip{number}.flac", samples, 16_000)
    none = JudgeSettings(judges=())
    options = {"sets": ("tiny",), "settings": none, "data_dir": data, "out": tmp_path / "out"}
    report = judge_folders((f"copy={copies}",), limit=2, **options)
    assert [row.name for row in report.rows] == ["natural", "copy"]
    assert [text.id for text in report.utterances] == ["clip0", "clip1"]
    assert report.utterances[1].speaker == "speaker1"
    assert report.title == "tiny test, first 2"
    assert report.rows[1].measures["MCD"].value == 0  # natural speech is that of the set
    for rows, message in [
        ((f"copy={copies}",), "copy lacks 1 of 3 utterances, such as 'clip2'"),
        (("copies",), "NAME=FOLDER"),
        (("a=absent",), "absent is not a folder"),
        ((f"a={tmp_path}",), r"has no audio of these utterances, such as clip0\.wav"),
    ]:
        with pytest.raises(DataError, match=message):
            judge_folders(rows, **options)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "judge",
        f"copy={copies}",
        "--vocoders",
        "griffin-lim",
        "--sets",
        "tiny:test",
        "--limit",
        "1",
        "--data-dir",
        str(data),
    ]
    assert main([*arguments, "--judges", "whisper"]) == 0
    assert "whisper has no column: no weights: name a folder by --whisper" in capsys.readouterr().out.replace("\n", " ")
    report = SynthesisReport.read(tmp_path / "judged" / "tiny:test-test" / "report.json")
    assert [row.name for row in report.rows] == ["natural", "copy", "griffin-lim copy"]
    assert [row.real_time_factor is None for row in report.rows] == [True, True, False]


def test_a_run_of_this_package_judges_too(tmp_path, no_distances):
    """Its transcripts are those of `load(run).transcribe`."""
    run = write_run(tmp_path / "run", trained_tones.EXPERIMENT, trained_tones.TOKENIZER)
    spoken = ["abc cab", "bca"]
    texts = [SpokenText(str(n), text) for n, text in enumerate(spoken)]
    audio = {str(n): trained_tones.speak(text)[0] for n, text in enumerate(spoken)}
    settings = JudgeSettings(judges=(), recognizer=run)
    report = judge_speech([SpeechRow("natural", audio)], texts, settings)
    transcripts = [each.text for each in jax_speechlm.load(run).transcribe([audio["0"], audio["1"]])]
    assert [text.transcripts["natural"]["recognizer"] for text in report.utterances] == transcripts
    counts = wer.count(wer.align(spoken, transcripts, "word"))
    assert report.rows[0].measures["WER recognizer"].value == wer.rate(counts)
