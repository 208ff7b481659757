"""A run small enough for tests: a tiny conformer on noise, from a source that lives in memory."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_pipelines.batching.fields import BatchSpec, text_segment
from data_pipelines.batching.packing import make_text_eval_plan, make_text_plan
from data_pipelines.batching.plan import BatchPlan, SpeechPlan, make_eval_plan, make_plan
from data_pipelines.batching.rows import RowPlan, make_row_plan
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.tokens import TokenStore
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.transducer import TransducerConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.tts.aligner import AlignerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config, Layers, Postnet, Predictor
from jax_speechlm.models.tts.tacotron import TacotronConfig
from jax_speechlm.models.vocoders.discriminators import DiscriminatorConfig
from jax_speechlm.models.vocoders.vocos import VocosConfig
from jax_speechlm.models.wav2vec2 import RelativeBias, Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.distillation import Distillation, Teacher
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.objectives.heads.intent import Intent, Slot
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.objectives.ssl.hubert import HuBERT
from jax_speechlm.objectives.ssl.w2v_bert import W2vBert
from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.objectives.tts.attention import AttentionTTS
from jax_speechlm.objectives.tts.codec import CODEBOOK, Codec
from jax_speechlm.objectives.tts.mel_restoration import MelRestoration
from jax_speechlm.objectives.tts.vocoder import Adversarial, Vocoding
from jax_speechlm.optim.optimizers import Group, Optimizer, WarmupCosine
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Mixture, Speech, Stream, Text
from jax_speechlm.tasks.inputs import FRAME_PITCH, FRAME_UNITS, ROW_CLASS, ROW_SPEAKER, SPEECH_OR_SILENCE, TRANSCRIPT
from jax_speechlm.training.source import BatchSource, MixtureSource, TextSource, inputs_of, stream_experiments

LETTERS = "abc "
MEL = LogMel(num_mel_bins=20, stack=2)
MODEL = ConformerConfig(input_dim=MEL.input_dim, dim=16, num_layers=2, num_heads=8, kernel_size=7)
FAST = FastConformerConfig(input_dim=16, dim=16, num_layers=2, num_heads=8, kernel_size=7, channels=4)
WHISPER = WhisperEncoderConfig(input_dim=16, dim=16, num_layers=2, num_heads=4, ffn_dim=24, max_frames=50, dropout=0.1)
WAV2VEC2 = Wav2Vec2EncoderConfig(
    channels=(4, 6), kernels=(25, 16), strides=(20, 16), dim=16, num_layers=2, num_heads=4, ffn_dim=24,
    position_kernel=6, position_groups=2, relative=RelativeBias(buckets=8, longest=10), dropout=0.1,
)  # fmt: skip
OBJECTIVES = {
    "aed": AED(),
    "ctc": CTC(),
    "fast_conformer": CTC(),
    "transducer": Transducer(durations=(0, 1, 2), network=TransducerConfig(dim=8)),
    "best_rq": BestRQ(codes=32, code_dim=4),
    "hubert": HuBERT(num_units=6, code_dim=4),
    "wav2vec2": Wav2Vec2(codes=8, code_dim=8, negatives=5, gumbel_decay=0.5),
    "w2v_bert": W2vBert(codes=8, code_dim=8, negatives=5, gumbel_decay=0.5),
    "frames": FrameClassification(),
    "speaker": SpeakerVerification(
        classes=("low", "middle", "high"),
        head=XVectorConfig(channels=(8, 16), kernels=(3, 1), dilations=(2, 1), dim=8),
        scale=1.0,  # a steep loss carries the rounding of one step far into the next
    ),
    "speech_lm": SpeechLM(),
    "vocoder": Vocoding(
        crop_frames=8,
        windows=(64, 128),
        stft_weight=0.3,  # gradients of logarithms round by the inverse of a magnitude
        mel_weight=0.3,
        adversarial=Adversarial(
            discriminators=DiscriminatorConfig(
                periods=(2, 3), channels=(4, 6), windows=(64,), spectral_channels=3, spectral_layers=2
            ),
            loss="least_squares",  # within hinge's margins the bias of a score has no gradient
            weight=0.2,
            feature_weight=0.2,
        ),
    ),
    "intent": Intent(
        intents=("order", "stop"),
        slots=(Slot(name="milk", values=("a bit of milk", "milk", "soy milk")), Slot(name="size", values=("large",))),
    ),
    "tts": TTS(
        classes=("low", "middle", "high"),
        aligner=AlignerConfig(dim=6, text_dim=8, temperature=0.1),
        binarisation_start=1,
        binarisation_ramp=4,
    ),
}
OBJECTIVES["tacotron"] = AttentionTTS(classes=OBJECTIVES["tts"].classes)
OBJECTIVES["mel_restoration"] = MelRestoration(stretch=3)
OBJECTIVES["codec"] = Codec(
    crop_frames=8,
    windows=(64, 128),
    stft_weight=0.05,  # the gradient of the logarithm magnifies the rounding of magnitudes near 0
    codebook_decay=0.5,
    adversarial=OBJECTIVES["vocoder"].adversarial,
)
SYNTHESIS_MEL = SynthesisMel(hop=64, window=256, num_mel_bins=16)
MELS = {
    "aed": WhisperMel(num_mel_bins=16, window_seconds=1),
    "fast_conformer": LogMel(variant="nemo", num_mel_bins=16, stack=1),
    "vocoder": SYNTHESIS_MEL,
    "tts": SynthesisMel(window=512, num_mel_bins=16),
    "codec": SYNTHESIS_MEL,
}
MODELS = {
    "aed": EncoderDecoderConfig(
        encoder=WHISPER,
        decoder=AttentionDecoderConfig(dim=16, num_layers=2, num_heads=4, ffn_dim=24, max_tokens=20, dropout=0.1),
    ),
    "fast_conformer": FAST,
    "vocoder": VocosConfig(input_dim=16, dim=8, num_layers=2, kernel_size=3, hop=64, window=256),
    "tts": FastSpeech2Config(
        num_mel_bins=16,
        dim=16,
        encoder=Layers(num_layers=1, num_heads=8, ffn_dim=24, kernel_size=3),
        decoder=Layers(num_layers=2, num_heads=8, ffn_dim=24, kernel_size=7),
        duration=Predictor(channels=12),
        pitch=Predictor(channels=12),
        energy=Predictor(channels=12),
        postnet=Postnet(num_layers=3, channels=12),
    ),
    "tacotron": TacotronConfig(
        num_mel_bins=16,
        dim=16,
        num_layers=2,
        kernel_size=3,
        prenet_dim=8,
        attention_dim=8,
        location_kernel_size=5,
        decoder_dim=16,
        postnet=Postnet(num_layers=3, channels=12),
    ),
    "codec": WavTokenizerConfig(
        num_filters=2,
        strides=(8, 8),
        latent_dim=4,
        codebook_size=6,
        dim=8,
        ffn_dim=12,
        num_layers=2,
        num_groups=2,
        norm_eps=1e-2,  # of a single frame, which is divided by hardly more than that
    ),
    "speech_lm": SpeechLMConfig(
        encoder=MODEL,
        adapter=Stacking(frames=2, hidden_dim=16),
        transformer=TransformerConfig(dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=24),
    ),
}
MODELS["mel_restoration"] = MODELS["tts"]
MELS |= dict.fromkeys(("mel_restoration", "tacotron"), MELS["tts"])
OBJECTIVES["distillation"] = Distillation(
    teachers=(
        Teacher(
            checkpoint="runs/teacher",
            layers=((2, 1),),
            model=MODEL.replace(dim=32, num_layers=1),
            frontend=FrontEnd(mel=MEL),
        ),
    )
)
OBJECTIVES["joint"] = Joint(speech=OBJECTIVES["best_rq"], text=MaskedLM(ratio=0.3))
MASKS = Augment(time_masks=1, freq_masks=1, freq_mask_bins=4, gain_db=3.0)
AUGMENT = dict.fromkeys(("tts", "mel_restoration", "tacotron"), Augment())
AUGMENT |= dict.fromkeys(("vocoder", "codec"), Augment(gain_db=3.0))
GROUPS = {"codec": (Group.assigned(CODEBOOK),)}
NOISE = Speech(sets=("noise",), num_buckets=2)
STREAMS = (
    Stream(name="speech", data=NOISE, weight=2),
    Stream(name="text", data=Text(sets=("letters",), packed=False, context=16, tokens_per_batch=128)),
    Stream(name="pairs", data=NOISE.replace(num_buckets=1)),
)


def experiment(objective: str = "ctc", **changes) -> Experiment:
    """A complete experiment on one device whose every random part is on."""
    return Experiment(
        data=Mixture(streams=STREAMS) if objective == "joint" else NOISE,
        objective=OBJECTIVES[objective],
        frontend=FrontEnd(mel=MELS.get(objective, MEL), augment=AUGMENT.get(objective, MASKS)),
        model=MODELS.get(objective, MODEL),
        optimizer=Optimizer(
            schedule=WarmupCosine(peak=3e-3, warmup_steps=2), ema_decay=0.9, groups=GROUPS.get(objective, ())
        ),
        mesh=MeshShape(data=8),
        num_steps=8,
        loop=LoopConfig(log_every=4, eval_every=4, checkpoint_every=4),
    ).replace(**changes)


def source(experiment: Experiment) -> BatchSource:
    """The data of an experiment, in memory."""
    if experiment.data.kind == "mixture":
        parts = {name: source(stream) for name, stream in stream_experiments(experiment).items()}
        return MixtureSource.of(parts, experiment)
    return text_source(experiment) if experiment.data.kind == "text" else MemorySource.make(experiment)


def text_source(experiment: Experiment, documents: int = 24) -> TextSource:
    """Random documents of 0 to 20 letters."""
    rng, data = np.random.default_rng(1), experiment.data
    lengths = rng.integers(0, 20, documents)
    ids = rng.integers(1, len(LETTERS) + 1, lengths.sum()).astype(np.uint16)
    store = TokenStore(lengths, np.array([0, documents]), (ids,), (np.cumsum(lengths),))
    shape = {"context": data.context, "sequences_per_batch": data.sequences_per_batch, "is_packed": data.packed}
    plan = make_text_plan(lengths, seed=experiment.seed, **shape)
    return TextSource(store, store, plan, make_text_eval_plan(lengths, **shape), CharTokenizer(LETTERS))


@dataclasses.dataclass
class MemorySource(BatchSource):
    """Has the attributes of `training.source.BatchSource`; utterances are random, of two lengths or nearly."""

    plan: SpeechPlan
    dev_plan: BatchPlan
    samples: list[np.ndarray]
    texts: list[str]
    tokenizer: Tokenizer | None
    num_units: int = 0
    num_labels: int = 0
    pitch_mel: SynthesisMel | None = None  # whose frames have a pitch
    num_row_labels: int = 0  # of objectives with several classes a row

    @classmethod
    def make(cls, experiment: Experiment, utterances: int = 24) -> "MemorySource":
        inputs = inputs_of(experiment)
        rng = np.random.default_rng(0)
        short = utterances * 2 // 3  # with 24 utterances: two full batches of short ones, one of long ones
        lengths = np.concatenate([rng.integers(5000, 7600, short), rng.integers(14000, 15900, utterances - short)])
        samples = [rng.normal(0, 1000, length).astype(np.int16) for length in lengths]
        texts = ["".join(rng.choice(list(LETTERS), 3)) for _ in lengths]
        tokenizer = CharTokenizer(LETTERS) if TRANSCRIPT in inputs else None
        tokens = np.array([len(text) for text in texts]) if tokenizer else None
        options = {"batch_multiple": 8, "frame_samples": MEL.frame_samples, "seconds_per_batch": 8.0}
        buckets = {"num_buckets": experiment.data.num_buckets}
        objective = experiment.objective
        num_classes = len(getattr(objective, "classes", ()))
        num_units = (num_classes or objective.num_units) if {FRAME_UNITS, SPEECH_OR_SILENCE} & set(inputs) else 0
        num_labels = num_classes if {ROW_CLASS, ROW_SPEAKER} & set(inputs) else 0
        if experiment.data.packed:
            options["frame_samples"] = experiment.slot_samples
            rows = {"gap_samples": experiment.frontend.mel.gap_samples, "row_seconds": experiment.data.row_seconds}
            rows["added_tokens"] = objective.added_tokens(tokenizer)
            plan = make_row_plan(lengths, tokens, seed=experiment.seed, **rows, **options)
        else:
            plan = make_plan(lengths, tokens, seed=experiment.seed, **buckets, **options)
        dev_plan = make_eval_plan(lengths, tokens, **buckets, **options)
        pitch_mel = experiment.frontend.mel if FRAME_PITCH in inputs else None
        known = num_units, num_labels, pitch_mel, objective.num_labels
        return cls(plan, dev_plan, samples, texts, tokenizer, *known)

    def batches(self, first_step: int, num_steps: int) -> Iterator[dict[str, np.ndarray]]:
        return (self.batch(self.plan, step) for step in range(first_step, num_steps))

    def dev_batches(self) -> Iterator[dict[str, np.ndarray]]:
        return (self.batch(self.dev_plan, step) for step in range(self.dev_plan.steps_per_epoch))

    def batch(self, plan: SpeechPlan, step: int) -> dict[str, np.ndarray]:
        planned, packed = plan.batch(step), isinstance(plan, RowPlan)
        bucket, items = plan.buckets[planned.bucket], planned.rows
        optional = {"row_label": self.num_labels > 0, "frame_labels": self.num_units > 0, "pitch": bool(self.pitch_mel)}
        optional["row_labels"] = self.num_row_labels > 0
        optional["text"] = bucket.num_text > 0
        spec, mel = BatchSpec.speech(packed=packed, **optional), self.pitch_mel or MEL
        sizes = {"rows": len(items), "samples": bucket.num_samples, "tokens": bucket.num_tokens}
        sizes |= {"frames": mel.num_frames(bucket.num_samples), "utterances": bucket.num_utterances}
        sizes |= {"text": bucket.num_text, "labels": self.num_row_labels}
        batch = spec.empty(sizes)
        batch["example_id"][:], batch["weight"][:] = items, items >= 0
        if packed:
            batch["audio_start"][:] = planned.start
        if self.num_labels:
            batch["label"][:] = items % self.num_labels
        if self.num_row_labels:
            batch["labels"][:] = items[..., None] % 2
        for place in map(tuple, np.argwhere(items >= 0)):
            item, start = items[place], planned.start[place]
            samples = self.samples[item]
            if self.pitch_mel:
                frames, first = mel.num_frames(len(samples)), start // mel.frame_samples
                hertz = np.random.default_rng(item).uniform(80, 300, frames)
                batch["pitch"][place[0], first : first + frames] = hertz * (np.arange(frames) % 3 > 0)
            if self.num_units:
                frames, first = MEL.num_frames(len(samples)), start // MEL.frame_samples
                units = np.random.default_rng(item).integers(self.num_units, size=frames)
                batch["frame_labels"][place[0], first : first + frames] = units
            batch["audio"][place[0], start : start + len(samples)] = samples
            batch["audio_length"][place] = len(samples)
            if self.tokenizer:
                ids = self.tokenizer.encode(self.texts[item])
                batch["tokens"][place][: len(ids)] = ids
                batch["token_length"][place] = len(ids)
        if bucket.num_text:
            lengths = batch["weight"], batch["token_length"]
            batch["text_segment"] = text_segment(*lengths, plan.added_tokens, bucket.num_text)
        return batch
