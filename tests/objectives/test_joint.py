"""Each stream's loss against its parts computed row by row without padding, and what the streams share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jax_speechlm.core.batch import example_keys
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models import conformer
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.lm.masked_lm import MaskedLM, mask_tokens
from jax_speechlm.objectives.masking import draw_views, span_frames
from jax_speechlm.objectives.speech_text.joint import Joint, health_check, stream_of
from jax_speechlm.objectives.ssl import best_rq
from jax_speechlm.objectives.ssl.best_rq import BestRQ, nearest_codes
from jax_speechlm.recipes.experiment import Mixture, Speech, Stream, Text
from tests.objectives.text import TOKENIZER, VOCABULARY, documents, pack

MODEL = ConformerConfig(
    input_dim=16, dim=16, num_layers=2, num_heads=2, kernel_size=3, left_max=4, right_max=2, dropout=0.1
)
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=Augment(time_masks=1, freq_masks=1, freq_mask_bins=3))
JOINT = Joint(
    speech=BestRQ(codes=32, code_dim=4, mask_span=0.1),
    text=MaskedLM(ratio=0.3),
    ctc=CTC(intermediate=(1,)),
    tlm_ratio=0.4,
    speech_weight=0.5,
    text_weight=0.7,
    ctc_weight=0.3,
    tlm_weight=2.0,
)
EVERY = np.ones(VOCABULARY.tokenizer_size, bool)
SPAN = span_frames(JOINT.speech.mask_span, FRONTEND)


def speech(num_samples: int = 16_000) -> dict[str, np.ndarray]:
    """Noise of several lengths, a row of a single frame, a filler row; without transcripts."""
    shares, rng = np.array([1.0, 0.6, 0.8, 0.3, 0.03, 0.0]), np.random.default_rng(0)
    return {
        "audio": rng.integers(-9000, 9000, (6, num_samples)).astype(np.int16),
        "audio_length": (shares * num_samples).astype(np.int32),
        "tokens": np.zeros((6, 0), np.int32),
        "token_length": np.zeros(6, np.int32),
        "example_id": np.array([7, 8, 9, 10, 11, -1], np.int32),
        "weight": (shares > 0).astype(np.float32),
    }


def pairs() -> dict[str, np.ndarray]:
    batch, lengths = speech(), [9, 4, 6, 0, 2, 0]
    tokens = np.zeros((6, 10), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = TOKENIZER.encode("the cat sat on a mat"[row:][:length].replace("h", "a"))
    return batch | {"tokens": tokens, "token_length": np.array(lengths, np.int32)}


def text() -> dict[str, np.ndarray]:
    return pack([documents(n, [length]) for n, length in enumerate([20, 11, 16, 2, 0])] + [[]], 24)


BATCHES = {"speech": speech, "text": text, "pairs": pairs}


@functools.cache
def compiled():
    """The objective, parameters whose outputs differ from token to token, and the jitted loss."""
    built = JOINT.build(MODEL, FRONTEND, TOKENIZER)
    params = functional.init(built.make, jax.random.key(0))
    params = params | {name: jax.tree.map(lambda leaf: 20 * leaf, params[name]) for name in ("codes",)}
    return built, params, jax.jit(built.loss)


def model():
    built, params, _ = compiled()
    return functional.bind(functional.declare(built.make).graphdef, params)


def nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Summed over targets, in float64."""
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    return -np.take_along_axis(log_p, np.asarray(targets)[:, None], axis=-1).sum()


def encode(x_TxD: jax.Array) -> jax.Array:
    """The layers over one row without any padding."""
    return model().encoder.encode(x_TxD[None], jnp.array([len(x_TxD)]))[0][0]


def table_logits(hidden: jax.Array) -> jax.Array:
    side = compiled()[1]["text"]
    return hidden @ side["table"].T + side["bias"]


@pytest.mark.parametrize("stream", BATCHES)
def test_arrays_tell_the_stream(stream):
    assert stream_of(BATCHES[stream]()) == stream
    without = {name: value for name, value in speech().items() if not name.startswith("token")}
    assert stream_of(without) == "speech"


@pytest.mark.parametrize("key", [None, 3])
def test_speech_is_best_rq_on_the_parameters_that_are_its_own(key):
    key = key and jax.random.key(key)
    built = JOINT.speech.build(MODEL, FRONTEND)
    _, params, run = compiled()
    theirs = {"encoder": params["encoder"], "head": params["codes"], "quantizer": params["quantizer"]}
    loss, metrics = jax.jit(built.loss)(theirs, speech(), key)
    ours, our_metrics = run(params, speech(), key)
    np.testing.assert_allclose(ours, 0.5 * loss, rtol=1e-6)
    assert metrics.keys() == our_metrics.keys()
    for name, pair in metrics.items():
        factor = 0.5 if name == "loss" else 1
        np.testing.assert_allclose(our_metrics[name], (factor * pair[0], pair[1]), rtol=1e-6, err_msg=name)


def test_text_is_what_each_document_gives_alone():
    _, params, run = compiled()
    batch = text()
    loss, metrics = run(params, batch, None)
    keys = example_keys(jax.random.key(0), jnp.asarray(batch["example_id"]))
    shown, chosen = (np.asarray(x) for x in mask_tokens(
        jnp.asarray(batch["tokens"]), jnp.asarray(batch["segment"]), keys, VOCABULARY, EVERY, JOINT.text.ratio
    ))  # fmt: skip
    total, hits, targets = 0.0, 0, []
    for row in np.flatnonzero(batch["weight"]):
        length = (batch["segment"][row] > 0).sum()
        hidden = encode(4 * params["text"]["table"][shown[row, :length]])  # sqrt(dim)
        logits, asked = table_logits(hidden)[chosen[row, :length]], batch["tokens"][row, :length][chosen[row, :length]]
        total, hits, targets = total + nll(logits, asked), hits + (logits.argmax(-1) == asked).sum(), [*targets, *asked]
    assert len(targets) > 8
    np.testing.assert_allclose(metrics["loss"], (0.7 * total, len(targets)), rtol=1e-5)
    np.testing.assert_allclose(metrics["masked_accuracy"], (hits, len(targets)))
    np.testing.assert_allclose(metrics["majority"], (np.bincount(targets).max(), len(targets)), rtol=1e-6)
    np.testing.assert_allclose(loss, 0.7 * total / len(targets), rtol=1e-5)


def test_pairs_are_ctc_and_what_each_row_of_audio_and_transcript_gives_alone():
    _, params, run = compiled()
    batch = pairs()
    loss, metrics = run(params, batch, None)
    ctc = JOINT.ctc.build(MODEL, FRONTEND, TOKENIZER)
    spelled = jax.jit(ctc.loss)({name: params[name] for name in ("encoder", "head")}, batch, None)[1]
    np.testing.assert_allclose(metrics["ctc_loss"], spelled["loss"], rtol=1e-6)
    for name in spelled.keys() - {"loss"}:
        np.testing.assert_allclose(metrics[name], spelled[name], rtol=1e-6, err_msg=name)

    views = draw_views(jax.tree.map(jnp.asarray, batch), None, FRONTEND, MODEL, SPAN, JOINT.speech.mask_ratio)
    features = best_rq.hide_frames(views, JOINT.speech)
    codes = np.asarray(
        nearest_codes(views.clean_BxTxF, *(params["quantizer"][n][0] for n in ("projection", "codebook")))
    )
    rows = pack(
        [[VOCABULARY.enclose(t[:n].tolist())] for t, n in zip(batch["tokens"], batch["token_length"], strict=True)], 12
    )
    keys = example_keys(jax.random.key(0), jnp.asarray(batch["example_id"]))
    shown, chosen = (np.asarray(x) for x in mask_tokens(
        jnp.asarray(rows["tokens"]), jnp.asarray(rows["segment"]), keys, VOCABULARY, EVERY, JOINT.tlm_ratio
    ))  # fmt: skip
    said, frames, written, tokens = 0.0, 0, 0.0, 0
    for row in np.flatnonzero(batch["weight"]):
        length, count = int(views.segments.length[row, 0]), int(batch["token_length"][row]) + 2
        table = 4 * params["text"]["table"][shown[row, :count]]
        hidden = encode(jnp.concatenate([model().encoder.embed(features[row : row + 1, :length])[0], table]))
        mask, asked = np.asarray(views.mask_BxT[row, :length]), chosen[row, :count]
        code_logits = hidden[:length][mask] @ params["codes"]["kernel"][0] + params["codes"]["bias"][0]
        said, frames = said + nll(code_logits, codes[row, :length][mask]), frames + mask.sum()
        written += nll(table_logits(hidden[length:])[asked], rows["tokens"][row, :count][asked])
        tokens += asked.sum()
    assert frames > 20
    assert tokens > 5
    np.testing.assert_allclose(metrics["tlm_codes"], (said, frames), rtol=1e-5)
    np.testing.assert_allclose(metrics["tlm_tokens"], (written, tokens), rtol=1e-5)
    ctc_total, ctc_count = spelled["loss"]
    expected = (0.3 * ctc_total + 2 * (said + written)) / (ctc_count + frames + tokens)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_without_tlm_pairs_are_ctc_alone():
    _, params, _ = compiled()
    built = JOINT.replace(tlm_weight=0.0, ctc_weight=1.0).build(MODEL, FRONTEND, TOKENIZER)
    loss, metrics = jax.jit(built.loss)(params, pairs(), None)
    ctc = JOINT.ctc.build(MODEL, FRONTEND, TOKENIZER)
    spelled = {name: params[name] for name in ("encoder", "head")}
    np.testing.assert_allclose(loss, jax.jit(ctc.loss)(spelled, pairs(), None)[0], rtol=1e-6)
    assert not any(name.startswith("tlm") for name in metrics)
    for one, other in zip(jax.jit(built.logits)(params, pairs()), jax.jit(ctc.logits)(spelled, pairs()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_in_tlm_a_transcript_is_filled_from_its_own_audio_and_no_other():
    _, params, run = compiled()
    batch = pairs()
    only = batch | {"weight": np.eye(6, dtype=np.float32)[0]}

    def tokens(changed: int) -> float:
        audio = batch["audio"].copy()
        audio[changed] = audio[changed, ::-1]
        return float(run(params, only | {"audio": audio}, None)[1]["tlm_tokens"][0])

    assert tokens(0) != pytest.approx(tokens(1), rel=1e-4)
    assert tokens(1) == pytest.approx(tokens(2), rel=1e-6)


def test_flops_are_those_of_the_passes_that_a_stream_makes():
    built, _, _ = compiled()

    def layers(n):
        return conformer.forward_flops(MODEL, n, 6) - 2 * 6 * n * MODEL.input_dim * MODEL.dim

    def naming(count):
        return 2 * 6 * count * MODEL.dim * VOCABULARY.size

    coding = JOINT.speech.build(MODEL, FRONTEND).forward_flops(16_000, 6)
    spelling = JOINT.ctc.build(MODEL, FRONTEND, TOKENIZER).forward_flops(16_000, 6)
    assert built.flops(speech()) == pytest.approx(coding)
    assert built.flops(text()) == pytest.approx(layers(24) + naming(8))  # 30 % of 24, rounded up
    frames = FRONTEND.mel.num_frames(16_000)
    both = coding - layers(frames) + layers(frames + 12) + naming(5)  # 12 tokens, of which 40 % are scored
    assert built.flops(pairs()) == pytest.approx(spelling + both)
    abstract = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in pairs().items()}
    assert built.flops(abstract) == built.flops(pairs())


HEALTHY = {
    "speech_code_entropy_ratio": 0.8,
    "speech_code_entropy": 4.0,
    "speech_predicted_code_entropy": 1.5,
    "speech_representation_rank": 5.0,
    "speech_representation_spread": 0.5,
    "text_masked_accuracy": 0.4,
    "text_majority": 0.18,
    "pairs_blank": 0.8,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"speech_predicted_code_entropy": 0.4}, "predictions have collapsed"),
        ({"text_masked_accuracy": 0.19}, "reads nothing from context"),
        ({"pairs_blank": 0.999}, "on the plateau"),
    ],
)
def test_alarm_when_a_stream_teaches_nothing(change, said):
    assert health_check(HEALTHY, True) is None
    assert said in health_check(HEALTHY | change, True)
    assert health_check(HEALTHY | change, False) is None  # every model begins like that
    (name,) = change
    prefix = name.partition("_")[0]
    assert health_check({key: value for key, value in HEALTHY.items() if not key.startswith(prefix)}, True) is None


def mixture(**changes: Stream) -> Mixture:
    streams = {
        "speech": Stream(name="speech", data=Speech(sets=("noise",))),
        "text": Stream(name="text", data=Text(sets=("words",), packed=False)),
        "pairs": Stream(name="pairs", data=Speech(sets=("noise",))),
    }
    return Mixture(streams=tuple((streams | changes).values()))


def test_data_that_are_no_streams_of_its_own_are_refused():
    JOINT.check_data(mixture())
    with pytest.raises(ValueError, match="mixture of speech, text, pairs: data of kind speech is none"):
        JOINT.check_data(Speech(sets=("noise",)))
    with pytest.raises(ValueError, match="no stream 'noises': name it one of speech, text, pairs"):
        JOINT.check_data(mixture(more=Stream(name="noises", data=Speech(sets=("noise",)))))
    with pytest.raises(ValueError, match="stream pairs is of speech, and its data are of kind text"):
        JOINT.check_data(mixture(pairs=Stream(name="pairs", data=Text(sets=("words",)))))
    with pytest.raises(ValueError, match=r"--data\.streams\.1\.data\.packed False"):
        JOINT.check_data(mixture(text=Stream(name="text", data=Text(sets=("words",)))))


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="needs a tokenizer"):
        JOINT.build(MODEL, FRONTEND, None)
    cropped = FRONTEND.replace(augment=Augment(crop_seconds=1.0))
    with pytest.raises(ValueError, match="crop_seconds would cut audio away"):
        JOINT.build(MODEL, cropped, TOKENIZER)
