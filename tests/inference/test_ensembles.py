"""An ensemble gives the mean of its members' probabilities, whatever their order, and refuses what has none."""

import itertools

import jax
import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.decoding.lm.neural_fusion import NeuralScorer
from jax_speechlm.evaluation.language import Prediction, predict
from jax_speechlm.inference.asr.ctc import Recognizer, mean_probability
from jax_speechlm.inference.asr.decoder import Decoder, Decoding
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.ensemble import LanguageEnsemble
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.recipes.experiment import Text
from jax_speechlm.training.checkpoints import CheckpointError
from tests.decoding.test_ngram import total as total_score
from tests.evaluation.runs import write_run
from tests.objectives.text import MODEL, TOKENIZER
from tests.training import tiny

LETTERS = CharTokenizer(tiny.LETTERS)
TEXTS = ["", "a bad cab", "hello there", "one of those long sentences that go on and on and have no end"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained recognizers by name: two that fit, one with other letters, one with other frames."""
    folder = tmp_path_factory.mktemp("runs")
    plain = tiny.experiment("ctc", frontend=tiny.experiment("ctc").frontend)
    coarse = plain.frontend.replace(mel=plain.frontend.mel.replace(stack=4))
    made = {
        "one": (plain, LETTERS),
        "wide": (plain.replace(model=plain.model.replace(dim=24, num_layers=1), seed=1), LETTERS),
        "letters": (plain, CharTokenizer("abcd")),
        "frames": (plain.replace(frontend=coarse, model=plain.model.replace(input_dim=coarse.mel.input_dim)), LETTERS),
    }
    return {name: write_run(folder / name, *each) for name, each in made.items()}


@pytest.fixture(scope="module")
def batches():
    """One batch, anew at every call."""
    return lambda: itertools.islice(tiny.source(tiny.experiment("ctc")).dev_batches(), 1)


def posteriors(recognizer, batches):
    """Operation by operation: a program of two members rounds otherwise than one of each, and they magnify that."""
    batch = jax.tree.map(jax.numpy.asarray, next(batches()))
    with jax.disable_jit():
        log_probs, lengths = jax.device_get(recognizer._posteriors(recognizer.params, batch))
    return {row: log_probs[row, :length] for row, length in enumerate(lengths)}


def test_posteriors_are_the_mean_of_the_members(runs, batches):
    alone = [posteriors(Recognizer.load(runs[name]), batches) for name in ("one", "wide")]
    together = Recognizer.load(runs["one"], ensemble=[runs["wide"]])
    for row, log_probs in posteriors(together, batches).items():
        one, wide = (each[row].astype(np.float64) for each in alone)
        assert np.abs(one - wide).max() > 0.1
        np.testing.assert_allclose(np.exp(log_probs), (np.exp(one) + np.exp(wide)) / 2, atol=1e-6)
    found = together.posteriors(batches())
    assert found.keys() == Recognizer.load(runs["one"]).posteriors(batches()).keys()
    texts = together.recognize(batches())
    assert texts == {row: LETTERS.decode(collapse(found[row].argmax(-1)[None])[0]) for row in found}
    assert (
        together.decoding_description
        == f"greedy, ensemble of {runs['one']}/checkpoints/0, {runs['wide']}/checkpoints/0"
    )


def test_the_order_of_members_does_not_matter_and_one_alone_is_itself():
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (3, 4, 5)))
    expected = np.log(np.exp(np.asarray(log_probs, np.float64)).mean(0))
    for order in ((0, 1, 2), (2, 0, 1)):
        np.testing.assert_allclose(mean_probability([log_probs[each] for each in order]), expected, atol=1e-5)
    np.testing.assert_array_equal(mean_probability([log_probs[0]]), log_probs[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [("letters", "has another tokenizer"), ("frames", r"frame every 640 samples, .* frame every 320")],
)
def test_members_that_do_not_fit_are_refused(runs, other, message):
    with pytest.raises(CheckpointError, match=message):
        open_transcriber(runs["one"], ensemble=(runs[other],))


def lm(seed: int, context: int = 64, tokenizer=TOKENIZER) -> LanguageModel:
    built = CausalLM().build(MODEL, None, tokenizer)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(seed)))
    return LanguageModel(MODEL, tokenizer, params, context)


@pytest.fixture(scope="module")
def members():
    return lm(0), lm(1, context=32)


def test_every_token_has_the_mean_of_the_members_probabilities(members):
    documents = [members[0].encode(text) for text in TEXTS]
    each = [member.token_nll(documents) for member in members]
    for one, other, found in zip(*each, LanguageEnsemble(members).token_nll(documents), strict=True):
        np.testing.assert_allclose(np.exp(-found), (np.exp(-one) + np.exp(-other)) / 2, rtol=1e-5)


def test_texts_step_by_step_and_whole_cost_the_same_whatever_the_order(members):
    """The scorer of a search and the whole text agree, so a mixture is taken token by token in both."""
    ensemble, back = LanguageEnsemble(members), LanguageEnsemble(members[::-1])
    assert ensemble.context == 32
    scorer = NeuralScorer(ensemble, np.arange(TOKENIZER.vocab_size), ensemble.vocabulary.boundary)
    short = TEXTS[:-1]
    for text, score in zip(short, ensemble.score(short), strict=True):
        assert total_score(scorer, TOKENIZER.encode(text)) == pytest.approx(score, rel=1e-5)
    np.testing.assert_allclose(back.score(TEXTS), ensemble.score(TEXTS), rtol=1e-6)
    best, worst = max(each.score(short).sum() for each in members), min(each.score(short).sum() for each in members)
    tokens = sum(len(ensemble.encode(text)) - 1 for text in short)
    assert worst < ensemble.score(short).sum()
    assert ensemble.score(short).sum() > best - tokens * np.log(2)  # a mixture loses at most log 2 a token


def test_language_models_of_other_vocabularies_are_refused(members):
    with pytest.raises(CheckpointError, match="only models of one vocabulary have a mean"):
        LanguageEnsemble((members[0], lm(0, tokenizer=LETTERS)))


def test_fusion_and_evaluation_take_several_runs(tmp_path):
    experiment = tiny.experiment("ctc").replace(
        objective=CausalLM(), model=MODEL, data=Text(sets=("letters",), context=16, tokens_per_batch=16)
    )
    runs = [write_run(tmp_path / str(seed), experiment.replace(seed=seed), LETTERS) for seed in (0, 1)]
    decoding = Decoding(lm=runs[0], lm_ensemble=(runs[1],), alpha=0.5, beta=1.0)
    assert str(decoding) == f"prefix beam 16 + {runs[0]} and {runs[1]} (alpha 0.5, beta 1)"
    log_probs = np.log(np.full((6, LETTERS.vocab_size), 1 / LETTERS.vocab_size, np.float32))
    assert len(Decoder(decoding, LETTERS).decode([log_probs])) == 1
    found = predict(LanguageEnsemble.load(runs), ["abc", "a cab"])
    assert Prediction.total(found).units == 10
    with pytest.raises(DataError, match="trained with another tokenizer"):
        Decoder(decoding, CharTokenizer("xyz"))
    with pytest.raises(ValueError, match="name one with --lm"):
        Decoding(lm_ensemble=(runs[1],))
