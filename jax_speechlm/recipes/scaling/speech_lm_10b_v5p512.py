"""A 2 B conformer and an 8 B LM joined, both learning, for a v5p-512 slice.

jax-speechlm prepare --manifest transcribed.jsonl
jax-speechlm finetune --config scaling/speech_lm_10b_v5p512 --data.sets transcribed \\
  --from runs/conformer_2b --from runs/lm_8b

Takes the encoder of `scaling/conformer_2b_v5e256` and the language model of `scaling/lm_8b_v5p512`. Two frames of 40 ms
make one vector: 375 vectors for 30 s of speech.

Result: planned only, never run: sized with `jax-speechlm plan`
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models import conformer, transformer_config
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.common import MEL
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech

ENCODER = conformer.SIZES["2B"].replace(input_dim=MEL.input_dim, dtype="bfloat16", remat="full")
LANGUAGE_MODEL = transformer_config.SIZES["8B"].replace(dtype="bfloat16", remat="full")


def config() -> Experiment:
    return Experiment(
        data=Speech(
            sets=("transcribed",),
            tokenizer="data/bpe-128000",
            seconds_per_batch=256 * 120,
            num_buckets=4,
            batch_multiple=256,
            min_seconds=2.0,
            max_seconds=30.0,
        ),
        objective=SpeechLM(freeze=()),
        frontend=FrontEnd(mel=MEL),
        model=SpeechLMConfig(encoder=ENCODER, adapter=Stacking(frames=2, hidden_dim=4096), transformer=LANGUAGE_MODEL),
        optimizer=Optimizer(schedule=WarmupCosine(peak=5e-5, warmup_steps=2000), weight_decay=0.1),
        num_steps=50_000,
        mesh=MeshShape(data=4, fsdp=64),
        topology="v5p-512",
        loop=LoopConfig(log_every=50, eval_every=2000, checkpoint_every=1000),
    )
