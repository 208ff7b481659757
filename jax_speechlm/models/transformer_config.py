"""The shapes that a transformer can have (`transformer`), and what one costs.

Parameters without the vocabulary's table, which has dim for each token (8B has a second one, for the head):

| size | layers | dim  | heads | kv heads | ffn    | parameters    |
|------|-------:|-----:|------:|---------:|-------:|--------------:|
| 1M   |      5 |  128 |     4 |        4 |    352 |     1,005,248 |
| 5M   |      6 |  256 |     4 |        4 |    704 |     4,820,992 |
| 25M  |      8 |  512 |     8 |        8 |  1,408 |    25,699,840 |
| 110M |     12 |  768 |    12 |       12 |  2,048 |    84,955,392 |
| 0.6B |     28 | 1024 |    16 |        8 |  3,072 |   440,467,456 |
| 1.7B |     28 | 2048 |    16 |        8 |  6,144 | 1,409,410,048 |
| 8B   |     36 | 4096 |    32 |        8 | 12,288 | 6,946,075,648 |

110M has its name with 32,768 tokens; the last three are Qwen3's shapes and have theirs with its 151,936.
"""

from typing import Literal

import pydantic

from jax_speechlm.core.config import Config
from jax_speechlm.nn.attention.dot import Kernel
from jax_speechlm.nn.functional import Remat


class LearnedPositions(Config):
    """A vector for each position, added to the embeddings, as BERT has.

    Attributes:
      size: vectors in the table.
      first: which of them is a document's first; RoBERTa leaves two unused.
      token_types: vectors in a second table, of which every token gets the first: BERT's second is for pairs of texts,
        and a document is one.
    """

    size: pydantic.PositiveInt = 512
    first: pydantic.NonNegativeInt = 0
    token_types: pydantic.NonNegativeInt = 0

    @property
    def longest(self) -> int:
        """Tokens that a document can have."""
        return self.size - self.first

    @pydantic.model_validator(mode="after")
    def _some_are_left(self):
        if self.longest < 1:
            raise ValueError(f"first ({self.first}) must be below size ({self.size})")
        return self


class TransformerConfig(Config):
    """The shape of a transformer. The defaults are a small causal model in Qwen3's form.

    Llama's form has `query_key_norm=False`. ModernBERT's has `causal=False, norm="layer", norm_epsilon=1e-5,
    activation="gelu", query_key_norm=False, embedding_norm=True, prediction_head=True` and a window. BERT's has the
    same without a window, and `post_norm=True, bias=True, gated=False, positions=LearnedPositions(token_types=2)`.

    Attributes:
      dim: width of the residual stream.
      num_layers: blocks.
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: heads of keys and values; fewer than `num_heads` is grouped-query attention.
      head_dim: width of a head; even.
      ffn_dim: inner width of the feed-forward.
      causal: whether a token sees only itself and those before it.
      norm: RMSNorm, or LayerNorm.
      norm_epsilon: what the norms add to the variance.
      post_norm: whether attention and feed-forward are added to the normalised residual stream, not to the stream
        itself: the norm before one of them is then what others call the norm after the other.
      bias: whether linear maps have one, and LayerNorms an offset.
      gated: whether the feed-forward multiplies its inner values by a gate, which takes the activation.
      activation: of the gate, or else of the inner values: gated "silu" is SwiGLU, gated "gelu" (exact) GEGLU.
      query_key_norm: whether each head's queries and keys pass an RMSNorm (of their own scale) before rotation.
      embedding_norm: whether the residual stream starts from the normalised embeddings; they are then not normalised
        again before the first attention.
      prediction_head: whether a linear map, GELU and norm stand before the vocabulary map, which then has a bias.
      tied: whether the vocabulary map is the embedding.
      positions: learnt ones in place of rotary ones, or None.
      rope_theta: base of the rotary angles' wavelengths.
      window: the greatest distance in tokens at which attention sees; None for any.
      global_every: with a window: layers 0, n, 2n, ... see everything all the same; None for no such layers.
      local_rope_theta: `rope_theta` of the layers with a window; None for the same.
      dropout: rate on the embeddings and on what attention and feed-forward add.
      attention: what computes attention (see `dot_attention.Kernel`); no result depends on it.
      remat: what the forward pass keeps for the backward pass (see `functional.Remat`).
      dtype: compute type; parameters, norms, softmax and the output are float32.
    """

    kind: Literal["transformer"] = "transformer"
    dim: pydantic.PositiveInt = 256
    num_layers: pydantic.PositiveInt = 6
    num_heads: pydantic.PositiveInt = 4
    num_kv_heads: pydantic.PositiveInt = 4
    head_dim: pydantic.PositiveInt = 64
    ffn_dim: pydantic.PositiveInt = 704
    causal: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: pydantic.PositiveFloat = 1e-6
    post_norm: bool = False
    bias: bool = False
    gated: bool = True
    activation: Literal["silu", "gelu"] = "silu"
    query_key_norm: bool = True
    embedding_norm: bool = False
    prediction_head: bool = False
    tied: bool = True
    positions: LearnedPositions | None = None
    rope_theta: pydantic.PositiveFloat = 10_000.0
    window: pydantic.PositiveInt | None = None
    global_every: pydantic.PositiveInt | None = None
    local_rope_theta: pydantic.PositiveFloat | None = None
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    attention: Kernel = "auto"
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @pydantic.model_validator(mode="after")
    def _parts_fit(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        if self.post_norm and not self.embedding_norm:
            raise ValueError("post_norm normalises the embeddings too: set embedding_norm=True")
        if self.window is None and (self.global_every or self.local_rope_theta):
            raise ValueError("global_every and local_rope_theta speak of layers with a window: set window")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("attention='cudnn' computes in bfloat16 only: set dtype='bfloat16', or attention='auto'")
        return self

    @property
    def sees_all(self) -> tuple[bool, ...]:
        """For each layer, whether its attention has no window."""
        if self.window is None:
            return (True,) * self.num_layers
        return tuple(self.global_every is not None and i % self.global_every == 0 for i in range(self.num_layers))


SIZES = {
    "1M": TransformerConfig(dim=128, num_layers=5, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=352),
    "5M": TransformerConfig(),
    "25M": TransformerConfig(dim=512, num_layers=8, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=1408),
    "110M": TransformerConfig(dim=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64, ffn_dim=2048),
    "0.6B": TransformerConfig(
        dim=1024, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, ffn_dim=3072, rope_theta=1e6
    ),
    "1.7B": TransformerConfig(
        dim=2048, num_layers=28, num_heads=16, num_kv_heads=8, head_dim=128, ffn_dim=6144, rope_theta=1e6
    ),
    "8B": TransformerConfig(
        dim=4096, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, ffn_dim=12288, rope_theta=1e6, tied=False
    ),
}


def forward_flops(config: TransformerConfig, vocab_size: int, num_tokens: int, batch_size: int) -> float:
    """FLOPs of the matrix products of one forward pass over rows of `num_tokens`; a multiply-add is two.

    Attention counts the pairs that a token may see were the row one segment, the vocabulary map every token.
    """
    width = config.num_heads * config.head_dim
    inner = (3 if config.gated else 2) * config.ffn_dim
    layer = (2 * width + 2 * config.num_kv_heads * config.head_dim + inner) * config.dim
    head = (vocab_size + config.dim * config.prediction_head) * config.dim
    linear = 2.0 * batch_size * num_tokens * (config.num_layers * layer + head)
    return linear + attention_flops(config, num_tokens, batch_size)


def attention_flops(config: TransformerConfig, num_tokens: int, batch_size: int) -> float:
    """The share of `forward_flops` that no parameter has a part in: queries by keys, and weights by values."""
    windows = (None if sees_all else config.window for sees_all in config.sees_all)
    pairs = sum(_pairs(num_tokens, window, config.causal) for window in windows)
    return 4.0 * batch_size * config.num_heads * config.head_dim * pairs


def _pairs(num_tokens: int, window: int | None, causal: bool) -> int:
    """How many (query, key) pairs attention looks at in a row of one segment."""
    reach = num_tokens - 1 if window is None else min(window, num_tokens - 1)
    behind = reach * num_tokens - reach * (reach + 1) // 2
    return num_tokens + behind * (1 if causal else 2)
