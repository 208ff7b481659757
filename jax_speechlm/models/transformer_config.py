"""Shape of a transformer (`jax_speechlm.models.transformer`) and the FLOPs of its forward pass.

Parameters without the embedding table, which has `dim` values a token (8B has a second table, for its head):

| size | layers | dim  | heads | kv heads | ffn    | parameters    |
|------|-------:|-----:|------:|---------:|-------:|--------------:|
| 1M   |      5 |  128 |     4 |        4 |    352 |     1,005,248 |
| 5M   |      6 |  256 |     4 |        4 |    704 |     4,820,992 |
| 25M  |      8 |  512 |     8 |        8 |  1,408 |    25,699,840 |
| 110M |     12 |  768 |    12 |       12 |  2,048 |    84,955,392 |
| 0.6B |     28 | 1024 |    16 |        8 |  3,072 |   440,467,456 |
| 1.7B |     28 | 2048 |    16 |        8 |  6,144 | 1,409,410,048 |
| 8B   |     36 | 4096 |    32 |        8 | 12,288 | 6,946,075,648 |

110M reaches its name with 32,768 tokens; the last three are Qwen3's shapes and reach theirs with its 151,936.
"""

from typing import Any, Literal

import pydantic

from jax_speechlm.core.config import Config
from jax_speechlm.models import rope
from jax_speechlm.nn.attention.dot import Kernel
from jax_speechlm.nn.functional import Remat


class LearnedPositions(Config):
    """Learnt position embeddings, added to the token embeddings as in BERT.

    Attributes:
      size: rows of the table.
      first: row of a document's first position; RoBERTa leaves two rows unused.
      token_types: rows of the token type table. Every token gets the first: BERT's second is for pairs of texts, and a
        document is a single text.
    """

    size: pydantic.PositiveInt = 512
    first: pydantic.NonNegativeInt = 0
    token_types: pydantic.NonNegativeInt = 0

    @property
    def longest(self) -> int:
        """Longest document in tokens."""
        return self.size - self.first

    @pydantic.model_validator(mode="after")
    def _some_are_left(self):
        if self.longest < 1:
            raise ValueError(f"first ({self.first}) must be below size ({self.size})")
        return self


NormPlacement = Literal["pre", "pre_embedding", "post"]
"""Where a block's norms act. "pre": on the input of attention and of the feed-forward, whose outputs are added to the
residual stream (Qwen3, Llama). "pre_embedding": the same on normalised embeddings, which the first attention takes
without a second norm (ModernBERT). "post": the normalised values are also what the outputs are added to, which equals a
norm after each addition (BERT)."""

FeedForwardKind = Literal["swiglu", "geglu", "silu", "gelu", "gelu_tanh", "relu"]
"""Activation of the feed-forward, with a gate ("swiglu", "geglu"; Shazeer 2020) or without. GELU is the exact one,
"gelu_tanh" its approximation in GPT-2."""

HeadKind = Literal["linear", "transform"]
"""Map from hidden states to logits. "linear": the vocabulary map alone; an encoder without a language model's head has
the embedding table there. "transform": linear, GELU (or the feed-forward's "gelu_tanh" or "relu") and norm before a
vocabulary map with a bias, as in the masked language models of BERT and ModernBERT."""

_DECODER = {
    "causal": True,
    "norm": "rms",
    "norm_placement": "pre",
    "bias": False,
    "qkv_bias": False,
    "feedforward": "swiglu",
    "head": "linear",
}
_ENCODER = {
    "causal": False,
    "norm": "layer",
    "norm_placement": "pre_embedding",
    "bias": False,
    "qkv_bias": False,
    "feedforward": "geglu",
    "query_key_norm": False,
    "head": "transform",
}
FORMS: dict[str, dict[str, Any]] = {
    "qwen3": _DECODER | {"query_key_norm": True},
    "qwen2": _DECODER | {"query_key_norm": False, "qkv_bias": True},
    "llama": _DECODER | {"query_key_norm": False},
    "gpt2": _DECODER | {"norm": "layer", "bias": True, "feedforward": "gelu_tanh", "query_key_norm": False},
    "modernbert": _ENCODER,
    "bert": _ENCODER | {"norm_placement": "post", "bias": True, "feedforward": "gelu"},
}
"""Settings that distinguish each family of models, whatever its shape."""

_OLD_CHOICES: dict[str, tuple[dict[str, Any], dict[tuple, str]]] = {
    "norm_placement": (
        {"embedding_norm": False, "post_norm": False},
        {(False, False): "pre", (True, False): "pre_embedding", (True, True): "post"},
    ),
    "feedforward": (
        {"gated": True, "activation": "silu"},
        {(True, "silu"): "swiglu", (True, "gelu"): "geglu", (False, "silu"): "silu", (False, "gelu"): "gelu"},
    ),
    "head": ({"prediction_head": False}, {(False,): "linear", (True,): "transform"}),
}
"""For each setting: the settings of earlier versions that it replaces with their defaults, and the choice for each
combination of their values."""


class TransformerConfig(Config):
    """The shape of a transformer. The defaults are a small causal model in Qwen3's form.

    `qwen3`, `qwen2`, `llama`, `gpt2`, `modernbert` and `bert` return configs in the form of these families.

    Attributes:
      dim: width of the residual stream.
      num_layers: number of blocks.
      num_heads: query heads; a multiple of `num_kv_heads`.
      num_kv_heads: heads of keys and values; fewer than `num_heads` is grouped-query attention.
      head_dim: width of a head; even with rotary positions.
      ffn_dim: inner width of the feed-forward.
      causal: whether a token attends only to itself and the tokens before it.
      norm: RMSNorm or LayerNorm.
      norm_epsilon: added to the variance by the norms.
      norm_placement: where the norms act (see `NormPlacement`).
      bias: whether linear maps have a bias, and LayerNorms an offset.
      qkv_bias: whether the maps to queries, keys and values have one where others have none, as in Qwen2.
      feedforward: activation and gate of the feed-forward (see `FeedForwardKind`).
      query_key_norm: whether each head's queries and keys pass an RMSNorm, with its own scale, before rotation.
      head: map from hidden states to logits (see `HeadKind`).
      tied: whether the vocabulary map is the embedding table.
      positions: learnt position embeddings, or None for rotary ones.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: change of the rotary frequencies for longer texts (`models.rope`), or None.
      window: greatest distance in tokens between a query and its keys; None for no limit.
      global_every: with a window, layers 0, n, 2n, ... have none; None for a window in every layer.
      global_layers: with a window, other layers that have none, from 0 on.
      local_rope_theta: `rope_theta` of the layers with a window; None for the same.
      dropout: rate on the embeddings and on the outputs of attention and feed-forward.
      attention: kernel that computes attention (see `nn.attention.dot.Kernel`); the result does not depend on it.
      remat: activations that the forward pass keeps for the backward pass (see `functional.Remat`).
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
    norm_placement: NormPlacement = "pre"
    bias: bool = False
    qkv_bias: bool = False
    feedforward: FeedForwardKind = "swiglu"
    query_key_norm: bool = True
    head: HeadKind = "linear"
    tied: bool = True
    positions: LearnedPositions | None = None
    rope_theta: pydantic.PositiveFloat = 10_000.0
    rope_scaling: rope.Scaling | None = None
    window: pydantic.PositiveInt | None = None
    global_every: pydantic.PositiveInt | None = None
    global_layers: tuple[pydantic.NonNegativeInt, ...] = ()
    local_rope_theta: pydantic.PositiveFloat | None = None
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    attention: Kernel = "auto"
    remat: Remat = "dots"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def qwen3(cls, **settings: Any) -> "TransformerConfig":
        """Returns a config in Qwen3's form: causal, RMSNorm (on queries and keys too), SwiGLU."""
        return cls(**FORMS["qwen3"] | settings)

    @classmethod
    def qwen2(cls, **settings: Any) -> "TransformerConfig":
        """Returns a config in Qwen2's form: Llama's with biases of queries, keys and values."""
        return cls(**FORMS["qwen2"] | settings)

    @classmethod
    def llama(cls, **settings: Any) -> "TransformerConfig":
        """Returns a config in Llama's form: Qwen3's without the norms of queries and keys."""
        return cls(**FORMS["llama"] | settings)

    @classmethod
    def gpt2(cls, **settings: Any) -> "TransformerConfig":
        """Returns a config in GPT-2's form: causal, LayerNorm, biases, approximate GELU, learnt positions."""
        learnt = {"norm_epsilon": 1e-5, "positions": LearnedPositions(size=1024)}
        return cls(**FORMS["gpt2"] | learnt | settings)

    @classmethod
    def modernbert(cls, **settings: Any) -> "TransformerConfig":
        """Returns a config in ModernBERT's form: bidirectional, LayerNorm without offset, GEGLU, rotary positions."""
        return cls(**FORMS["modernbert"] | {"norm_epsilon": 1e-5} | settings)

    @classmethod
    def bert(cls, **settings: Any) -> "TransformerConfig":
        """Returns a config in BERT's form: bidirectional, norm after each addition, biases, GELU, learnt positions."""
        learnt = {"norm_epsilon": 1e-12, "positions": LearnedPositions(token_types=2)}
        return cls(**FORMS["bert"] | learnt | settings)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _translate_booleans(cls, values: Any) -> Any:
        """Replaces the booleans of earlier versions (`_OLD_CHOICES`) by the setting that holds their choice."""
        if not isinstance(values, dict):
            return values
        for name, (old_defaults, choices) in _OLD_CHOICES.items():
            old = {key: values[key] for key in old_defaults if key in values}
            if not old:
                continue
            names = ", ".join(old)
            if name in values:
                raise ValueError(f"{name} replaces {names} of earlier versions: keep {name} only")
            choice = choices.get(tuple((old_defaults | old).values()))
            if choice is None:
                raise ValueError(f"{names}: no such form; set {name} to one of {', '.join(choices.values())}")
            values = {key: value for key, value in values.items() if key not in old} | {name: choice}
        return values

    @pydantic.model_validator(mode="after")
    def _parts_fit(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.positions is None and self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions rotate pairs of values")
        if self.window is None and (self.global_every or self.global_layers or self.local_rope_theta):
            raise ValueError(
                "global_every, global_layers and local_rope_theta apply to models with a window: set window"
            )
        if self.global_layers and max(self.global_layers) >= self.num_layers:
            raise ValueError(f"global_layers {self.global_layers} must be below num_layers ({self.num_layers})")
        if self.bias and self.qkv_bias:
            raise ValueError("qkv_bias is for models whose other linear maps have no bias: set it, or bias, to False")
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("attention='cudnn' computes in bfloat16 only: set dtype='bfloat16', or attention='auto'")
        return self

    @property
    def gated(self) -> bool:
        """Whether the feed-forward multiplies its inner values by a gate."""
        return self.feedforward in ("swiglu", "geglu")

    @property
    def sees_all(self) -> tuple[bool, ...]:
        """For each layer, whether its attention has no window."""
        if self.window is None:
            return (True,) * self.num_layers
        every = range(0, self.num_layers, self.global_every) if self.global_every else ()
        return tuple(i in every or i in self.global_layers for i in range(self.num_layers))


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
    """Returns the FLOPs of the matrix products of one forward pass; a multiply-add is two.

    Attention counts the pairs of a row of `num_tokens` that is one segment; the head counts every token.
    """
    width = config.num_heads * config.head_dim
    inner = (3 if config.gated else 2) * config.ffn_dim
    layer = (2 * width + 2 * config.num_kv_heads * config.head_dim + inner) * config.dim
    linear = batch_size * num_tokens * (2.0 * config.num_layers * layer + head_flops(config, vocab_size))
    return linear + attention_flops(config, num_tokens, batch_size)


def head_flops(config: TransformerConfig, vocab_size: int) -> float:
    """Returns the share of `forward_flops` that one token's logits take."""
    return 2.0 * (vocab_size + config.dim * (config.head == "transform")) * config.dim


def attention_flops(config: TransformerConfig, num_tokens: int, batch_size: int) -> float:
    """Returns the share of `forward_flops` without parameters: queries times keys, weights times values."""
    windows = (None if sees_all else config.window for sees_all in config.sees_all)
    pairs = sum(_visible_pairs(num_tokens, window, config.causal) for window in windows)
    return 4.0 * batch_size * config.num_heads * config.head_dim * pairs


def _visible_pairs(num_tokens: int, window: int | None, causal: bool) -> int:
    """Returns the number of (query, key) pairs that attention scores in a row of one segment."""
    reach = num_tokens - 1 if window is None else min(window, num_tokens - 1)
    earlier = reach * num_tokens - reach * (reach + 1) // 2
    return num_tokens + earlier * (1 if causal else 2)
