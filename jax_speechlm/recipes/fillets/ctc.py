"""CTC on the Czech and Dutch of fillets-cs and fillets-nl (2.26 hours), characters: conformer XS at 40 ms a frame.

jax-speechlm prepare fillets-cs fillets-nl
jax-speechlm finetune --config fillets/ctc --run-dir runs/translation/ctc

`scripts/fillets_translation.py` runs it: the encoder of the speech-language model, and the recognizer of the cascade.
One CPU core: 14 minutes, 12 passes, seed 0. It has hardly left the plateau that CTC starts on; a pretrained encoder has
not been tried.

Result: test CER 84.5 % in Czech, 80.9 % in Dutch
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.recipes.common import CONFORMER_XS, MASKED_MEL, bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=bucketed(sets=("fillets-cs", "fillets-nl"), num_buckets=4, max_seconds=12.0, shortest_first_epochs=1),
        objective=CTC(intermediate=(3,)),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(2500, peak=4e-3, warmup_steps=300, log_every=100, eval_every=1250, checkpoint_every=500),
    )
