"""A training step of each speech objective, as a multiple of a CTC step of the same encoder on the same batch.

    python benchmarks/objectives.py

The encoder of `demo/pretrain` (6 layers of width 96, 40 ms a frame), 8 utterances of 6 s with 60 letters each, and the
whole step: front end, forward, backward, AdamW. `joint` is timed stream by stream; its text is 8 documents of 128
letters. `speech_lm` adds the language model of `demo/lm`, once as it is trained by default, with the
adapter alone, and once with all of it.
"""

import argparse

import numpy as np
from interleave import load, medians, pin

ROWS, SECONDS, LETTERS, CONTEXT, UNITS, RATE = 8, 6, 60, 128, 100, 16_000


def objectives() -> dict:
    """Returns (settings of the objective, model, stream) by the name of the line in the table."""
    from jax_speechlm.models.speech_lm import SpeechLMConfig
    from jax_speechlm.objectives.asr.ctc import CTC
    from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
    from jax_speechlm.objectives.ssl.best_rq import BestRQ
    from jax_speechlm.objectives.ssl.hubert import HuBERT
    from jax_speechlm.objectives.ssl.w2v_bert import W2vBert
    from jax_speechlm.objectives.ssl.wav2vec2 import Wav2Vec2
    from jax_speechlm.recipes.common import CHARACTER_LM, CONFORMER_XS
    from jax_speechlm.recipes.demo.joint import config as joint_recipe
    from jax_speechlm.recipes.four_way.speech_lm import config as speech_lm_recipe

    encoder, joint = CONFORMER_XS, joint_recipe().objective
    adapter = speech_lm_recipe().model.adapter
    model = SpeechLMConfig(encoder=encoder, adapter=adapter, transformer=CHARACTER_LM)
    return {
        "ctc": (CTC(), encoder, "pairs"),
        "best_rq": (BestRQ(codes=128, mask_span=0.16), encoder, "speech"),
        "hubert": (HuBERT(num_units=UNITS, mask_span=0.16), encoder, "speech"),
        "wav2vec2": (Wav2Vec2(codes=64, code_dim=128, mask_span=0.16), encoder, "speech"),
        "w2v_bert": (W2vBert(codes=256, code_dim=128, mask_span=0.16), encoder, "speech"),
        "joint, speech": (joint, encoder, "speech"),
        "joint, text": (joint, encoder, "text"),
        "joint, pairs": (joint, encoder, "pairs"),
        "speech_lm, adapter alone": (SpeechLM(), model, "pairs"),
        "speech_lm, all": (SpeechLM(freeze=()), model, "pairs"),
    }


def batch_of(stream: str, num_frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = {"example_id": np.arange(ROWS, dtype=np.int32), "weight": np.ones(ROWS, np.float32)}
    if stream == "text":
        shape = ROWS, CONTEXT
        tokens = rng.integers(1, 27, shape).astype(np.int32)
        place = np.broadcast_to(np.arange(CONTEXT, dtype=np.int32), shape)
        return rows | {"tokens": tokens, "segment": np.ones(shape, np.int32), "position": place}
    letters = LETTERS if stream == "pairs" else 0
    return rows | {
        "audio": rng.normal(0, 3000, (ROWS, SECONDS * RATE)).astype(np.int16),
        "audio_length": np.full(ROWS, SECONDS * RATE, np.int32),
        "tokens": rng.integers(1, 27, (ROWS, letters)).astype(np.int32),
        "token_length": np.full(ROWS, letters, np.int32),
        "frame_labels": rng.integers(0, UNITS, (ROWS, num_frames)).astype(np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    pin(args.threads)

    import jax

    from data_pipelines.tokenizers.base import CharTokenizer
    from jax_speechlm.frontend.frontend import FrontEnd
    from jax_speechlm.optim.optimizers import Optimizer
    from jax_speechlm.parallel import mesh as meshes
    from jax_speechlm.parallel.mesh import MeshShape
    from jax_speechlm.recipes.common import MEL
    from jax_speechlm.training.state import make_trainer

    frontend, tokenizer = FrontEnd(mel=MEL), CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    mesh = meshes.make_mesh(MeshShape(data=1), jax.devices()[:1])

    def step_of(config, model, stream):
        objective = config.build(model, frontend, tokenizer)
        trainer = make_trainer(objective, Optimizer(), 1000, 0, mesh)
        state = [trainer.init(jax.random.key(0))]
        batch = batch_of(stream, MEL.num_frames(SECONDS * RATE))
        if config.kind != "hubert":
            batch.pop("frame_labels", None)
        batch = meshes.shard_batch(mesh, batch)

        def run():
            state[0], metrics = trainer.step(state[0], batch)
            jax.block_until_ready(metrics)

        return run, objective.flops(batch)

    with jax.set_mesh(mesh):
        steps = {name: step_of(*settings) for name, settings in objectives().items()}
        seconds = medians({name: run for name, (run, _) in steps.items()}, args.rounds)
    print(f"{'training step':26} {'ms':>7} {'of CTC':>7} {'model FLOPs of CTC':>19}")
    plain = seconds["ctc"], steps["ctc"][1]
    for name, (_, flops) in steps.items():
        print(f"{name:26} {1e3 * seconds[name]:7.1f} {seconds[name] / plain[0]:7.2f} {flops / plain[1]:19.2f}")
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
