"""The properties that every objective has, checked on a toy of each task with each of its models."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.batching import fields
from data_pipelines.batching.fields import BatchSpec
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage.units import FrameGrid
from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.cnn import CNNConfig
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.rnn import RNNConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.models.transducer import StatelessPredictorConfig, TransducerConfig
from jax_speechlm.models.transformer_config import FORMS, LearnedPositions, TransformerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config, TextLM
from jax_speechlm.models.tts.tacotron import TacotronConfig
from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
from jax_speechlm.models.vocoders.sample_distributions import MuLaw
from jax_speechlm.models.vocoders.vocos import VocosConfig
from jax_speechlm.models.vocoders.wavenet import WaveNetConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.models.word_vectors import WordVectorsConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.base import Objective, ObjectiveConfig, label_grid
from jax_speechlm.objectives.distillation import Teacher
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.objectives.lm.text_to_text import TextToText
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.objectives.speech_text.joint import STREAMS
from jax_speechlm.objectives.speech_text.speech_lm import Prompt, Prompts, SpeechLM
from jax_speechlm.objectives.word_vectors.cbow import CBOW
from jax_speechlm.objectives.word_vectors.glove import GloVe
from jax_speechlm.objectives.word_vectors.skip_gram import SkipGram
from jax_speechlm.parallel import mesh as meshes
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.tasks import TASKS
from tests.objectives import text
from tests.training import tiny

Batch = dict[str, np.ndarray]

SECOND, TOKENS, CONTEXT = 16_000, 6, 26  # a row of text divides among two devices, and not among four or eight
FILLER = 5
"""The row of a toy batch that has no data."""
UNTRAINED = "encoder", "text_encoder", "token_classification", "question_answering"
"""Tasks of imported models that have no loss."""
JUNK = {"audio": 999, "tokens": 3, "samples": 777, "context_tokens": 2, "count": 55}
"""Values of the padding, which no result may depend on."""
PER_BATCH = ("code_", "codes_used", "predicted_code", "representation_", "majority", "unit_entropy", "diversity")
"""First parts of the names of metrics that describe a batch as a whole, so that those of parts do not add up to it."""

WINDOW = {"window": 3, "global_every": 2, "local_rope_theta": 100.0}
CAUSAL = text.MODEL.replace(num_heads=8, num_kv_heads=2, head_dim=4, **WINDOW)
BOTH_WAYS = CAUSAL.replace(causal=False, head="transform")
BERT = BOTH_WAYS.replace(
    **FORMS["bert"], num_kv_heads=8, positions=LearnedPositions(size=64, first=2, token_types=2), tied=False
)
GPT2 = CAUSAL.replace(
    **FORMS["gpt2"],
    num_kv_heads=8,
    positions=LearnedPositions(size=64),
    window=None,
    global_every=None,
    local_rope_theta=None,
)
SPEECH_LM = tiny.MODELS["speech_lm"].replace(lora=LoRA(rank=2, targets=("transformer/layers", "encoder/layers")))
SPEECH_LM = SPEECH_LM.replace(transformer=SPEECH_LM.transformer.replace(dropout=0.1))
AED_MODEL = tiny.MODELS["aed"].replace(lora=LoRA(rank=2, targets=("decoder/layers/source", "encoder/layers")))
MODELS = {
    ConformerConfig: tiny.MODEL.replace(attention_dropout=0.1, chunk_lengths=(4,)),
    FastConformerConfig: tiny.FAST.replace(attention_dropout=0.1),
    WhisperEncoderConfig: tiny.WHISPER,
    Wav2Vec2EncoderConfig: tiny.WAV2VEC2,
    CNNConfig: CNNConfig(input_dim=tiny.MODEL.input_dim, dim=16, num_layers=2, kernel_size=3),
    RNNConfig: RNNConfig(input_dim=tiny.MODEL.input_dim, cell="gru", dim=16),
    EncoderDecoderConfig: AED_MODEL,
    TransformerConfig: CAUSAL,
    TextEncoderDecoderConfig: TextEncoderDecoderConfig(
        encoder=CAUSAL.replace(causal=False),
        decoder=AttentionDecoderConfig(dim=16, num_layers=2, num_heads=8, ffn_dim=24, max_tokens=40, dropout=0.1),
    ),
    SpeechLMConfig: SPEECH_LM,
    VocosConfig: tiny.MODELS["vocoder"],
    WaveNetConfig: WaveNetConfig(
        input_dim=16, dim=4, skip_dim=6, num_layers=3, cycle=2, mel_dim=5, hop=64, output=MuLaw(classes=8)
    ),
    HifiGanConfig: HifiGanConfig(
        input_dim=16,
        dim=8,
        upsample_rates=(8, 8),
        upsample_kernels=(16, 16),
        block_kernels=(3,),
        block_dilations=((1,),),
    ),
    FastSpeech2Config: tiny.MODELS["tts"],
    TacotronConfig: tiny.MODELS["tacotron"],
    WavTokenizerConfig: tiny.MODELS["codec"],
    WordVectorsConfig: WordVectorsConfig(dim=8),
}
"""A toy of each model, every random part of it on."""
TRANSFORMERS = {"masked_lm": BERT, "classification": BOTH_WAYS}

SETTINGS = {config.kind: config for config in tiny.OBJECTIVES.values()} | {
    "aed": AED(ctc_weight=0.3),
    "causal_lm": CausalLM(z_weight=1e-3),
    "classification": Classification(classes=("low", "middle", "high")),
    "ctc": CTC(intermediate=(1,), consistency=0.2),
    "masked_lm": MaskedLM(ratio=0.3),
    "span_corruption": SpanCorruption(ratio=0.3, sentinels=8),
    "speech_lm": SpeechLM(freeze=(), prompts=Prompts(transcribe=Prompt(before="ab", behind="ca "))),
    "text_to_text": TextToText(),
    "unit_lm": UnitLM(num_units=9),
    "skip_gram": SkipGram(window=2, negatives=3, subsample=0.02),
    "cbow": CBOW(window=2, negatives=3, subsample=0.02),
    "glove": GloVe(most=4),
}
"""Small settings of each objective."""


@dataclasses.dataclass(frozen=True)
class Toy:
    """A small objective with a batch for it: eight rows of several lengths, of which one is a filler.

    Attributes:
      config, model: settings of the objective and of its model.
      data: kind of data: "speech" or "text".
      stream: stream of a mixture, or "".
    """

    config: ObjectiveConfig
    model: Config
    data: str
    stream: str = ""

    @property
    def frontend(self) -> FrontEnd:
        names = {"fast_conformer": "fast_conformer", "fastspeech2": "tts", "tacotron": "tts", "wav_tokenizer": "codec"}
        names |= dict.fromkeys(("vocos", "hifigan", "wavenet"), "vocoder")
        names |= dict.fromkeys(("encoder_decoder", "whisper_encoder"), "aed")
        name = names.get(self.model.kind, "ctc")
        frontend = tiny.experiment(name).frontend
        if isinstance(self.model, Wav2Vec2EncoderConfig):
            return frontend.replace(mel=Waveform(), augment=frontend.augment.replace(freq_masks=0))
        return frontend

    @property
    def grid(self) -> FrameGrid:
        """Where labels of frames lie."""
        return label_grid(self.model, self.frontend.mel)

    @property
    def tokenizer(self) -> Tokenizer:
        return text.WORDS if isinstance(self.model, WordVectorsConfig) else text.TOKENIZER

    @functools.cached_property
    def fields(self) -> frozenset[fields.Field]:
        """The arrays that the task reads."""
        config = self.config.of_stream(self.stream)
        return frozenset(field for part in TASKS[config.kind].inputs[self.kind] for field in part.fields)

    @property
    def kind(self) -> str:
        return {"unit_lm": "unit_text", "glove": "word_pairs"}.get(self.config.kind, self.data)

    @property
    def spec(self) -> BatchSpec:
        if self.data == "speech":
            has = {"row_label": fields.ROW_LABEL, "frame_labels": fields.FRAME_LABELS, "pitch": fields.PITCH}
            has["row_labels"] = fields.ROW_LABELS
            return BatchSpec.speech(**{name: field in self.fields for name, field in has.items()})
        has = {"row_label": fields.ROW_LABEL, "duration": fields.DURATION, "word_pairs": fields.COUNT}
        return BatchSpec.text(**{name: field in self.fields for name, field in has.items()})

    def sizes(self, rows: int, more: int = 0) -> dict[str, int]:
        """Returns the size of each dimension of a batch with `more` steps of 80 ms, or tokens, of padding."""
        samples = SECOND + 1280 * more
        tokens = TOKENS + more if fields.TRANSCRIPT_TOKENS in self.fields else 0
        frames = int(self.grid.num_frames(samples))
        sizes = {"rows": rows, "samples": samples, "frames": frames, "tokens": tokens, "context": CONTEXT + more}
        return sizes | {"labels": self.config.num_labels}

    @functools.cached_property
    def batch(self) -> Batch:
        batch = self._speech() if self.data == "speech" else self._text()
        if "label" in batch:
            batch["label"][:] = np.arange(8) % 3
        if "labels" in batch:
            batch["labels"][:] = np.arange(8)[:, None] % [2, 4, 2]
            batch["labels"][3, 1] = -1  # of a validation row, whose value no row of the training data has
        return batch

    def _speech(self) -> Batch:
        rng, batch = np.random.default_rng(0), self.spec.empty(self.sizes(8))
        shares = np.array([1.0, 0.6, 0.8, 0.3, 0.03, 0.0, 0.5, 0.9])
        batch["audio"][:] = rng.normal(0, 3000, batch["audio"].shape)  # the padding too
        batch["audio_length"][:] = shares * SECOND
        batch["example_id"][:], batch["weight"][:] = np.arange(8) + 7, shares > 0
        if batch["tokens"].size:
            batch["tokens"][:] = rng.integers(1, self.tokenizer.vocab_size, batch["tokens"].shape)
            batch["token_length"][:] = [6, 3, 0, 6, 2, 0, 4, 5]
        if "frame_labels" in batch:
            labels = batch["frame_labels"]
            most = getattr(self.config, "num_units", 2)
            labels[:] = rng.integers(0, most, labels.shape)
            labels[np.arange(labels.shape[1]) >= self.grid.num_frames(batch["audio_length"])[:, None]] = -1
            labels[6] = -1  # a record whose labels are missing
        if "pitch" in batch:
            hertz = rng.uniform(80, 300, batch["pitch"].shape) * (rng.random(batch["pitch"].shape) < 0.7)
            is_frame = np.arange(hertz.shape[1]) < self.grid.num_frames(batch["audio_length"])[:, None]
            batch["pitch"][:] = np.where(is_frame, hertz, 0)
        return batch

    def _text(self) -> Batch:
        lengths = [[9, 4], [14], [0, 7], [1], [12, 3], [], [20], [5, 5]]
        if self.stream:  # a conformer attends over all of a row
            lengths = [documents[:1] for documents in lengths]
        batch = self.spec.empty(self.sizes(8))
        if "count" in batch:
            batch["context_tokens"][:] = np.arange(8 * CONTEXT).reshape(8, CONTEXT) % self.tokenizer.vocab_size
            batch["count"][:] = 1 + np.arange(CONTEXT) / 4
        documents = [text.documents(seed, row) for seed, row in enumerate(lengths)]
        if self.config.kind == "text_to_text":  # most have a target; a piece of a document need not have its ends
            for ids in (ids for row in documents for ids in row if len(ids) > 5):
                ids[len(ids) // 3] = text.VOCABULARY.boundary
        return batch | self._with_units(text.pack(documents, CONTEXT))

    def _with_units(self, batch: Batch) -> Batch:
        """Makes every other row speech, if the objective is of units."""
        if self.config.kind != "unit_lm":
            return batch
        tokens, first = batch["tokens"].copy(), text.TOKENIZER.vocab_size + 4
        tokens[::2] = np.where(tokens[::2] > 0, first + tokens[::2] % 9, 0)
        return batch | {"tokens": tokens, "samples": np.where(tokens >= first, 320, 0).astype(np.int32)}

    def rows(self, rows: list[int], sizes: dict[str, int]) -> Batch:
        """Returns these rows in a larger batch, whose padding holds junk."""
        batch = self.spec.empty(sizes)
        for name, array in batch.items():
            if name in JUNK:
                array[:] = JUNK[name]
            part = self.batch[name][rows]
            array[tuple(map(slice, part.shape))] = part
        return batch

    @property
    def packs(self) -> bool:
        """Whether rows may hold several utterances."""
        return self.data == "speech"

    def packed(self, rows: list[list[int]]) -> Batch:
        """Returns the batch's utterances packed into these rows, whose gaps hold junk."""
        mel, grid = self.frontend.mel, self.grid
        frame, gap = mel.frame_samples * self.model.subsampling * getattr(self.model, "alignment", 1), mel.gap_samples
        lengths = self.batch["audio_length"].tolist()
        slots = -(-(np.array(lengths) + gap) // frame) * frame
        starts = [np.cumsum([0, *slots[np.array(row, int)]])[: len(row)] for row in rows]
        samples = int(max(slots[np.array(row, int)].sum() for row in rows)) + frame
        shape = len(rows), max(map(len, rows))
        by_frame = [field for field in (fields.FRAME_LABELS, fields.PITCH) if field.name in self.batch]
        batch = {
            "audio": np.full((len(rows), samples), JUNK["audio"], np.int16),
            "audio_start": np.zeros(shape, np.int32),
        }
        for field in by_frame:
            batch[field.name] = np.full((len(rows), grid.num_frames(samples)), field.filler, field.dtype)
        for name in self.batch.keys() - batch.keys():
            array = self.batch[name]
            batch[name] = np.full((*shape, *array.shape[1:]), -1 if name == "example_id" else 0, array.dtype)
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            for number, (i, at) in enumerate(zip(row, start, strict=True)):
                for name in self.batch.keys() - {"audio", "frame_labels", "pitch"}:
                    batch[name][place, number] = self.batch[name][i]
                batch["audio_start"][place, number] = at
                batch["audio"][place, at : at + lengths[i]] = self.batch["audio"][i, : lengths[i]]
                for field in by_frame:
                    first, count = at // grid.frame_samples, grid.num_frames(lengths[i])
                    batch[field.name][place, first : first + count] = self.batch[field.name][i, :count]
        added = self.config.of_stream(self.stream).added_tokens(self.tokenizer)
        if added is not None:
            lengths = batch["weight"], batch["token_length"]
            places = int(((batch["weight"] > 0) * (batch["token_length"] + added)).sum(axis=1).max())
            batch["text_segment"] = fields.text_segment(*lengths, added, places)
        return batch

    def shortest(self) -> Batch:
        """Returns a batch of rows with hardly any data, all of them counted."""
        batch = {name: array.copy() for name, array in self.batch.items()}
        if self.data == "speech":
            batch["audio_length"][:] = [0, 1, 100, 400, 700, 1100, 2000, 0]
        else:
            boundary = text.VOCABULARY.boundary
            rows = [[[boundary]], [[boundary] * 2], [[1]], [], [[boundary, 1, boundary]], [[1], [1]], [], [[1, 2]]]
            batch |= self._with_units(text.pack(rows, CONTEXT))
        batch["weight"][:] = 1
        return batch

    def nothing(self) -> Batch:
        """Returns a batch of filler rows."""
        return self.rows([FILLER], self.sizes(8)) | {"example_id": np.full(8, -1, np.int32)}

    @functools.cached_property
    def objective(self) -> Objective:
        return self.config.build(self.model, self.frontend, self.tokenizer)

    @functools.cached_property
    def params(self) -> functional.Params:
        """Initial parameters with noise, so that none is 0 or 1."""
        rng = np.random.default_rng(0)
        params = jax.device_get(functional.init(self.objective.make, jax.random.key(0)))
        return jax.tree.map(lambda leaf: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32), params)

    @functools.cached_property
    def _losses(self):
        def loss(params, batch, key):
            return self.objective.loss(params, batch | {"step": jnp.int32(3)}, key)

        return jax.jit(loss), jax.jit(jax.value_and_grad(loss, has_aux=True))

    def evaluate(self, batch: Batch):
        """Returns metrics of evaluation."""
        return jax.device_get(self._losses[0](self.params, batch, None)[1])

    def train(self, batch: Batch, params: functional.Params | None = None):
        """Returns ((loss, metrics), gradients) of training."""
        return jax.device_get(self._losses[1](params or self.params, batch, jax.random.key(3)))

    @functools.cached_property
    def trained(self):
        """What `train` returns of the toy's batch, for all tests that compare with it."""
        return self.train(self.batch)


def toys() -> Iterator[tuple[str, Toy]]:
    """Yields a toy for each task that trains and each of its models."""
    for name, task in TASKS.items():
        for model in task.models if name not in UNTRAINED else ():
            config, toy = SETTINGS[name], MODELS[model]
            if model is WaveNetConfig:
                config = config.replace(adversarial=None)
            data = "text" if model in (TransformerConfig, TextEncoderDecoderConfig, WordVectorsConfig) else "speech"
            if data == "text":
                toy = TRANSFORMERS.get(name, toy)
            if name == "distillation":
                teacher = toy.replace(
                    dim=2 * toy.dim, num_layers=1, **({} if data == "speech" else {"global_every": 1})
                )
                frontend = Toy(config, toy, data).frontend
                teacher = Teacher(checkpoint="runs/teacher", layers=((2, 1),), model=teacher, frontend=frontend)
                config = config.replace(student=CTC() if data == "speech" else CausalLM(), teachers=(teacher,))
            if name == "joint":
                yield from ((f"joint {stream}", Toy(config, toy, STREAMS[stream], stream)) for stream in STREAMS)
            else:
                yield f"{name} {toy.kind}", Toy(config, toy, data)
    rnnt = TransducerConfig(dim=8, predictor=StatelessPredictorConfig())
    yield "stateless rnnt", Toy(Transducer(network=rnnt, ctc_weight=0), MODELS[ConformerConfig], "speech")
    text_lm = TextLM(transformer=CAUSAL, lora=LoRA(rank=2))
    yield (
        "tts with a language model",
        Toy(SETTINGS["tts"], MODELS[FastSpeech2Config].replace(text_lm=text_lm), "speech"),
    )


TOYS = dict(toys())
UNTOUCHED = {
    "aed encoder_decoder": ("encoder/position",),
    "ctc whisper_encoder": ("encoder/position",),
    "classification whisper_encoder": ("encoder/position",),
    "intent whisper_encoder": ("encoder/position",),
    "classification transformer": ("transformer/prediction/bias",),
    "joint speech": ("text", "head"),
    "joint text": ("codes", "head", "encoder/input", "encoder/input_norm"),
}
"""Parameters that the loss does not use, or does not train: of vocabulary logits, of a mixture's other streams, and
sinusoids."""


def only_rows(packed: Batch, rows: list[int]) -> Batch:
    """Returns a packed batch whose other rows are fillers with junk."""
    fillers = JUNK | {"example_id": -1, "frame_labels": -1}
    others = {name: np.full_like(array, fillers.get(name, 0)) for name, array in packed.items()}
    for name, array in others.items():
        array[rows] = packed[name][rows]
    return others


def verify_objective(name: str) -> None:
    """Checks that neither padding, other rows nor the rest of its row reach an utterance's loss, and that losses and
    gradients are finite."""
    toy = TOYS[name]
    order, sizes = [4, 2, 5, 0, 7, 3, 6, 1], toy.sizes(12, more=4)
    moved = toy.rows(order, sizes)
    parts = [toy.rows(order[:3], sizes), toy.rows(order[3:], sizes)]
    metrics = toy.evaluate(toy.batch)
    check_metrics(toy.evaluate(moved), metrics)
    check_sums([toy.evaluate(part) for part in parts], metrics, toy.config.couples_rows)

    moved_batches = [moved]
    if toy.packs:  # packed rows are trained on, and one utterance a row is evaluated: each is a program
        moved_batches = [toy.packed(rows) for rows in ([[0, 6, 3], [1, 5, 2], [4, 7]], [[3, 6, 0], [2, 1, 5], [7, 4]])]
        parts = [only_rows(moved_batches[0], rows) for rows in ([0], [1, 2])]
    (loss, metrics), gradients = toy.trained
    assert loss > 0
    # Twice the bound for packed rows: already the features differ by roundings, since means are sums in another order.
    tolerance = 2e-5 if toy.packs else 1e-5
    for other in moved_batches:
        (other_loss, other_metrics), other_gradients = toy.train(other)
        np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
        check_metrics(other_metrics, metrics)
        check_gradients(other_gradients, gradients, tolerance)
    part_results = [toy.train(part) for part in parts]
    check_sums([part_metrics for (_, part_metrics), _ in part_results], metrics, toy.config.couples_rows)
    if not toy.config.couples_rows:
        shares = [part_metrics["loss"][1] / metrics["loss"][1] for (_, part_metrics), _ in part_results]
        summed = jax.tree.map(
            lambda *leaves: sum(share * leaf for share, leaf in zip(shares, leaves, strict=True)),
            *(part_gradients for _, part_gradients in part_results),
        )
        check_gradients(summed, gradients, tolerance)

    check_reached(name, gradients)
    for batch in (toy.shortest(), toy.nothing()):
        (loss, metrics), gradients = toy.train(batch)
        assert np.isfinite(jax.tree.leaves((loss, metrics))).all()
        assert np.isfinite(jax.tree.leaves(toy.evaluate(batch))).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def verify_on_mesh(name: str, shape: MeshShape, devices: int = 8) -> None:
    """Checks that loss and gradients on a mesh, of packed rows if the objective has them, equal those on one device of
    one utterance a row."""
    toy = TOYS[name]
    batch = toy.packed([[0, 6], [1, 3], [2], [4, 5], [7], [], [], []]) if toy.packs else toy.batch
    (loss, metrics), gradients = toy.trained
    mesh, declaration = meshes.make_mesh(shape, jax.devices()[:devices]), functional.declare(toy.objective.make)
    with jax.set_mesh(mesh):
        shardings = meshes.param_shardings(mesh, declaration.axes, declaration.shapes)
        placed = jax.device_put(toy.params, shardings)
        (mesh_loss, mesh_metrics), mesh_gradients = toy.train(meshes.shard_batch(mesh, batch), placed)
    np.testing.assert_allclose(mesh_loss, loss, rtol=1e-5)
    check_metrics(mesh_metrics, metrics)
    check_gradients(mesh_gradients, gradients, tolerance=2e-5 if toy.packs else 1e-5)


def check_metrics(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(actual[name], pair, rtol=3e-5, atol=1e-5, err_msg=name)


def check_sums(parts, whole, couples_rows: bool) -> None:
    """Checks that metrics of parts of a batch add up, but for those of a batch as a whole."""
    for name, pair in whole.items():
        sums = np.sum([part[name] for part in parts], axis=0)
        np.testing.assert_allclose(sums[1], pair[1], rtol=1e-6, err_msg=name)
        if not name.startswith(PER_BATCH) and not (couples_rows and name == "loss"):
            np.testing.assert_allclose(sums, pair, rtol=3e-5, atol=1e-5, err_msg=name)


def check_gradients(actual, expected, tolerance: float = 1e-5) -> None:
    for (path, leaf), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True):
        # An element is a sum over frames: float32 rounds it by the size of its terms, not by its own.
        atol = tolerance * max(1, np.abs(leaf).max())
        np.testing.assert_allclose(other, leaf, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def check_reached(name: str, gradients) -> None:
    """Checks that gradients reach all trained parameters and no others."""
    untouched = (*TOYS[name].objective.frozen, *UNTOUCHED.get(name, ()))
    for path, leaf in jax.tree.leaves_with_path(gradients):
        where = "/".join(key.key for key in path)
        assert leaf.any() != any(f"{where}/".startswith(f"{part}/") for part in untouched), where
