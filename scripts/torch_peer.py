"""Trains transformers' Wav2Vec2BertForCTC in torch as a recipe trains our conformer: a peer of equal size.

The batches, features, SpecAugment, vocabulary, schedule, AdamW settings and gradient clipping are the recipe's; the
model has as many layers, heads and channels, from random parameters, without intermediate CTC. Rows are buckets, not
packed, because the class has no packed rows. Training ends after some minutes of CPU time or at the end of the
schedule, whose length should be the number of steps that the time allows. Greedy, on the test split.

    python scripts/torch_peer.py --cpu-minutes 20 --num-steps 1200      (needs torch and transformers)
"""

import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import jax
import numpy as np
import torch
import transformers
import tyro

from data_pipelines.storage import index as indexes
from jax_speechlm.core.batch import step_key
from jax_speechlm.decoding.ctc.greedy import collapse
from jax_speechlm.evaluation import base, report
from jax_speechlm.evaluation.batches import item_ids, speech_batches
from jax_speechlm.frontend.frontend import features
from jax_speechlm.interop.hf import wav2vec2_bert
from jax_speechlm.recipes import registry
from jax_speechlm.training.source import open_source


def main(
    recipe: str = "demo/finetune",
    data_dir: Path = Path("data"),
    cpu_minutes: float = 20.0,
    num_steps: int = 1200,
    seed: int = 0,
    threads: int = 2,
    log_every: int = 50,
) -> None:
    """Trains and measures the peer.

    Args:
      recipe: of CTC with a conformer.
      data_dir: prepared data.
      cpu_minutes: after which training ends.
      num_steps: of the schedule.
      seed: of parameters, batches and augmentation.
      threads: of torch.
      log_every: steps.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    experiment = registry.load(recipe).replace(seed=seed, num_steps=num_steps)
    data = experiment.data.replace(packed=False, row_seconds=(), data_dir=str(data_dir))
    experiment = experiment.replace(data=data)
    source, optimizer = open_source(experiment), experiment.optimizer
    model = make_peer(experiment, source.tokenizer.vocab_size)
    adam = torch.optim.AdamW(
        model.parameters(), betas=(optimizer.b1, optimizer.b2), weight_decay=optimizer.weight_decay
    )
    rate = optimizer.schedule.build(num_steps)
    compute = jax.jit(lambda batch, key: features(batch, experiment.frontend, key))
    begin, steps, total = time.process_time(), 0, 0.0
    for step, batch in enumerate(source.batches(0, num_steps)):
        used = (time.process_time() - begin) / 60
        if used > cpu_minutes:
            break
        vectors, lengths = map(np.asarray, compute(batch, step_key(seed, step)))
        for group in adam.param_groups:
            group["lr"] = float(rate(step))
        adam.zero_grad(set_to_none=True)
        loss = peer_loss(model, vectors, lengths, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adam.step()
        steps, total = step + 1, total + loss.item()
        if steps % log_every == 0:
            print(f"step {steps}  loss {total / log_every:.3f}  CPU minutes {used:.1f}", flush=True)
            total = 0.0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    minutes = (time.process_time() - begin) / 60
    print(f"{parameters:,} parameters, {steps} of {num_steps} steps, {minutes:.1f} CPU minutes, {threads} threads")
    scored = evaluate(model, experiment, source.tokenizer, compute)
    for name in ("wer", "cer"):
        score = getattr(scored, name)
        print(f"{name.upper()} {base.percent(score.rate, score.interval)}")


def make_peer(experiment, vocab_size: int) -> transformers.Wav2Vec2BertForCTC:
    """Returns the class with the settings of a recipe's conformer, from random parameters."""
    values = wav2vec2_bert.config_to_hugging_face(experiment.model, vocab_size)
    rates = ("hidden", "activation", "attention", "feat_proj", "conformer_conv", "final")
    values |= {f"{name}_dropout": experiment.model.dropout for name in rates}
    values |= {"layerdrop": 0.0, "apply_spec_augment": False, "pad_token_id": 0, "ctc_zero_infinity": True}
    return transformers.Wav2Vec2BertForCTC(transformers.Wav2Vec2BertConfig(**values)).train()


def peer_loss(model: torch.nn.Module, vectors: np.ndarray, lengths: np.ndarray, batch: dict) -> torch.Tensor:
    """Returns the sum of the CTC losses over the tokens of the batch, per token."""
    rows = np.flatnonzero(np.asarray(batch["weight"]) > 0)
    inside = np.arange(vectors.shape[1]) < lengths[rows, None]
    logits = model(torch.tensor(vectors[rows]), attention_mask=torch.tensor(inside).long()).logits
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    counts = torch.tensor(np.asarray(batch["token_length"])[rows].astype(np.int64))
    tokens = torch.tensor(np.asarray(batch["tokens"])[rows].astype(np.int64))
    sizes = torch.tensor(lengths[rows].astype(np.int64))
    losses = torch.nn.functional.ctc_loss(log_probs, tokens, sizes, counts, reduction="none", zero_infinity=True)
    return losses.sum() / counts.sum()


def evaluate(model: torch.nn.Module, experiment, tokenizer, compute) -> report.EvaluationReport:
    """Returns the errors of greedy transcripts of the test split."""
    model.eval()
    index = indexes.read_sets(experiment.data.data_dir, experiment.data.sets, "test", experiment.sample_rate)
    texts = {}
    for batch in speech_batches(index, experiment.frame_samples, 60.0):
        vectors, lengths = map(np.asarray, compute(batch, None))
        inside = torch.tensor(np.arange(vectors.shape[1]) < lengths[:, None]).long()
        with torch.no_grad():
            paths = model(torch.tensor(vectors), attention_mask=inside).logits.argmax(-1).numpy()
        for row, example in enumerate(np.asarray(batch["example_id"]).tolist()):
            if example >= 0:
                texts[example] = tokenizer.decode(collapse(paths[row : row + 1, : lengths[row]])[0])
    rows = zip(item_ids(index), index.column("text").to_pylist(), strict=True)
    return report.evaluate(
        [report.Utterance(id=name, reference=text, hypothesis=texts[row]) for row, (name, text) in enumerate(rows)]
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
