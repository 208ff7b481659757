"""Exported folders in the hands of plain transformers: what `export --to hf` promises, on tiny random models."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import soundfile

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.speech_lm import SpeechLanguageModel
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.interop import folders
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.registry import package, write_model
from jax_speechlm.interop.hf.tokenizer_files import ctc_files, text_files
from tests.golden.make_tokenizers import CORPUS, KINDS, TEXTS, train
from tests.interop.tiny_runs import FORMER, RUNS, save, tiny_run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

CASES = [(name, {}) for name in RUNS] + [("ctc", {"stack": 4}), ("classification", {"stack": 3})]


@pytest.mark.parametrize(("name", "mel"), CASES, ids=lambda value: str(value))
def test_every_kind_passes_its_whole_check(tmp_path, name, mel):
    verdict = write_checked(tiny_run(name, **mel), tmp_path / "out")
    assert verdict.is_full
    assert not verdict.failed
    assert {"opens", "parameters", "settings"} < {check.name for check in verdict.checks}
    assert "gave what the checkpoint gives" in (tmp_path / "out" / "README.md").read_text()


TAMPERINGS = {
    "a weight": ("logits", "ctc"),
    "an epsilon": ("logits", "ctc"),
    "an array too many": ("opens", "ctc"),
    "two letters": ("ids", "ctc"),
    "mel bins": ("front end", "ctc"),
    "a class": ("class", "classification"),
    "a frame's class": ("classes", "frames"),
    "a speaker": ("speakers", "speaker"),
    "a dilation": ("vectors", "speaker"),
    "a layer over time": ("vectors", "dilated speaker"),
    "a unit": ("ids", "unit_lm"),
    "what never follows": ("continuation", "unit_lm"),
    "an angle": ("logits", "masked_lm"),
    "what stands for speech": ("ids", "speech_lm"),
    "a projection": ("logits", "speech_lm"),
    "a dilation of a block": ("samples", "vocoder"),
    "a lower edge": ("front end", "vocoder"),
    "an activation": ("answer", "speech_lm"),
    "a decoder": ("ids", "speech_lm"),
    "a boundary": ("ids", "tts"),
    "a duration": ("durations", "tts"),
    "a postnet": ("spectrogram", "tts"),
    "a speaker's vector": ("pipeline", "speakers"),
    "a code": ("codes", "codec"),
    "a length of a kernel": ("codes", "codec"),
    "an output": ("samples", "codec"),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_the_check_sees(tmp_path, tampering):
    """What our own reading would not: the folder is compared by transformers alone."""
    from jax_speechlm.interop.hf.verify.table import compare

    fails, name = TAMPERINGS[tampering]
    run = tiny_run(name)
    made = package(run)
    config, arrays, files = dict(made.config), dict(made.arrays), json.loads(json.dumps(made.files))
    match tampering:
        case "a weight":
            arrays["lm_head.weight"] = arrays["lm_head.weight"] + np.float32(1e-3)
        case "an epsilon":
            config["layer_norm_eps"] = 1e-3
        case "an array too many":
            arrays["more"] = np.zeros(3, np.float32)
        case "two letters":
            files["vocab.json"] |= {"a": files["vocab.json"]["b"], "b": files["vocab.json"]["a"]}
        case "mel bins":
            files["preprocessor_config.json"] |= {"num_mel_bins": 19, "feature_size": 19}
        case "a class" | "a frame's class" | "a speaker":
            config["id2label"] = {number: "other" for number in config["id2label"]}
        case "a dilation":
            config["tdnn_dilation"] = [1, 2]
        case "a layer over time":
            arrays["tdnn.1.kernel.weight"] = arrays["tdnn.1.kernel.weight"][:, ::-1].copy()
        case "a unit":
            vocab = files["tokenizer.json"]["model"]["vocab"]
            vocab |= {"<unit_1>": vocab["<unit_2>"], "<unit_2>": vocab["<unit_1>"]}
        case "what never follows":
            files["generation_config.json"]["suppress_tokens"] = None
        case "what stands for speech":
            config["audio_token_id"] -= 2
        case "a projection":
            name = "multi_modal_projector.linear_2.weight"
            arrays[name] = arrays[name] + np.float32(1e-2)
        case "a dilation of a block":
            config["resblock_dilation_sizes"] = [[1, 3], [1]]
        case "a lower edge":
            files["preprocessor_config.json"] |= {"fmin": 120}
        case "a decoder":
            files["tokenizer.json"]["decoder"] = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
        case "an activation":
            config["projector_hidden_act"] = "sigmoid"
        case "a boundary":
            files["tokenizer.json"]["post_processor"]["single"].pop()
        case "a duration":
            name = "duration_predictor.linear.bias"
            arrays[name] = arrays[name] + np.float32(0.5)
        case "a postnet":
            name = "speech_decoder_postnet.layers.2.batch_norm.bias"
            arrays[name] = arrays[name] + np.float32(1e-2)
        case "a speaker's vector":
            name = "speaker_id_embedding.weight"
            arrays[name] = arrays[name][::-1].copy()
        case "a code":
            name = "encoder_model.quantizer.codebook.embed"
            arrays[name] = arrays[name][::-1].copy()
        case "a length of a kernel":
            name = "encoder_model.encoder.layers.0.conv.parametrizations.weight.original0"
            arrays[name] = 2 * arrays[name]
        case "an output":
            arrays["head.linear.bias"] = arrays["head.linear.bias"] + np.float32(1e-2)
        case "an angle":
            config["rope_parameters"]["full_attention"]["rope_theta"] = 100.0
    write_model(tmp_path, made._replace(config=config, arrays=arrays, files=files))
    checks = {check.name: check.passed for check in compare(tmp_path, run, made, (), ())}
    assert not checks[fails]


def test_a_folder_that_fails_later_is_marked(tmp_path, capsys):
    save(tmp_path / "run", tiny_run("ctc"))
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert "equal, against transformers" in capsys.readouterr().out
    vocab = folders.read_json(out, "vocab.json")
    folders.write_json(out, "vocab.json", vocab | {"a": vocab["b"], "b": vocab["a"]})
    assert cli.main(["export", str(tmp_path / "run"), "--check", str(out)]) == USER_ERROR
    assert "do not use it" in capsys.readouterr().err
    assert "**FAILED**" in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["char", "unigram"])
def test_the_pipeline_gives_our_greedy_transcript(tmp_path, kind):
    """Of files, by a run's folder and by an exported one; each clip ends where a vector does."""
    save(tmp_path / "run", tiny_run("ctc", train(kind, with_lines=False)))
    out = tmp_path / "out"
    rng, clips = np.random.default_rng(3), []
    for vectors in (20, 33, 50):
        clips.append((3000 * rng.standard_normal(400 + 160 * (2 * vectors - 1))).astype(np.int16))
        soundfile.write(tmp_path / f"{vectors}.wav", clips[-1], 16_000)
    files = sorted(tmp_path.glob("*.wav"))
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(out), "--audio", *map(str, files)]) == 0
    processor = transformers.AutoProcessor.from_pretrained(out)
    assert type(processor).__name__ == "Wav2Vec2BertProcessor"
    assert processor(text=CORPUS[0])["input_ids"] == train(kind, with_lines=False).encode(CORPUS[0])
    texts = [transcript.text for transcript in Recognizer.load(tmp_path / "run").transcribe(files)]
    recognize = transformers.pipeline("automatic-speech-recognition", model=str(out), device="cpu")
    heard = [recognize({"raw": clip / np.float32(32768), "sampling_rate": 16_000})["text"] for clip in clips]
    assert [" ".join(text.split()) for text in heard] == texts
    assert len(set(texts)) == 3
    if shutil.which("ffmpeg"):
        assert [recognize(str(file))["text"] for file in files] == heard
    if kind == "char":
        words = recognize({"raw": clips[0] / np.float32(32768), "sampling_rate": 16_000}, return_timestamps="word")
        assert " ".join(chunk["text"] for chunk in words["chunks"]).split() == texts[0].split()


@pytest.mark.parametrize("name", ["qwen3", "unit_lm"])
def test_generate_gives_our_greedy_continuation(tmp_path, name):
    run = tiny_run(name)
    write_checked(run, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompts = ["the water ran", "", "it's a way"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    found = model.generate(**inputs, max_new_tokens=15)
    num_units = getattr(run.experiment.objective, "num_units", 0)
    lm = LanguageModel(run.experiment.model, run.tokenizer, run.params, 64, num_units=num_units)
    ours = lm.continue_ids([tokenizer(prompt)["input_ids"] for prompt in prompts], GREEDY, max_tokens=15)
    for row, expected in zip(found[:, inputs["input_ids"].shape[1] :].tolist(), ours, strict=True):
        assert row[: expected.length[0]] == expected.tokens[0, : expected.length[0]].tolist()
    if not num_units:
        texts = [each.text for (each,) in lm.generate(prompts, GREEDY, max_tokens=15)]
        theirs = tokenizer.batch_decode(found, skip_special_tokens=True)
        assert [prompt + text for prompt, text in zip(prompts, texts, strict=True)] == theirs


@pytest.mark.parametrize("name", ["speech_lm", "speech_lm of windows"])
def test_the_program_on_the_card_of_a_speech_language_model_gives_our_answer(tmp_path, capsys, name):
    """To clips of whole windows of the adapter, if the model has no windows of its own: others are filled up there."""
    from jax_speechlm.interop.hf.verify.speech_lm import samples_of

    run = tiny_run(name)
    save(tmp_path / "run", run)
    write_checked(run, tmp_path / "out")
    (program,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    ours, window, answers = SpeechLanguageModel.load(tmp_path / "run"), FORMER.ffn_multiple, set()
    for number, windows in enumerate((3, 8)):
        mel = run.experiment.frontend.mel
        samples = samples_of(mel, windows * window) if isinstance(mel, LogMel) else 3000 * windows
        clip = (3000 * np.random.default_rng(number).standard_normal(samples)).astype(np.int16)
        (expected,) = ours.generate([clip], GREEDY)[0]
        capsys.readouterr()
        exec(program.replace("FOLDER", str(tmp_path / "out")), {"samples": clip / np.float32(32768)})
        assert capsys.readouterr().out == f"{expected.text}\n"
        answers.add(expected.text)
    assert len(answers) == 2


def opened(folder, files, model_type):
    for name, value in (files | {"config.json": {"model_type": model_type}}).items():
        folders.write_json(folder, name, value)
    return transformers.AutoTokenizer.from_pretrained(folder)


ODD = "éàüñçłß ﬁ½№①Ａ\u00a0\u2003\t日本語 한글 \u0301\u0323ẽṩ ạ́ 😀 ▁ — “”… Ω\u2028\x85'"


def random_text(rng):
    """A stretch of the corpus with odd characters strewn in, or nothing but these."""
    corpus = "\n".join(CORPUS)
    start, length = rng.randrange(len(corpus)), rng.randrange(60)
    text = list(corpus[start : start + length]) if rng.random() < 0.8 else []
    for _ in range(rng.choice((0, 0, 3, 12))):
        text.insert(rng.randrange(len(text) + 1), rng.choice(ODD + "  \n\n"))
    return "".join(text)


@pytest.mark.parametrize("with_lines", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_of_every_kind_of_tokenizer(tmp_path, kind, with_lines):
    tokenizer, rng = train(kind, with_lines=with_lines), random.Random(0)
    vocabulary = Vocabulary.of(tokenizer, num_sentinels=2, num_units=3)
    theirs = opened(tmp_path, text_files(tokenizer, vocabulary, 64, causal=True), "qwen3")
    both_ways = opened(tmp_path, text_files(tokenizer, vocabulary, 64, causal=False), "modernbert")
    for text in (*TEXTS, *(random_text(rng) for _ in range(400))):
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == [vocabulary.boundary, *ids], text
        assert both_ways(text)["input_ids"] == vocabulary.enclose(ids), text
        assert theirs.decode(vocabulary.enclose(ids), skip_special_tokens=True) == tokenizer.decode(ids), text
    units = theirs.convert_tokens_to_ids(["<speech>", "<unit_2>", "<extra_id_1>"])
    assert units == [vocabulary.speech, vocabulary.first_unit + 2, vocabulary.sentinel + 1]


@pytest.mark.parametrize("kind", [*KINDS, "hindi", "yoruba"])
def test_ctc_paths_spell_the_same(tmp_path, kind):
    alphabets = {"hindi": " कखगनरज\u093cािी्", "yoruba": " abeo\u0301\u0300nṣẹọ"}  # letters and marks that join
    tokenizer = CharTokenizer(alphabets[kind]) if kind in alphabets else train(kind, with_lines=False)
    theirs, rng = opened(tmp_path, ctc_files(tokenizer), "wav2vec2-bert"), random.Random(0)
    assert (theirs.pad_token_id, len(theirs)) == (0, tokenizer.vocab_size)
    texts = ["कऩ ज़ा", "ẹ́ ọ̀nà"] if kind in alphabets else [random_text(rng).replace("\n", " ") for _ in range(100)]
    for text in texts:
        path = [
            number
            for each in tokenizer.encode(text)
            for number in (each,) * rng.randrange(1, 3) + (0,) * rng.randrange(3)
        ]
        (ids,) = collapse(np.array([path], np.int32).reshape(1, -1))
        assert theirs.decode(path, skip_special_tokens=False).split() == tokenizer.decode(ids).split()
