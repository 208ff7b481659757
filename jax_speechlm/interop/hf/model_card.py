"""The README.md of an exported folder: the model, its training data, its results, and the check of the folder."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import AnyPath, as_path
from data_pipelines.core.tokenizer import PHONES
from data_pipelines.storage.units import read_units
from jax_speechlm.evaluation.report import TOO_FEW, EvaluationReport
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.inference.asr.speech_lm import SPARE_TOKENS, TOKENS_PER_SECOND
from jax_speechlm.interop.hf import hifigan
from jax_speechlm.interop.hf.registry import READERS, Package, audio_token, ids_in_folder
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.recipes.experiment import Experiment, Mixture, UnitText
from jax_speechlm.training.runs import LoadedRun

_USES = {
    "AutoModel": ("feature-extraction", "hidden = model(**inputs).last_hidden_state"),
    "AutoModelForPreTraining": ("feature-extraction", "hidden = model(**inputs).hidden_states"),
    "AutoModelForCTC": ("automatic-speech-recognition", '"clip.wav"'),
    "AutoModelForAudioClassification": ("audio-classification", '"clip.wav"'),
    "AutoModelForAudioFrameClassification": (
        "voice-activity-detection",
        "classes = [model.config.id2label[int(frame)] for frame in model(**inputs).logits[0].argmax(-1)]",
    ),
    "AutoModelForAudioXVector": (
        "speaker-verification",
        "vector = model(**inputs).embeddings[0]  # torch.cosine_similarity of two says how alike they are",
    ),
    "AutoModelForCausalLM": ("text-generation", '"In the", max_new_tokens=50'),
    "AutoModelForMaskedLM": ("fill-mask", '"In the <mask>"'),
    "AutoModelForSequenceClassification": ("text-classification", '"In the beginning"'),
    "AutoModelForTokenClassification": ("token-classification", '"In the beginning"'),
    "AutoModelForQuestionAnswering": ("question-answering", None),
    "AutoModelForSpeechSeq2Seq": ("audio-text-to-text", None),
    "AutoModelForRNNT": ("automatic-speech-recognition", None),
    "AutoModelForTextToSpectrogram": ("text-to-speech", None),
    **dict.fromkeys(hifigan.ARCHITECTURES, ("audio-to-audio", None)),
}
"""By the class of transformers that opens a model: the hub's name of its task (`pipeline_tag`), and the arguments of
its pipeline or the line that computes its output."""

_TEXT_MODEL = """\
import torch
from transformers import AutoTokenizer, {auto}

tokenizer, model = (kind.from_pretrained("FOLDER") for kind in (AutoTokenizer, {auto}))
with torch.no_grad():
    outputs = model(**tokenizer({texts}, return_tensors="pt"))
{what}"""
_TEXT_USES = {
    "AutoModel": ('"a text"', "vector = outputs.last_hidden_state.mean(1)"),
    "AutoModelForQuestionAnswering": (
        '"a question?", "a text"', "start, end = outputs.start_logits.argmax(-1), outputs.end_logits.argmax(-1)"
    ),
}  # fmt: skip
"""Of classes of text models without a pipeline: the tokenizer's arguments, and the use of the outputs."""

_TASKS = {WavTokenizerConfig: "audio-to-audio", EncoderDecoderConfig: "automatic-speech-recognition"}
"""The hub's names of the tasks of models that a class opens which opens others too."""

_RATE = f"{DEFAULT_SAMPLE_RATE:_}"  # Hz, as Python code
_AUDIO_MODEL = """\
from transformers import AutoFeatureExtractor, {auto}

extractor, model = (kind.from_pretrained("FOLDER") for kind in (AutoFeatureExtractor, {auto}))
# float samples in [-1, 1)
inputs = extractor(samples, sampling_rate={rate}, return_tensors="pt"{options})
{what}"""
_SPOKEN = """\
import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

kinds = AutoFeatureExtractor, AutoTokenizer, AutoModelForSpeechSeq2Seq
extractor, tokenizer, model = (kind.from_pretrained("FOLDER") for kind in kinds)
# float samples in [-1, 1), of one clip{filled}
features = extractor(samples, sampling_rate={rate}, return_tensors="pt"{options})["input_features"]
speech = [{audio_token}] * {vectors}
prompt = torch.tensor([[*{before}, *speech, *{behind}]])
most = len(samples) * {per_second} // {rate} + {spare}  # tokens, as many as jax_speechlm allows
written = model.generate(input_ids=prompt, input_features=features, max_new_tokens=most)
print(tokenizer.decode(written[0, prompt.shape[1]:], skip_special_tokens=True))"""
_VOCODER = """\
import torch
from transformers import AutoFeatureExtractor, {auto}

extractor, model = (kind.from_pretrained("FOLDER") for kind in (AutoFeatureExtractor, {auto}))
# float samples in [-1, 1) to a mel spectrogram, and back
mel = extractor(audio_target=samples, sampling_rate={rate}, return_tensors="pt").input_values
with torch.no_grad():
    again = model(mel)[0]"""
_HELLO = {"phones": "HH AH0 L OW1 / W ER1 L D", "ipa": "həlˈoʊ wˈɜːld"}
_VOICE = """\
{imports}from transformers import SpeechT5HifiGan, pipeline

vocoder = SpeechT5HifiGan.from_pretrained("VOCODER_FOLDER")
speak = pipeline("text-to-speech", model="FOLDER", vocoder=vocoder)
speech = speak({text}{options})
# speech["audio"] has float samples in [-1, 1], speech["sampling_rate"] of them a second"""
_CODEC = """\
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor, model = (kind.from_pretrained("FOLDER") for kind in (AutoFeatureExtractor, AutoModel))
# float samples in [-1, 1)
inputs = extractor(samples, sampling_rate={rate}, return_tensors="pt")
with torch.no_grad():
    codes = model.encode(inputs["input_values"]).audio_codes  # [1, 1, codes]
    audio = model.decode(codes).audio_values  # [1, 1, {hop} * codes]"""
_TRANSDUCER = """\
from transformers import AutoModelForRNNT, AutoProcessor

processor, model = (kind.from_pretrained("FOLDER") for kind in (AutoProcessor, AutoModelForRNNT))
processor.set_num_lookahead_tokens({lookahead})  # of {supported}: frames of {frame_ms:g} ms
# float samples in [-1, 1)
ids = model.generate(**processor(samples, sampling_rate={rate})).sequences[0].tolist()
print(processor.decode([id_ for id_ in ids if id_ != model.config.blank_token_id]))"""
_PIPELINE = """\
from transformers import pipeline

print(pipeline("{task}", model="FOLDER")({argument}))"""


def model_card(run: LoadedRun, made: Package, record: Mapping[str, Any]) -> str:
    """Returns the text of the README.md, given the run's form and `jax_speechlm.json` with the verdict of the check."""
    auto, experiment = READERS[made.architecture].auto_class, run.experiment
    tag = _TASKS.get(type(experiment.model), _USES[auto][0])
    head = {"library_name": "transformers", "pipeline_tag": tag, "tags": ["jax_speechlm"]}
    size = sum(array.size for array in jax.tree.leaves(made.params))
    parts = [
        "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()) + "\n---",
        f"# {made.architecture} by jax_speechlm",
        f"Trained by the objective `{experiment.objective.kind}`; {size:,} parameters, float32; checkpoint of step "
        f"{run.step:,}.",
        f"```python\n{_program(run, auto)}\n```",
        *_notes(run),
        "## Check\n\n" + _check(record["check"]),
        "## Training data\n\n" + "\n".join(_data(experiment)),
        "## Results\n\n" + ("\n".join(_results(run.checkpoint)) or "No report of a word error rate was with the run."),
        f"## Training\n\n```json\n{experiment.model_dump_json(indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _program(run: LoadedRun, auto: str) -> str:
    """Returns an example program that uses the folder."""
    if isinstance(run.experiment.model, WavTokenizerConfig):
        return _CODEC.format(rate=run.experiment.sample_rate, hop=run.experiment.model.hop)
    if isinstance(run.experiment.model, TransformerConfig) and auto in _TEXT_USES:
        texts, what = _TEXT_USES[auto]
        if getattr(run.experiment.objective, "pooling", "mean") == "cls":
            what = what.replace(".mean(1)", "[:, 0]")
        return _TEXT_MODEL.format(auto=auto, texts=texts, what=what)
    task, use = _USES[auto]
    if isinstance(run.experiment.model, EncoderDecoderConfig):
        return _PIPELINE.format(task=_TASKS[EncoderDecoderConfig], argument='"clip.wav"')
    if auto == "AutoModelForRNNT":
        lookaheads = [length - 1 for length in sorted(run.experiment.model.chunk_lengths)]
        frame_ms = 1000 * run.experiment.frame_samples / run.experiment.sample_rate
        return _TRANSDUCER.format(lookahead=lookaheads[-1], supported=lookaheads, frame_ms=frame_ms, rate=_RATE)
    if auto in hifigan.ARCHITECTURES:
        return _VOCODER.format(auto=auto, rate=f"{run.experiment.sample_rate:_}")
    if task == "text-to-speech":
        speakers = run.experiment.objective.num_speakers > 1
        return _VOICE.format(
            imports="import torch\n" if speakers else "",
            text=f'"{_HELLO.get(run.tokenizer.kind, "hello world")}"',
            options=', forward_params={"speaker_ids": torch.tensor([0])}' if speakers else "",
        )
    if use is not None and use.startswith('"'):
        return _PIPELINE.format(task=task, argument=use)
    if use is not None:
        options = "" if auto == "AutoModel" else ", pad_to_multiple_of=1"
        return _AUDIO_MODEL.format(rate=_RATE, auto=auto, options=options, what=use)
    before, behind = run.experiment.objective.prompt_ids(run.tokenizer)
    window, mel = run.experiment.model.adapter.frames, run.experiment.frontend.mel
    filled = "; its end is filled up to a whole window of the adapter"
    options, vectors = f", pad_to_multiple_of={window * mel.stack}", f"(features.shape[1] // {window})"
    if isinstance(mel, WhisperMel):
        filled, options = f" of up to {mel.window_seconds} s, which silence fills up", ""
        vectors = str(run.experiment.model.encoder.max_frames // window)
    return _SPOKEN.format(
        rate=_RATE,
        filled=filled,
        options=options,
        vectors=vectors,
        per_second=TOKENS_PER_SECOND,
        spare=SPARE_TOKENS,
        audio_token=audio_token(run.tokenizer),
        before=ids_in_folder(run.tokenizer, before),
        behind=ids_in_folder(run.tokenizer, behind),
    )


def _notes(run: LoadedRun) -> Iterator[str]:
    """Yields notes for users of such a model."""
    experiment = run.experiment
    if isinstance(experiment.model, ConformerConfig):
        mel = experiment.frontend.mel
        yield (
            f"Input: 16 kHz mono, a vector every {1000 * mel.frame_samples // mel.sample_rate} ms. Frames at the end "
            "that do not fill a vector were dropped in training; transformers' feature extractor may fill the last "
            "vector up instead, and the pipeline then decodes it too. One clip at a time, "
            f"`extractor(samples, sampling_rate={DEFAULT_SAMPLE_RATE:_}, pad_to_multiple_of=1)` drops them as well."
        )
    if isinstance(experiment.model, Wav2Vec2EncoderConfig) and experiment.model.sees_padding:
        yield (
            "Input: 16 kHz mono, one clip at a time: the class's norm over time, or its stack of convolutions, reads "
            "the filler behind the shorter clips of a batch, and in training nothing was filled up."
        )
    if isinstance(experiment.model, WavTokenizerConfig):
        yield (
            f"Input: {experiment.sample_rate} Hz mono; a code every {experiment.model.hop} samples, one of "
            f"{experiment.model.codebook_size:,}. One clip at a time: the class encodes the filler behind the shorter "
            "clips of a batch as sound, and its decoder's norms and attention see it."
        )
    if isinstance(experiment.model, FastSpeech2Config):
        mel = experiment.frontend.mel
        given = "phones" if run.tokenizer.kind in PHONES else "words, without digits and signs"
        yield (
            f"One sentence of {given} at a time; `jax-speechlm synthesize` makes such sentences of any text. The "
            f"vocoder has to be one of this model's spectrograms: {mel.num_mel_bins} bins from {mel.low_hertz:g} to "
            f"{mel.high_hertz:g} Hz, base-10 logarithms, a frame of {mel.window} samples every {mel.hop}, at "
            f"{mel.sample_rate} Hz. At inference the class has no mask in its decoder: one text at a time."
        )
    if isinstance(experiment.model, SpeechLMConfig):
        prompt = experiment.objective.prompts.of(experiment.objective.task)
        yield (
            f"Trained to {experiment.objective.task}, with {prompt.before!r} before the speech and {prompt.behind!r} "
            "behind it; it knows no other prompt. One clip at a time: the class gives its tower no mask, so the zeros "
            "that fill up the last window of features are encoded as speech. A clip of whole windows gets exactly the "
            "checkpoint's answer."
        )
    if isinstance(experiment.data, UnitText):
        written = "Speech is written `<speech><unit_3><unit_17>...<text>`, in "
        if _is_of_codec(experiment.data):
            yield (
                f"{written}the codes of the codec {run.units}, one `<unit_N>` for each code N. Exported by itself, the "
                "codec gives the samples: `WavTokenizerModel.decode` of the numbers as a tensor [1, 1, codes]."
            )
        else:
            yield (
                f"{written}the units of the k-means {run.units} without repeats: those of another mean nothing to this "
                "model. Nothing here turns units into sound."
            )


def _is_of_codec(data: UnitText) -> bool:
    """Whether the units are a codec's codes, as far as their folder is at hand."""
    try:
        return not read_units(data.units).merges_repeats
    except DataError:
        return False


def data_sets(experiment: Experiment) -> list[tuple[str, dict[str, Any]]]:
    """Returns the sets that a run trained on and their `meta.json`, {} if that is not available."""
    data = experiment.data
    parts = data.parts.values() if isinstance(data, Mixture) else [data]
    names = [name for part in parts for name in part.sets]
    names += [name for name in data.text_sets if name not in names] if isinstance(data, UnitText) else []
    sets = {}
    for name in names:
        bare = name.partition(":")[0]
        try:
            sets[bare] = json.loads((as_path(data.data_dir) / bare / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, DataError):
            sets[bare] = {}
    return list(sets.items())


def _check(check: Mapping[str, Any]) -> str:
    rows = "\n".join(f"- {one['name']}: {one['result']}" for one in check["checks"])
    if not check["passed"]:
        return f"**FAILED** against {check['against']}; do not use this folder.\n\n{rows}"
    if check["is_full"]:
        readers = ", ".join(f"{name} {version}" for name, version in check["read_by"].items())
        return f"The folder was opened by {readers} and gave what the checkpoint gives:\n\n{rows}"
    return (
        "The folder was read back by jax_speechlm, not yet by transformers, which was not installed where it was made:"
        f"\n\n{rows}"
    )


def _data(experiment: Experiment) -> Iterator[str]:
    for name, meta in data_sets(experiment):
        train = meta.get("splits", {}).get("train", {})
        amount = f"{train['hours']:,.2f} hours, " if "hours" in train else ""
        licence = meta.get("licence", "unknown here: the prepared set was not at hand when this was written")
        yield f"- {name}: {amount}licence: {licence}"
    for start in experiment.init_from:
        yield f"- and what {start.checkpoint} was trained on, whose parameters this run began with"
    yield "\nCheck the conditions of these licences before you pass the model on."


def _results(checkpoint: AnyPath) -> Iterator[str]:
    """Yields a line for every report of `jax-speechlm eval` next to a checkpoint or its run."""
    for folder in (checkpoint, checkpoint.parent.parent):
        for file in sorted((folder / "eval").glob("*/report.json")):
            try:
                report = EvaluationReport.load(file)
            except ValueError:
                continue  # of another kind of evaluation
            intervals = TOO_FEW if report.wer.interval is None else "95 % bootstrap intervals"
            yield (
                f"- {file.parent.name}: WER {report.wer}, CER {report.cer} ({intervals}); "
                f"{report.wer.utterances:,} utterances, normalizer {report.normalizer}, decoder {report.decoder}"
            )
