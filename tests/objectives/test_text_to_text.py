"""Text to text, and span corruption of an encoder-decoder, against one document at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoder, TextEncoderDecoderConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption, most_spans
from jax_speechlm.objectives.lm.text_to_text import TextToText
from tests.objectives.test_span_corruption import MARKERS, RATIO, SPAN, VOCABULARY, corrupted, drawer
from tests.objectives.text import MODEL, TOKENIZER, documents, pack

TIME, BOUNDARY = 40, VOCABULARY.boundary
CONFIG = TextEncoderDecoderConfig(
    encoder=MODEL.replace(causal=False),
    decoder=AttentionDecoderConfig(dim=16, num_layers=2, num_heads=2, ffn_dim=24, max_tokens=TIME),
)


def pair(seed: int, given: int, asked: int) -> list[int]:
    """A document of so many tokens, and its target of so many."""
    text, target = documents(seed, [given, asked])
    return [*text, *target[1:]]


@functools.cache
def built(objective: str):
    configs = {
        "text_to_text": TextToText(),
        "span_corruption": SpanCorruption(ratio=RATIO, mean_span=SPAN, sentinels=MARKERS),
    }
    objective = configs[objective].build(CONFIG, None, TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(objective.make, jax.random.key(0)))
    return objective, params, jax.jit(objective.loss), jax.jit(functools.partial(alone, objective))


def alone(objective, params, given, num_given, tokens):
    """Logits after each token of a decoder that reads one text, both in rows of one document."""
    model: TextEncoderDecoder = functional.bind(functional.declare(objective.make).graphdef, params)
    place = jnp.arange(TIME)[None]
    hidden = model.transformer(given[None], (place < num_given).astype(jnp.int32), place)
    source = model.decoder.read(hidden, (place < num_given).astype(jnp.int32))
    return model.decoder.logits(model.decoder(tokens[None], place * 0 + 1, place, source))[0]


def padded(ids: list[int]) -> np.ndarray:
    return np.array([*ids, *[0] * (TIME - len(ids))], np.int32)


def expected(objective: str, examples: list[tuple[list[int], list[int]]]) -> tuple[float, int, int]:
    """Sums of the losses and of the right predictions of what is asked after its first token, and their number."""
    _, params, _, run = built(objective)
    nll, hits, count = 0.0, 0, 0
    for given, asked in examples:
        logits = np.asarray(run(params, padded(given), len(given), padded(asked)), np.float64)
        for row, token in zip(logits, asked[1:], strict=False):
            nll += np.log(np.exp(row).sum()) - row[token]
            hits, count = hits + (row.argmax() == token), count + 1
    return nll, hits, count


def check(objective: str, batch: dict[str, np.ndarray], examples: list[tuple[list[int], list[int]]]) -> None:
    _, params, run, _ = built(objective)
    loss, metrics = run(params, batch, None)
    nll, hits, count = expected(objective, examples)
    np.testing.assert_allclose(metrics["loss"], (nll, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (hits, count))
    np.testing.assert_allclose(loss, nll / count, rtol=1e-5)


def test_packed_pairs_are_predicted_as_one_by_one():
    (plain,) = documents(9, [6])
    rows = [[pair(0, 5, 3), pair(1, 1, 9), plain], [pair(2, 14, 1)], [], [plain, pair(3, 0, 4), pair(4, 7, 7)]]
    pairs = [row for rows in rows for row in rows if BOUNDARY in row[1:-1]]
    assert len(pairs) == 5
    examples = [(ids[: ids.index(BOUNDARY, 1)], ids[ids.index(BOUNDARY, 1) :]) for ids in pairs]
    check("text_to_text", pack(rows, TIME), examples)


def test_a_piece_of_a_pair_counts_for_what_is_left_of_it():
    whole = pair(0, 12, 6)
    middle = whole.index(BOUNDARY, 1)
    # A longer document is cut into rows: without its beginning, without its end, and with the end alone.
    rows = [[whole[4:]], [whole[: middle + 4]], [whole[middle + 2 :]]]
    check(
        "text_to_text",
        pack(rows, TIME),
        [(whole[4:middle], whole[middle:]), (whole[:middle], whole[middle : middle + 4])],
    )


def test_span_corruption_reads_the_gapped_text_and_predicts_the_gaps():
    rows = [documents(0, [9, 14]), documents(1, [7]), [], documents(2, [0]), documents(3, [38])]
    batch = pack(rows, TIME)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.asarray(batch["example_id"]))
    lengths = (batch["segment"] > 0).sum(1)
    gaps = np.asarray(drawer(TIME, RATIO, SPAN)(keys, lengths))
    examples = []
    for row in np.flatnonzero(batch["weight"]):
        ids, answer = corrupted(batch["tokens"][row, : lengths[row]].tolist(), gaps[row, : lengths[row]].tolist())
        examples.append((ids[:answer], ids[answer:]))
    check("span_corruption", batch, examples)


@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5])
def test_every_gap_fits_into_what_is_asked(ratio):
    objective = SpanCorruption(ratio=ratio)
    for num_tokens in range(3, 60):
        spans = most_spans(num_tokens, ratio, objective.mean_span)
        noise = np.round(np.float32(ratio) * np.float32(num_tokens)).astype(int)
        assert objective._most_asked(num_tokens) >= max(noise, 1) + spans


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="encoder with a decoder, not a transformer"):
        TextToText().build(MODEL, None, TOKENIZER)
    with pytest.raises(ValueError, match=r"encoder\.causal"):
        CONFIG.replace(encoder=MODEL)
    with pytest.raises(ValueError, match=r"encoder\.head"):
        CONFIG.replace(encoder=MODEL.replace(causal=False, head="transform"))
    _, params, run, _ = built("text_to_text")
    with pytest.raises(ValueError, match=r"model\.decoder\.max_tokens"):
        run(params, pack([[pair(0, 3, 3)]], TIME + 1), None)
