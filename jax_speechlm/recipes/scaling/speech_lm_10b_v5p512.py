"""A 2 B conformer and an 8 B LM joined, both learning, for a v5p-512 slice.

jax-speechlm prepare --manifest transcribed.jsonl
jax-speechlm finetune --config scaling/speech_lm_10b_v5p512 --data.sets transcribed \\
  --from runs/conformer_2b --from runs/lm_8b

Takes the encoder of `scaling/conformer_2b_v5e256` and the language model of `scaling/lm_8b_v5p512`. Two frames of 40 ms
make one vector: 375 vectors for 30 s of speech.

Result: planned only, never run: sized with `jax-speechlm plan`
"""

from jax_speechlm.models import transformer_config
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment, LoopConfig
from jax_speechlm.recipes.scaling import conformer_2b_v5e256


def config() -> Experiment:
    conformer = conformer_2b_v5e256.config()
    language_model = transformer_config.SIZES["8B"].replace(dtype="bfloat16", remat="dots")
    return conformer.replace(
        data=conformer.data.replace(sets=("transcribed",), tokenizer="data/bpe-128000", max_crop=0.0),
        objective=SpeechLM(freeze=()),
        model=SpeechLMConfig(
            encoder=conformer.model,
            adapter=Stacking(frames=2, hidden_dim=4096),
            transformer=language_model,
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=5e-5, warmup_steps=2000), weight_decay=0.1),
        num_steps=50_000,
        mesh=MeshShape(data=4, fsdp=64),
        topology="v5p-512",
        loop=LoopConfig(log_every=50, eval_every=2000, checkpoint_every=1000),
    )
