"""CTC on the Czech and Dutch of fillets-cs and fillets-nl (2.26 hours), characters: conformer XS at 40 ms a frame.

jax-speechlm prepare fillets-cs fillets-nl
jax-speechlm finetune --config fillets_ctc --run-dir runs/translation/ctc

`scripts/fillets_translation.py` runs it: the ears of the speech-language model, and the first half of the cascade. One
CPU core: 14 minutes, 12 passes, seed 0. Test, greedy: CER 84.5 % in Czech, 80.9 % in Dutch: it has hardly left the
plateau that CTC begins on. It has not been tried from a pretrained encoder.
"""

from jax_speechlm.configs import demo_finetune
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment, LoopConfig


def config() -> Experiment:
    demo = demo_finetune.config()
    return demo.replace(
        data=demo.data.replace(sets=("fillets-cs", "fillets-nl"), max_seconds=12.0, shortest_first_epochs=1),
        optimizer=Optimizer(schedule=WarmupCosine(peak=4e-3, warmup_steps=300)),
        num_steps=2500,
        loop=LoopConfig(log_every=100, eval_every=1250, checkpoint_every=500),
    )
