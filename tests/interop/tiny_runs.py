"""Small untrained models of every kind that is exported."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.transformer_config import FORMS, LearnedPositions, TransformerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config, Layers, Postnet, Predictor
from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.objectives.tts.codec import CODEBOOK, Codec
from jax_speechlm.objectives.tts.vocoder import Vocoding
from jax_speechlm.optim.optimizers import Group, Optimizer
from jax_speechlm.recipes.experiment import Experiment, Mixture, Speech, Stream, Text, UnitText
from jax_speechlm.training.checkpoints import Checkpoints
from jax_speechlm.training.runs import LoadedRun, tokenizer_files
from jax_speechlm.training.state import TrainState
from tests.training.tiny import WAV2VEC2

CHARACTERS = CharTokenizer("\n 'abcdefghijklmnopqrstuvwxyz")
SPEECH_FRONT_END = FrontEnd(mel=LogMel(num_mel_bins=20))
CLASSES = ("no", "yes", "maybe")
SPEECH = Speech(sets=("noise",))
TEXT = Text(sets=("letters",), context=64, tokens_per_batch=128)
STREAMS = (Stream(name="pairs", data=SPEECH), Stream(name="speech", data=SPEECH))
FORMER = ConformerConfig(input_dim=40, dim=16, num_layers=2, num_heads=2, kernel_size=5, left_max=6, right_max=3)
XVECTOR = XVectorConfig(channels=(12, 10), kernels=(3, 2), dilations=(1, 1), dim=8)
FAST = FastConformerConfig(input_dim=40, dim=16, num_layers=2, num_heads=2, kernel_size=5, channels=4)
QWEN = TransformerConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=24)
BERT = TransformerConfig.modernbert(
    dim=16, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=24, window=4, global_every=2,
    local_rope_theta=100.0,
)  # fmt: skip

OLD_BERT = BERT.replace(
    **FORMS["bert"],
    positions=LearnedPositions(size=64, token_types=2),
    window=None,
    global_every=None,
    local_rope_theta=None,
)

LISTENER = SpeechLMConfig(
    encoder=FORMER,
    adapter=Stacking(frames=FORMER.ffn_multiple, hidden_dim=32, bias=False),
    transformer=QWEN.replace(dim=32, tied=False),  # a tied one says the same letter for ever
    lora=LoRA(rank=2, targets=("transformer/layers/attention",)),
)

WINDOWED = LISTENER.replace(  # the tower of Mistral's Voxtral
    encoder=WhisperEncoderConfig(
        input_dim=20, dim=16, num_layers=2, num_heads=2, ffn_dim=64, max_frames=100, attention="reference"
    ),
    adapter=LISTENER.adapter.replace(activation="gelu"),
    lora=LoRA(),
)

GAN = HifiGanConfig(
    input_dim=20,
    dim=16,
    upsample_rates=(8, 8, 4),
    upsample_kernels=(16, 10, 4),
    block_kernels=(3, 5),
    block_dilations=((1, 2), (1,)),
)
_CONFORMER = Layers(num_layers=2, num_heads=2, ffn_dim=24, kernel_size=5)
_PREDICTOR = Predictor(channels=12)
VOICE = FastSpeech2Config(
    num_mel_bins=20,
    dim=16,
    encoder=_CONFORMER,
    decoder=_CONFORMER.replace(num_layers=1),
    duration=_PREDICTOR,
    pitch=_PREDICTOR.replace(num_layers=3),
    energy=_PREDICTOR,
    postnet=Postnet(num_layers=3, channels=12),
)
CODEC = WavTokenizerConfig(
    num_filters=4, strides=(4, 4, 8), latent_dim=8, codebook_size=9, dim=16, ffn_dim=24, num_layers=2, num_groups=4
)  # fmt: skip
CODEC_FRONT_END = FrontEnd(mel=SynthesisMel(hop=CODEC.hop))

RUNS = {
    "ctc": (CTC(), FORMER, SPEECH, "Wav2Vec2BertForCTC"),
    "fast_conformer": (CTC(), FAST, SPEECH, "ParakeetForCTC"),
    "samples": (CTC(), WAV2VEC2, SPEECH, "WavLMForCTC"),
    "samples, contrastive": (
        Wav2Vec2(codes=6, code_dim=8, negatives=5),
        WAV2VEC2.replace(relative=None),
        SPEECH,
        "Wav2Vec2ForPreTraining",
    ),
    "joint": (Joint(speech=BestRQ(codes=8, code_dim=4)), FORMER, Mixture(streams=STREAMS), "Wav2Vec2BertForCTC"),
    "best_rq": (BestRQ(codes=8, code_dim=4), FORMER, SPEECH, "Wav2Vec2BertModel"),
    "classification": (
        Classification(classes=CLASSES),
        FORMER,
        SPEECH,
        "Wav2Vec2BertForSequenceClassification",
    ),
    "frames": (FrameClassification(), FORMER, SPEECH, "Wav2Vec2BertForAudioFrameClassification"),
    "speaker": (
        SpeakerVerification(classes=CLASSES, head=XVECTOR),
        FORMER,
        SPEECH,
        "Wav2Vec2BertForXVector",
    ),
    "dilated speaker": (
        SpeakerVerification(classes=CLASSES, head=XVECTOR.replace(dilations=(1, 2))),
        FORMER,
        SPEECH,
        "Wav2Vec2BertForXVector",
    ),
    "qwen3": (CausalLM(), QWEN, TEXT, "Qwen3ForCausalLM"),
    "llama": (CausalLM(), QWEN.replace(query_key_norm=False, tied=False), TEXT, "LlamaForCausalLM"),
    "window": (CausalLM(), QWEN.replace(window=5, global_every=2), TEXT, "Qwen3ForCausalLM"),
    "span_corruption": (SpanCorruption(sentinels=5), QWEN, TEXT, "Qwen3ForCausalLM"),
    "masked_lm": (MaskedLM(), BERT, TEXT.replace(packed=False), "ModernBertForMaskedLM"),
    "text classification": (
        Classification(classes=CLASSES),
        BERT,
        TEXT.replace(packed=False),
        "ModernBertForSequenceClassification",
    ),
    "bert": (MaskedLM(), OLD_BERT, TEXT.replace(packed=False), "BertForMaskedLM"),
    "unit_lm": (
        UnitLM(num_units=7),
        QWEN,
        UnitText(sets=("noise",), units="units", context=64, tokens_per_batch=128),
        "Qwen3ForCausalLM",
    ),
    "codec": (Codec(windows=(64,)), CODEC, SPEECH, "WavTokenizerModel"),
    "speech_lm": (SpeechLM(), LISTENER, SPEECH, "VoxtralForConditionalGeneration"),
    "speech_lm of windows": (SpeechLM(), WINDOWED, SPEECH.replace(packed=False), "VoxtralForConditionalGeneration"),
    "vocoder": (Vocoding(), GAN, SPEECH, "SpeechT5HifiGan"),
    "tts": (TTS(), VOICE, SPEECH, "FastSpeech2ConformerModel"),
    "speakers": (TTS(classes=CLASSES), VOICE, SPEECH, "FastSpeech2ConformerModel"),
}
"""Objective, model, data, and the class in transformers."""
VOICES = "tts", "speakers"


def save(folder: Path, run: LoadedRun) -> Path:
    """Writes the checkpoint of a run."""
    meta = {"experiment": run.experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(run.tokenizer)}
    checkpoints = Checkpoints(folder)
    step = np.int32(run.step)
    checkpoints.save(run.step, TrainState(step, run.params, {"count": step}, {}, step, step), meta | {"step": run.step})
    checkpoints.close()
    return folder


def tiny_run(name: str, tokenizer: Tokenizer = CHARACTERS, **mel: object) -> LoadedRun:
    """One of `RUNS` with random parameters."""
    objective, model, data, _ = RUNS[name]
    if name == "fast_conformer":
        mel = {"num_mel_bins": 40, "variant": "nemo", "stack": 1} | mel
    mel |= {"window_seconds": 2} if name == "speech_lm of windows" else {}
    kind, mel = SynthesisMel if name in ("vocoder", *VOICES) else LogMel, {"num_mel_bins": 20} | mel
    front_end = FrontEnd(mel=(WhisperMel if "window_seconds" in mel else kind)(**mel))
    if isinstance(model, Wav2Vec2EncoderConfig):
        front_end = FrontEnd(mel=Waveform())
    elif isinstance(model, EncoderConfig):
        model = model.replace(input_dim=front_end.mel.input_dim)
    elif isinstance(model, SpeechLMConfig):
        model = model.replace(encoder=model.encoder.replace(input_dim=front_end.mel.input_dim))
    groups = ()
    if name == "codec":
        front_end, groups = CODEC_FRONT_END, (Group.assigned(CODEBOOK),)
    optimizer = Optimizer(groups=groups)
    experiment = Experiment(objective=objective, model=model, data=data, frontend=front_end, optimizer=optimizer)
    built = objective.build(model, front_end, tokenizer)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return rng.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

    params = jax.device_put(jax.tree.map_with_path(draw, functional.declare(built.make).shapes))
    if name in VOICES:  # several frames a token, of random spectrograms
        params = {"acoustic": params["acoustic"]}
        params["acoustic"]["duration"]["out"]["bias"] = jnp.full(1, 1.5)
    return LoadedRun(Path("runs/tiny/checkpoints/7"), 7, experiment, tokenizer, params)
