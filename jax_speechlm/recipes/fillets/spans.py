"""Span corruption of English prose and of the Czech and Dutch of fillets, 2,048 byte pairs: an encoder-decoder.

jax-speechlm pretrain --config fillets/spans --data.tokenizer runs/text_tasks/tokens/tokenizer

`scripts/text_tasks.py` prepares the sets and the tokenizer, and runs it. 2.06 M parameters, 6.1 M tokens, seed 0; one
CPU core beside other work: 17 minutes.

Result: dev 32.4 % of the tokens in gaps right, loss 4.198
"""

from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.text_encoder_decoder import TextEncoderDecoderConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.lm.span_corruption import SpanCorruption
from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.experiment import Experiment, Text

ENCODER = TransformerConfig.modernbert(
    dim=128, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=32, ffn_dim=256, head="linear"
)
DECODER = AttentionDecoderConfig(dim=128, num_layers=3, num_heads=4, ffn_dim=512)


def config() -> Experiment:
    return Experiment(
        data=Text(
            sets=("sentences-en", "fillets-cs", "fillets-nl"),
            weights=(0.8, 0.1, 0.1),
            context=128,
            tokens_per_batch=4096,
        ),
        objective=SpanCorruption(),
        model=TextEncoderDecoderConfig(encoder=ENCODER, decoder=DECODER),
        **on_cpu(1500, peak=2e-3, warmup_steps=150, eval_every=500),
    )
