"""Distillation against a numpy oracle, its invariances, and what may not reach or change a teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.models.transducer import StatelessPredictorConfig, TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives import distillation
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.distillation import GROUP, Distillation, Teacher, student_part
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from tests.objectives import text
from tests.training import tiny

LETTERS = CharTokenizer(tiny.LETTERS)
STUDENT = tiny.MODEL.replace(dropout=0.0)
FRONTEND = FrontEnd(mel=tiny.MEL, augment=Augment(time_masks=0, freq_masks=0))
OWN = CTC(intermediate=(1,))
TEACHERS = (  # of other sizes, the first with dropout, the second with a front end that masks: neither may act
    Teacher(checkpoint="one", model=tiny.MODEL.replace(dropout=0.5), frontend=FRONTEND, layers=((1, 2), (2, 1))),
    Teacher(
        checkpoint="two",
        model=tiny.MODEL.replace(dim=24, num_layers=1),
        frontend=FRONTEND.replace(augment=Augment(time_masks=2, freq_masks=2)),
        layers=((2, 1),),
    ),
)


@functools.cache
def speech(frontend=FRONTEND, model=STUDENT):
    """The objective, and parameters large enough to matter."""
    config = Distillation(student=OWN, teachers=TEACHERS, share=0.3, temperature=2.5, hidden_weight=0.7)
    return _made(config, model, frontend, LETTERS)


def _made(config, model, frontend, tokenizer):
    built = config.build(model, frontend, tokenizer)
    return built, jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))


def with_gradient(built):
    """`(params, batch, key) -> (loss, metrics, gradient)`, compiled."""
    run = jax.jit(jax.value_and_grad(built.loss, has_aux=True))
    return lambda *args: (lambda found: (*found[0], found[1]))(run(*args))


def batch_of(rows=slice(0, 6), step: int = 0) -> dict[str, np.ndarray]:
    source = tiny.MemorySource.make(tiny.experiment("ctc"))
    return {name: value[rows] for name, value in source.batch(source.dev_plan, step).items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def kl(teachers: list[np.ndarray], student: np.ndarray, temperature: float) -> np.ndarray:
    """temperature^2 sum p (log p - log q), with p the mean of the teachers' softmax at the temperature."""
    p = np.mean([softmax(each.astype(np.float64) / temperature) for each in teachers], axis=0)
    q = softmax(student.astype(np.float64) / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def apart(here: np.ndarray, there: np.ndarray, kind: str) -> np.ndarray:
    if kind == "l2":
        return ((here - there) ** 2).mean(-1)
    return 1 - (here * there).sum(-1) / (np.linalg.norm(here, axis=-1) * np.linalg.norm(there, axis=-1))


def forward(params: Params, model, batch):
    """(logits, hidden states after every layer) of one model alone."""
    built = CTC().build(model, FRONTEND, LETTERS)
    graphdef = functional.declare(built.make).graphdef
    taps = tuple(range(1, model.num_layers + 1))

    @jax.jit
    def run(params, batch):
        module = functional.bind(graphdef, params)
        x, length = features(batch, FRONTEND, None)
        hidden, tapped = module.encoder(x, length, taps=taps)
        return module.head(hidden), tapped, length

    logits, tapped, length = run(params, batch)
    return np.asarray(logits), {n: np.asarray(tapped[n], np.float64) for n in taps}, np.asarray(length)


def test_equals_the_formula_on_models_that_are_run_alone():
    """The two last rows, a filler and one too short for its transcript, leave no trace."""
    built, params = speech()
    batch = batch_of(slice(0, 8))
    batch["weight"][6], batch["audio_length"][7] = 0, 700  # a frame for three tokens
    learnt = np.arange(8) < 6
    loss, metrics = jax.jit(built.loss)(params, batch, None)
    own, own_metrics = jax.jit(OWN.build(STUDENT, FRONTEND, LETTERS).loss)(student_part(params), batch, None)
    logits, hidden, length = forward(student_part(params), STUDENT, batch)
    others = [
        forward(params[GROUP]["teachers"][str(number)], teacher.model, batch) for number, teacher in enumerate(TEACHERS)
    ]
    inside = (np.arange(logits.shape[1]) < length[:, None]) & learnt[:, None]
    targets = batch["token_length"][learnt].sum()
    divergence = kl([each[0] for each in others], logits, 2.5)[inside].sum()
    wide = hidden[2] @ np.asarray(params[GROUP]["maps"]["1_0"]["kernel"], np.float64)
    wide = wide + np.asarray(params[GROUP]["maps"]["1_0"]["bias"], np.float64)
    pairs = (hidden[1], others[0][1][2]), (hidden[2], others[0][1][1]), (wide, others[1][1][1])
    distance = np.mean([apart(here[inside], there[inside], "cosine").sum() for here, there in pairs])
    np.testing.assert_allclose(metrics["own"], own_metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["divergence"], (divergence, targets), rtol=1e-4)
    np.testing.assert_allclose(metrics["distance"], (distance, targets), rtol=1e-4)
    expected = 0.7 * float(own) + (0.3 * divergence + 0.7 * distance) / targets
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], (expected * targets, targets), rtol=1e-4)
    assert {"intermediate", "infeasible", "blank"} <= set(metrics)


@pytest.mark.parametrize("kind", ["cosine", "l2"])
def test_distances_and_their_gradients_are_those_of_the_formula(kind):
    here, there = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
    np.testing.assert_allclose(distillation.distance(here, there, kind), apart(here, there, kind), rtol=1e-4)
    gradient = jax.grad(lambda x: distillation.distance(x, there, kind).sum())
    assert np.isfinite(gradient(jnp.zeros_like(here))).all()  # padding is zeros
    assert abs(gradient(there)).max() < 1e-5


def test_a_teacher_like_the_student_teaches_nothing():
    """No divergence, no distance, no gradient at temperature 1; and no map where widths agree."""
    same = (Teacher(checkpoint="same", model=STUDENT, frontend=FRONTEND, layers=((2, 2),)),)
    built, params = _made(Distillation(teachers=same, share=1.0), STUDENT, FRONTEND, LETTERS)
    run = with_gradient(built)
    assert set(params[GROUP]) == {"teachers"}
    params = params | {GROUP: {"teachers": {"0": student_part(params)}}}
    loss, metrics, gradient = run(params, batch_of(), None)
    assert abs(float(metrics["divergence"][0])) < 1e-5
    assert abs(float(metrics["distance"][0])) < 1e-4
    assert abs(float(loss)) < 1e-5
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) < 1e-4
    other = params | {GROUP: jax.tree.map(lambda leaf: 1.1 * leaf, params[GROUP])}
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(run(other, batch_of(), None)[2])) > 1e-2


def test_teachers_have_no_gradient_and_nothing_random_reaches_them():
    """The student here draws nothing; the teachers have dropout and masks in their settings."""
    built, params = speech()
    run = with_gradient(built)
    _, drawn, gradient = run(params, batch_of(), jax.random.key(1))
    again = run(params, batch_of(), jax.random.key(2))[1]
    for name in ("divergence", "distance"):
        np.testing.assert_allclose(again[name], drawn[name], rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient[GROUP]["teachers"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient[GROUP]["maps"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert built.frozen == built.borrowed == (f"{GROUP}/teachers",)


RANDOM = FRONTEND.replace(augment=Augment(time_masks=1, freq_masks=1, freq_mask_bins=4, gain_db=3.0))


def test_two_views_of_a_row_count_as_one():
    config = Distillation(student=CTC(consistency=0.2), teachers=(TEACHERS[1].replace(layers=()),), share=0.5)
    built, params = _made(config, STUDENT, RANDOM, LETTERS)
    batch = batch_of()
    _, masked = jax.jit(built.loss)(params, batch, jax.random.key(0))
    assert masked["divergence"][1] == batch["token_length"].sum()
    logits, _, length = forward(student_part(params), STUDENT, batch)
    there, *_ = forward(params[GROUP]["teachers"]["0"], TEACHERS[1].model, batch)
    plain = kl([there], logits, 1.0)[np.arange(logits.shape[1]) < length[:, None]].sum()
    assert 0.6 < float(masked["divergence"][0] / plain) < 1.7  # masks change it, twice the rows do not
    assert masked["consistency"][0] > 0


LM_TEACHER = text.MODEL.replace(dim=24, num_layers=3)


def text_batch():
    return text.pack([text.documents(0, [9, 4]), text.documents(1, [0, 14]), [], text.documents(2, [2])], 24)


def read(params: Params, model, batch):
    built = CausalLM().build(model, None, text.TOKENIZER)
    graphdef = functional.declare(built.make).graphdef
    taps = tuple(range(1, model.num_layers + 1))

    @jax.jit
    def run(params, tokens, segment, position):
        transformer = functional.bind(graphdef, params).transformer
        hidden, tapped = transformer.hidden_states(tokens, segment, position, None, taps)
        plain, last = transformer(tokens, segment, position), transformer.norm(tapped[model.num_layers])
        return hidden, tapped, plain, last, transformer.logits(hidden)

    hidden, tapped, plain, last, logits = run(params, batch["tokens"], batch["segment"], batch["position"])
    np.testing.assert_allclose(hidden, plain, atol=1e-5)
    np.testing.assert_allclose(np.where((batch["segment"] > 0)[..., None], last, 0), plain, atol=1e-4)
    return np.asarray(logits), {n: np.asarray(tapped[n], np.float64) for n in taps}


def test_language_models_are_distilled_by_the_same_formula():
    config = Distillation(
        student=CausalLM(z_weight=1e-3),
        teachers=(Teacher(checkpoint="lm", model=LM_TEACHER, frontend=FrontEnd(), layers=((1, 3),)),),
        share=0.6,
        temperature=2.0,
    )
    built, params = _made(config, text.MODEL, FrontEnd(), text.TOKENIZER)
    batch = text_batch()
    loss, metrics, gradient = with_gradient(built)(params, batch, None)
    alone = CausalLM(z_weight=1e-3).build(text.MODEL, None, text.TOKENIZER)
    own = jax.jit(alone.loss)(student_part(params), batch, None)
    logits, hidden = read(student_part(params), text.MODEL, batch)
    there, taught = read(params[GROUP]["teachers"]["0"], LM_TEACHER, batch)
    segment = batch["segment"]
    inside = np.pad((segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0), ((0, 0), (0, 1)))
    maps = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[GROUP]["maps"]["0_0"])
    divergence = kl([there], logits, 2.0)[inside].sum()
    distance = apart((hidden[1] @ maps["kernel"] + maps["bias"])[inside], taught[3][inside], "cosine").sum()
    np.testing.assert_allclose(metrics["divergence"], (divergence, inside.sum()), rtol=1e-4)
    np.testing.assert_allclose(metrics["distance"], (distance, inside.sum()), rtol=1e-4)
    np.testing.assert_allclose(metrics["own"], own[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(
        loss, 0.4 * float(own[0]) + (0.6 * divergence + 1.0 * distance) / inside.sum(), rtol=1e-4
    )
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient[GROUP]["teachers"]))


def test_large_vocabularies_are_gone_through_in_parts():
    """24 places in parts of five, for each of two rows, give what all at once give, and the same gradient."""
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(3, 2, 24, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, 9)), jnp.float32)

    def total(kernel, chunk_logits=10**6):
        views = [distillation.View(x, lambda x: x @ kernel, {}) for x in states]
        return distillation.divergences(views[0], views[1:], 2.0, chunk_logits)

    whole = total(kernel), jax.grad(lambda kernel: total(kernel).sum())(kernel)
    np.testing.assert_allclose(
        whole[0], kl([states[1] @ kernel, states[2] @ kernel], states[0] @ kernel, 2.0), rtol=1e-3
    )
    np.testing.assert_allclose(total(kernel, 2 * 5 * 9), whole[0], rtol=1e-5)
    gradient = jax.grad(lambda kernel: total(kernel, 2 * 5 * 9).sum())(kernel)
    np.testing.assert_allclose(gradient, whole[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "the shape of one is not known yet"),
        ({"model": text.MODEL}, "is a transformer, the student a conformer"),
        ({"layers": ((3, 1),)}, r"pair of layers \(3, 1\) goes beyond the student's 2"),
        ({"frontend": FRONTEND.replace(mel=tiny.MEL.replace(stack=4))}, "has a conformer's frame every 640 samples"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Distillation(teachers=(TEACHERS[0].replace(**change),)).build(STUDENT, FRONTEND, LETTERS)


def test_a_transducer_learns_from_a_ctc_model_through_its_head_and_its_encoder():
    """Its own loss is the transducer's; the divergence is that of its CTC head, as of a CTC student."""
    teachers = (TEACHERS[0].replace(layers=((1, 2),)),)
    network = TransducerConfig(dim=8, dropout=0.0, predictor=StatelessPredictorConfig())
    student = Transducer(network=network, ctc_weight=0.25)
    config = Distillation(student=student, teachers=teachers, share=0.3, temperature=2.5, hidden_weight=0.7)
    built, params = _made(config, STUDENT, FRONTEND, LETTERS)
    batch = batch_of()
    loss, metrics, gradient = with_gradient(built)(params, batch, None)
    alone = student_part(params)
    own, _ = jax.jit(student.build(STUDENT, FRONTEND, LETTERS).loss)(alone, batch, None)
    as_ctc = Distillation(student=CTC(), teachers=teachers, share=0.3, temperature=2.5, hidden_weight=0.7)
    ctc_params = {name: params[name] for name in ("encoder", "head", GROUP)}
    _, expected = jax.jit(as_ctc.build(STUDENT, FRONTEND, LETTERS).loss)(ctc_params, batch, None)
    for name in ("divergence", "distance"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    targets = expected["loss"][1]
    total = 0.7 * float(own) + (0.3 * float(metrics["divergence"][0]) + 0.7 * float(metrics["distance"][0])) / targets
    np.testing.assert_allclose(loss, total, rtol=1e-4)
    assert {"transducer", "ctc", "infeasible"} <= set(metrics)
    assert all(gradient[name]["kernel"].any() for name in ("head", "joint"))
    with pytest.raises(ValueError, match=r"set objective\.student\.ctc_weight above 0"):
        config.replace(student=student.replace(ctc_weight=0.0)).build(STUDENT, FRONTEND, LETTERS)
