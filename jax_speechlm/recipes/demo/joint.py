"""Joint pretraining on the audio and transcripts of `make demo` and on prose, conformer XS, 40 ms a frame, characters.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact --held-out asterisk-en queen-en
jax-speechlm pretrain --config demo/joint --data.tokenizer runs/finetune --run-dir runs/joint \\
  --from runs/pretrain --init-from.0.groups quantizer codes=head --from runs/finetune --init-from.1.groups encoder head
jax-speechlm eval runs/joint --sets asterisk-en

Starts from BEST-RQ's predictor and from the recognizer of `demo/finetune` (here of 450 steps, WER 94.0 % and CER
47.3 %), because heads initialised at random are still on their plateaus after so few steps (WER 100 % after 400 of
them, seed 0). 2 CPU cores: 9.2 minutes beside other work, seed 0. Greedy.

Result: asterisk-en test WER 94.9 % [89.8, 100.0], CER 48.1 % [43.6, 52.7]
"""

from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.joint import Joint
from jax_speechlm.objectives.ssl.best_rq import BestRQ
from jax_speechlm.recipes.common import CLIPS, CONFORMER_XS, MASKED_MEL, on_cpu
from jax_speechlm.recipes.experiment import Experiment, Mixture, Stream, Text


def config() -> Experiment:
    audio = CLIPS.replace(packed=True, num_buckets=2, max_crop=0.0)
    pairs = audio.replace(sets=("asterisk-en",), packed=False)
    return Experiment(
        data=Mixture(
            streams=(
                Stream(name="speech", data=audio),
                Stream(name="text", data=Text(sets=("spoken-en",), packed=False, context=128, tokens_per_batch=2048)),
                Stream(name="pairs", data=pairs, weight=2),
            )
        ),
        objective=Joint(
            speech=BestRQ(codes=128, mask_span=0.16), text=MaskedLM(whole_words=True), ctc=CTC(intermediate=(3,))
        ),
        frontend=MASKED_MEL,
        model=CONFORMER_XS,
        **on_cpu(120, peak=1e-3, warmup_steps=30, log_every=20, eval_every=120),
    )
