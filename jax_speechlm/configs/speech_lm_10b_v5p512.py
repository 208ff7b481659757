"""A 2 B conformer and an 8 B LM joined, both learning, for a v5p-512 slice. Never run by us: sized with `plan`.

    jax-speechlm prepare --manifest transcribed.jsonl
    jax-speechlm finetune --config speech_lm_10b_v5p512 --data.sets transcribed \\
      --from runs/conformer_2b_v5e256 --from runs/lm_8b_v5p512

Takes the encoder and the language model that these two configs pretrain. Two frames of 40 ms make one vector, so that
30 s of speech are 375 of them.
"""

from jax_speechlm.configs import conformer_2b_v5e256, lm_8b_v5p512
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech


def config() -> Experiment:
    speech, text = conformer_2b_v5e256.config(), lm_8b_v5p512.config()
    return Experiment(
        data=Speech(
            sets=("transcribed",),
            tokenizer=text.data.tokenizer,
            seconds_per_batch=256 * 120,
            num_buckets=4,
            batch_multiple=256,
            min_seconds=2.0,
            max_seconds=30.0,
        ),
        objective=SpeechLM(freeze=()),
        frontend=speech.frontend,
        model=SpeechLMConfig(encoder=speech.model, adapter=Stacking(frames=2, hidden_dim=4096), transformer=text.model),
        optimizer=Optimizer(schedule=WarmupCosine(peak=5e-5, warmup_steps=2000), weight_decay=0.1),
        num_steps=50_000,
        mesh=MeshShape(data=4, fsdp=64),
        topology="v5p-512",
        loop=LoopConfig(log_every=50, eval_every=2000, checkpoint_every=1000),
    )
