"""The whole way on audio of our own making, by the commands that a user types, from prepare to transcribe."""

import json

import jax
import numpy as np
import pytest
import soundfile

from data_pipelines.storage.index import read_index
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.segmentation import cut_at_pauses
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training import checkpoints as ckpt

RATE = 16_000
TONES = {"a": 300.0, "b": 800.0, "c": 1900.0}
SMALL = (
    *("--model.dim=16", "--model.num-layers=2", "--model.num-heads=2", "--objective.intermediate=1"),
    *("--data.sets", "tones", "--data.num-buckets=1", "--data.seconds-per-batch=8", "--data.batch-multiple=8"),
    *("--num-steps=2", "--loop.log-every=1"),
)


def spoken(text: str, rng: np.random.Generator) -> np.ndarray:
    """A "language" of one tone a letter, 0.2 s each, with a little noise."""
    time = np.arange(int(0.2 * RATE)) / RATE
    tone = np.concatenate([np.sin(2 * np.pi * TONES[letter] * time) for letter in text])
    return 0.3 * tone + 0.01 * rng.normal(size=len(tone))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a prepared set "tones" in data/, a pretrained and a finetuned run in runs/."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        text = "".join(rng.choice(list(TONES), rng.integers(3, 7)))
        soundfile.write(folder / f"{number}.wav", spoken(text, rng), RATE)
        split = {0: "test", 1: "dev"}.get(number % 5, "train")
        row = {"audio": f"{number}.wav", "text": text, "split": split, "speaker": f"s{number % 2}"}
        rows.append(row | {"translation": "" if number == 3 else f"{text[0]} ca"})
    (folder / "tones.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = [f"--data-dir={folder / 'data'}"]
    train = [*SMALL, f"--data.data-dir={folder / 'data'}"]
    assert cli.main(["prepare", f"--manifest={folder / 'tones.jsonl'}", *data]) == 0
    noise = ["--data.noise-set=tones:dev", "--frontend.augment.noise-probability=0.5"]
    pretrain = [option for option in train if "intermediate" not in option] + noise
    assert cli.main(["pretrain", f"--run-dir={folder / 'pretrain'}", *pretrain]) == 0
    start = ["--from", str(folder / "pretrain")]
    assert cli.main(["finetune", f"--run-dir={folder / 'finetune'}", *start, *train]) == 0
    return folder


def test_eval_writes_a_report_that_does_not_depend_on_batch_size(workplace, capsys):
    reports = []
    for seconds in ("2", "60"):
        out = workplace / f"eval-{seconds}"
        options = [f"--data-dir={workplace / 'data'}", f"--seconds-per-batch={seconds}", f"--out={out}"]
        assert cli.main(["eval", str(workplace / "finetune"), "--sets", "tones", *options]) == 0
        reports.append((out / "report.json").read_text())
        assert (out / "alignments.txt").stat().st_size > 0
    assert reports[0] == reports[1]
    report = json.loads(reports[0])
    assert report["normalizer"] == "basic"
    assert report["wer"]["utterances"] == 8
    assert set(report["speakers"]) == {"s0", "s1"}
    assert "WER" in capsys.readouterr().out
    paths = [str(workplace / f"eval-{seconds}" / "report.json") for seconds in ("2", "60")]
    assert cli.main(["compare", *paths]) == 0
    assert "+0.00" in capsys.readouterr().out


def test_transcribe_reads_any_rate_and_goes_on_after_a_bad_file(workplace, capsys):
    rng = np.random.default_rng(1)
    stereo = np.stack([spoken("abc", rng)] * 2, axis=1)
    soundfile.write(workplace / "stereo.ogg", stereo, 44_100)
    (workplace / "empty.wav").write_bytes(b"")
    files = [str(workplace / name) for name in ("empty.wav", "stereo.ogg")]
    assert cli.main(["transcribe", str(workplace / "finetune"), *files, "--format", "json"]) == USER_ERROR
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.out.splitlines())
    assert "empty file" in first["error"]
    assert second["error"] is None
    assert second["seconds"] == pytest.approx(len(stereo) / 44_100, abs=1e-3)
    assert "1 of 2 files" in captured.err


def test_a_pretrained_run_cannot_transcribe(workplace, capsys):
    assert cli.main(["transcribe", str(workplace / "pretrain"), "x.wav"]) == USER_ERROR
    assert "which does not transcribe" in capsys.readouterr().err


def test_a_long_recording_is_cut_into_parts_whose_texts_are_joined(workplace):
    rng = np.random.default_rng(2)
    soundfile.write(workplace / "long.wav", np.concatenate([spoken("abcabc", rng)] * 4), RATE)
    (transcript,) = Recognizer.load(workplace / "finetune").transcribe([workplace / "long.wav"], max_seconds=2.0)
    assert transcript.error is None
    assert transcript.seconds == pytest.approx(4.8)


def test_cuts_fall_into_pauses_and_lose_nothing():
    rng = np.random.default_rng(3)
    samples = (3000 * rng.normal(size=10 * RATE)).astype(np.int16)
    samples[int(3.0 * RATE) : int(3.4 * RATE)] = 0
    parts = cut_at_pauses(samples, 4.0)
    assert 3.0 * RATE <= len(parts[0]) <= 3.4 * RATE
    assert all(len(part) <= 4 * RATE for part in parts)
    assert np.array_equal(np.concatenate(parts), samples)


SPEECH_LM = """
from jax_speechlm.recipes.experiment import Experiment, Speech
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.recipes.common import CONFORMER_XS, MEL
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM


def config():
    model = SpeechLMConfig(
        encoder=CONFORMER_XS.replace(dim=16, num_layers=2, num_heads=2),
        adapter=Stacking(hidden_dim=16),
        transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16),
    )
    data = Speech(sets=("tones",), num_buckets=1, seconds_per_batch=8, batch_multiple=8)
    objective, front_end = SpeechLM(task="translate"), FrontEnd(mel=MEL)
    return Experiment(data=data, objective=objective, frontend=front_end, model=model, num_steps=2)
"""


def test_a_speech_language_model_translates(workplace, capsys):
    """Rows without a translation are left out of training and of the scores, and counted."""
    (workplace / "speech_lm.py").write_text(SPEECH_LM)
    run, data = workplace / "translate", workplace / "data"
    options = [f"--data.data-dir={data}", f"--run-dir={run}", f"--from={workplace / 'finetune'}"]
    assert cli.main(["finetune", f"--config={workplace / 'speech_lm.py'}", *options]) == 0
    assert "1 no_tokens" in capsys.readouterr().out
    assert cli.main(["eval", str(run), "--sets", "tones", f"--data-dir={data}", f"--out={workplace / 'bleu'}"]) == 0
    assert "BLEU" in capsys.readouterr().out
    report = json.loads((workplace / "bleu" / "report.json").read_text())
    assert report["scored"] == len(report["utterances"]) == 8
    assert {len(each["reference"]) for each in report["utterances"]} == {4}
    assert cli.main(["translate", str(run), str(workplace / "0.wav")]) == 0
    assert cli.main(["transcribe", str(run), str(workplace / "0.wav")]) == USER_ERROR
    assert "was trained to translate, not to transcribe: use jax-speechlm translate" in capsys.readouterr().err


FAST = """
from jax_speechlm.recipes.demo import fast_conformer
from jax_speechlm.recipes.experiment import LoopConfig, Speech
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine


def config():
    experiment = fast_conformer.config()
    mel = experiment.frontend.mel.replace(num_mel_bins=16)
    model = experiment.model.replace(
        input_dim=16, dim=16, num_layers=2, num_heads=2, channels=8, subsampling=8, dropout=0.0
    )
    return experiment.replace(
        data=Speech(sets=("tones",), num_buckets=1, seconds_per_batch=16, batch_multiple=8),
        frontend=experiment.frontend.replace(mel=mel),
        model=model,
        objective=experiment.objective.replace(intermediate=()),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-2, warmup_steps=5)),
        num_steps=24,
        loop=LoopConfig(log_every=4),
    )
"""


@pytest.mark.slow
def test_a_fast_conformer_learns_and_is_used_like_any_other(workplace, capsys):
    """Letters of 0.2 s, frames of 80 ms: everything that counts frames has to know of the subsampling."""
    (workplace / "fast.py").write_text(FAST)
    run, data = workplace / "fast", workplace / "data"
    assert (
        cli.main(["finetune", f"--config={workplace / 'fast.py'}", f"--data.data-dir={data}", f"--run-dir={run}"]) == 0
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["part"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert {line["infeasible"] for line in lines if line["part"] == "train"} == {0}
    reports = []
    for seconds in ("2", "60"):
        options = [f"--data-dir={data}", f"--seconds-per-batch={seconds}", f"--out={workplace / seconds}"]
        assert cli.main(["eval", str(run), "--sets", "tones", *options]) == 0
        reports.append((workplace / seconds / "report.json").read_text())
    assert reports[0] == reports[1]
    (workplace / "0.txt").write_text("abc")
    assert cli.main(["align", str(run), str(workplace / "0.wav"), "--format=json", f"--out={workplace}"]) == 0
    (aligned,) = map(json.loads, (workplace / "words.jsonl").read_text().splitlines())
    assert 0 < aligned["words"][-1]["end"] <= aligned["seconds"] + 0.08
    vectors = workplace / "fast.npz"
    assert cli.main(["embed", str(run), str(workplace / "0.wav"), f"--out={vectors}", "--frames"]) == 0
    embedded = np.load(vectors)
    assert embedded["frame_seconds"] == 0.08
    assert embedded["lengths"].sum() == -(-(soundfile.info(workplace / "0.wav").frames // 160) // 8)
    units = ["units", "fit", "--sets", "tones", f"--out={workplace / 'units'}", f"--data-dir={data}"]
    assert cli.main([*units, f"--checkpoint={run}", "--layer=1"]) == USER_ERROR
    assert "a fast_conformer has fewer frames" in capsys.readouterr().err


def test_self_training_goes_on_from_its_own_transcripts(workplace, capsys):
    """In one command: the surest half of the test split becomes a set, and training goes on with it."""
    run, data = workplace / "finetune", workplace / "data"
    options = ["--sets", "tones", "--split", "test", "--out", "pseudo", f"--data-dir={data}", "--share", "0.5"]
    texts = Recognizer.load(run)
    assert cli.main(["self-train", str(run), *options, "--min-confidence", "1"]) == USER_ERROR
    assert "reaches --min-confidence" in capsys.readouterr().err
    assert cli.main(["self-train", str(run), *options, f"--run-dir={workplace / 'self'}"]) == 0
    index = read_index(data / "pseudo-tones", "test")
    written = index.column("text").to_pylist()
    assert sum(bool(text) for text in written) == 4
    heard = EvaluationSpeech(texts, ("tones",), "test", data, 60.0)
    spelled = texts.recognize(heard.batches())
    assert all(text in ("", spelled[row]) for row, text in enumerate(written))
    experiment = Experiment.read(workplace / "self" / "config.json")
    assert experiment.data.sets == ("tones", "pseudo-tones:test")
    assert experiment.init_from[0].checkpoint.startswith(str(run / "checkpoints"))


def test_mistakes_on_the_command_line_say_what_to_do(capsys):
    assert cli.main(["pretain"]) == 2
    assert "no command 'pretain'" in capsys.readouterr().err
    assert cli.main(["pretrain", "--config", "demo_pretrian"]) == USER_ERROR
    assert "Did you mean 'demo/pretrain'" in capsys.readouterr().err
    assert cli.main(["pretrain", "--data.sets", "nowhere"]) == USER_ERROR
    assert "nowhere" in capsys.readouterr().err


def test_noise_needs_a_set_and_a_probability(workplace, capsys):
    sets = ["--data.sets", "tones", f"--data.data-dir={workplace / 'data'}", f"--run-dir={workplace / 'noisy'}"]
    for option in ("--data.noise-set=tones", "--frontend.augment.noise-probability=0.5"):
        assert cli.main(["pretrain", *sets, option]) == USER_ERROR
        assert "set both to mix noise in, or neither" in capsys.readouterr().err


def test_checkpoints_are_averaged_and_an_ensemble_of_one_model_is_that_model(workplace, capsys):
    run, data = workplace / "finetune", f"--data-dir={workplace / 'data'}"
    average = str(workplace / "average")
    assert cli.main(["average", str(run), "--last=1", f"--out={average}"]) == 0
    assert "averaged 1 checkpoints" in capsys.readouterr().out
    reports = {}
    for name, arguments in {"one": [str(run)], "mean": [average], "both": [str(run), f"--ensemble={average}"]}.items():
        out = workplace / f"averaged-{name}"
        assert cli.main(["eval", *arguments, "--sets", "tones", data, f"--out={out}"]) == 0
        reports[name] = json.loads((out / "report.json").read_text())
    assert f"ensemble of {run / 'checkpoints' / '2'}, {average}/checkpoints/2" in reports["both"].pop("decoder")
    assert reports["one"].pop("decoder") == reports["mean"].pop("decoder") == "greedy"
    assert reports["one"] == reports["mean"] == reports["both"]
    assert cli.main(["transcribe", str(run), str(workplace / "0.wav"), f"--ensemble={average}"]) == 0
    assert cli.main(["average", str(run), f"--out={average}"]) == USER_ERROR
    assert "holds checkpoints already" in capsys.readouterr().err
    assert cli.main(["average", f"--out={average}"]) == USER_ERROR
    assert "name a run's directory" in capsys.readouterr().err


def saved_bytes(run):
    """Of the parameters that a checkpoint holds; what its files take besides depends on how they were written."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(ckpt.read(ckpt.find(run)).state["params"]))


def test_a_quantized_model_is_a_small_folder_that_is_used_like_a_run(workplace, capsys):
    run, data = workplace / "finetune", f"--data-dir={workplace / 'data'}"
    plain = workplace / "plain"
    assert cli.main(["average", str(run), f"--out={plain}"]) == 0
    size = {None: saved_bytes(plain)}
    for kind in ("int8", "int8_dynamic", "int4"):
        out = workplace / kind
        assert cli.main(["quantize", str(run), f"--out={out}", f"--kind={kind}"]) == 0
        size[kind] = saved_bytes(out)
        assert cli.main(["eval", str(out), "--sets", "tones", data, f"--out={workplace / 'eval-quantized'}"]) == 0
    assert size["int4"] < size["int8"] < size[None]
    assert cli.main(["transcribe", str(out), str(workplace / "0.wav")]) == 0
    assert "MB, training state included" in capsys.readouterr().out
    # All else reads what the integers stand for.
    start = [f"--from={out}", f"--run-dir={workplace / 'from-quantized'}", *SMALL, f"--data.{data[2:]}"]
    assert cli.main(["finetune", *start]) == 0
    assert cli.main(["quantize", str(out), f"--out={workplace / 'again'}"]) == USER_ERROR
    assert "is already quantized" in capsys.readouterr().err
    assert cli.main(["quantize", str(run), f"--out={workplace / 'odd'}", "--kind=int4", "--group=3"]) == USER_ERROR
    assert "must be even" in capsys.readouterr().err


DISTILL = """
from jax_speechlm.recipes.demo.finetune import config as teacher
from jax_speechlm.objectives.distillation import Distillation, Teacher


def config():
    return teacher().replace(objective=Distillation(teachers=(Teacher(checkpoint="nowhere", layers=((1, 2),)),)))
"""


def test_a_recognizer_teaches_a_smaller_one(workplace, capsys):
    (workplace / "distill.py").write_text(DISTILL)
    config, run = [f"--config={workplace / 'distill.py'}"], workplace / "student"
    settings = [option for option in SMALL if "intermediate" not in option and "model" not in option]
    settings += [
        "--model.dim=8",
        "--model.num-layers=1",
        "--model.num-heads=2",
        f"--data.data-dir={workplace / 'data'}",
    ]
    train = ["finetune", *config, f"--run-dir={run}", *settings]
    assert cli.main(train) == USER_ERROR
    assert "nowhere: there is no such folder. Give" in capsys.readouterr().err
    teacher = f"--objective.teachers.0.checkpoint={workplace / 'finetune'}"
    assert cli.main([*train, teacher]) == 0
    assert "divergence" in (run / "metrics.jsonl").read_text()
    data = f"--data-dir={workplace / 'data'}"
    assert cli.main(["eval", str(run), "--sets", "tones", data, f"--out={workplace / 'eval-student'}"]) == 0
    assert cli.main(["finetune", *config, f"--run-dir={workplace / 'next'}", *settings, teacher, f"--from={run}"]) == 0
