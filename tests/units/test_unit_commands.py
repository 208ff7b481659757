"""A unit language model by the commands that a user types, on tones: measured, continued, asked about pairs."""

import json

import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.storage.index import read_index
from data_pipelines.storage.units import Units, deduplicate, write_units
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.lm.units import UnitModel
from jax_speechlm.inference.unit_encoder import UnitEncoder
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.recipes.experiment import Experiment, UnitText
from jax_speechlm.units.features import MFCC
from tests.data_pipelines.spoken_sets import write_spoken_set
from tests.data_pipelines.unit_sets import label
from tests.evaluation.runs import save_run
from tests.objectives.text import MODEL, TOKENIZER

UNITS = 6
FEATURES = MFCC(mel=LogMel(num_mel_bins=20, stack=2))


def tones(seed: int, seconds: float = 0.6) -> np.ndarray:
    """int16, a melody of three tones and a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds / 3 * 16_000)) / 16_000
    melody = np.concatenate([np.sin(2 * np.pi * pitch * time) for pitch in rng.uniform(200, 3000, 3)])
    return (8000 * melody + rng.normal(0, 50, len(melody))).astype(np.int16)


def features(samples: np.ndarray) -> np.ndarray:
    """Of one recording by itself."""
    extractor = FEATURES.open()
    batch = {"audio": samples[None], "audio_length": np.array([len(samples)], np.int32)}
    batch |= {"example_id": np.zeros(1, np.int32), "weight": np.ones(1, np.float32)}
    x, length = extractor.extract(extractor.params, jax.device_put(batch))
    return np.asarray(x[0, : int(length[0])], np.float64)


def units_of(units: Units, samples: np.ndarray) -> np.ndarray:
    """The nearest centroid of each frame."""
    x = features(samples)
    return ((x[:, None] - units.centroids[None]) ** 2).sum(-1).argmin(-1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with units, a run, recordings and a labelled set."""
    root = tmp_path_factory.mktemp("place")
    frames = np.concatenate([features(tones(seed)) for seed in range(4)])
    centroids = frames[np.random.default_rng(0).permutation(len(frames))[:UNITS]].astype(np.float32)
    about = {"features": FEATURES.model_dump(mode="json")}
    units = Units(root / "units", centroids, FEATURES.mel.frame_samples, FEATURES.mel.context_samples, about)
    write_units(units)
    pairs = root / "tSC"
    pairs.mkdir()
    for number in range(6):
        name = f"{number}_{number // 2}_{'correct' if number % 2 else 'incorrect'}.wav"
        soundfile.write(pairs / name, tones(number, 0.5 + 0.1 * number), 16_000)
    write_spoken_set(root / "data" / "tones", {"test": [("a cab", 9000), ("bad", 12_000)]})
    label(read_index(root / "data" / "tones", "test"), units)
    data = UnitText(sets=("tones",), units=str(root / "units"), context=64, tokens_per_batch=64)
    experiment = Experiment(data=data, objective=UnitLM(num_units=UNITS), model=MODEL)
    save_run(root / "run", experiment, TOKENIZER, units.fingerprint)
    return root, units


def test_recordings_are_encoded_as_the_nearest_centroids_say_whatever_lies_beside_them(place):
    _, units = place
    recordings = [tones(seed, 0.3 + 0.2 * (seed % 3)) for seed in range(5)] + [np.zeros(50, np.int16)]
    found = UnitEncoder.load(units.path).encode(recordings)
    for samples, codes in zip(recordings[:-1], found, strict=False):
        x = features(samples)
        distance = ((x[:, None] - units.centroids[None].astype(np.float64)) ** 2).sum(-1)
        assert codes.tolist() == distance.argmin(-1).tolist()
        assert len(codes) == units.num_frames(len(samples))
    assert len(set(np.concatenate(found).tolist())) > 1
    assert len(found[-1]) == 0


def test_pairs_of_recordings_are_scored_by_their_units(place, capsys):
    root, units = place
    assert cli.main(["score-pairs", str(root / "run"), str(root / "tSC")]) == 0
    assert "minimal pairs (chance is 50 %)" in capsys.readouterr().out
    report = json.loads((root / "run" / "eval" / "spoken-pairs" / "report.json").read_text())
    model, wins = UnitModel.load(root / "run"), 0
    for story in range(3):
        score = {}
        for number in (2 * story, 2 * story + 1):
            codes = units_of(units, tones(number, 0.5 + 0.1 * number))
            score[number % 2] = -model.unit_nats([deduplicate(codes)[0]])[0].sum()
        wins += score[1] > score[0]
    assert report["total"]["accuracy"] == pytest.approx(wins / 3)
    assert report["total"]["pairs"] == 3


def test_questions_may_be_recordings_with_demonstrations_before_them(place, capsys):
    root, units = place
    (shown, asked), answers = (0, 1), ("a cab", "bad")
    for name, number in (("train", shown), ("test", asked)):
        audio = f"tSC/{number}_0_{'correct' if number else 'incorrect'}.wav"
        line = {"audio": audio, "answer": answers[number], "choices": answers}
        (root / f"{name}.jsonl").write_text(json.dumps(line))
    files = str(root / "test.jsonl"), "--train", str(root / "train.jsonl")
    assert cli.main(["few-shot", str(root / "run"), *files, "--shots", "1", "--separator", " "]) == 0
    report = json.loads((root / "run" / "eval" / "few-shot" / "report.json").read_text())
    model = UnitModel.load(root / "run")
    codes = [deduplicate(units_of(units, tones(number, 0.5 + 0.1 * number)))[0] for number in (shown, asked)]
    documents = [model.prompt([codes[0], " a cab ", codes[1], f" {answer} "]) for answer in answers]
    scores = [-nats.sum() for nats in model.lm.token_nll(documents)]
    assert report["results"][0]["accuracy"] == (scores[1] > scores[0])


def test_generate_continues_audio_as_json(place, capsys):
    root, _ = place
    wav = str(root / "tSC" / "0_0_incorrect.wav")
    run = ["generate", str(root / "run"), "--audio-prompts", wav, "--max-tokens", "5", "--temperature", "0"]
    assert cli.main([*run, "--modality", "units"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["audio"] == wav
    assert all(set(part) == {"units"} and all(0 <= unit < UNITS for unit in part["units"]) for part in line["parts"])
    assert cli.main([*run, "--modality", "text"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {name for part in line["parts"] for name in part} <= {"text"}
    assert cli.main(["generate", str(root / "run"), "a cab", "bad", "--max-tokens", "3"]) == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["a cab", "bad"]
    assert cli.main(["generate", str(root / "run"), "a", "b", "c", "--audio-prompts", wav]) == USER_ERROR
    assert "3 texts and 1 audio files" in capsys.readouterr().err


def test_eval_measures_speech_by_the_second_and_text_by_the_byte(place, capsys):
    root, units = place
    run = ["eval", str(root / "run"), f"--data-dir={root / 'data'}"]
    assert cli.main([*run, "--sets", "tones", "--text-sets", "tones"]) == 0
    report = json.loads((root / "run" / "eval" / "tones-test" / "report.json").read_text())
    seconds = sum(int(units.num_frames(samples)) for samples in (9000, 12_000)) * units.frame_samples / 16_000
    assert report["speech"]["seconds"] == pytest.approx(seconds)
    assert report["text"]["bytes"] == len("a cab") + len("bad")
    assert report["units"] == units.fingerprint
    assert "bits/second" in capsys.readouterr().out
    assert cli.main(run) == USER_ERROR
    assert "there is nothing to measure" in capsys.readouterr().err


def test_other_units_are_refused_by_every_command(place, capsys):
    root, units = place
    write_units(Units(root / "other", units.centroids + 1, units.frame_samples, units.context_samples, units.about))
    other = ["--units", str(root / "other")]
    wav = str(root / "tSC" / "0_0_incorrect.wav")
    for command in (
        ["score-pairs", str(root / "run"), str(root / "tSC")],
        ["generate", str(root / "run"), "--audio-prompts", wav],
        ["eval", str(root / "run"), "--sets", "tones", f"--data-dir={root / 'data'}"],
    ):
        assert cli.main([*command, *other]) == USER_ERROR
        assert "name the folder of the former with --units" in capsys.readouterr().err
