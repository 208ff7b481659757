"""One step of streams compiled for accelerators that are not here: memory, and the time that the planner estimates.

    python benchmarks/streaming_step.py

By the compilers of TPU (`libtpu`) and GPU (`jax[cuda13]`); a target whose compiler is not installed is named as
missing. A step takes a chunk of each stream from samples to tokens. "Held" is the number of streams that such steps
keep up with, if every step takes the estimated time. A transducer's search is a loop of unknown length, counted as one
iteration.
"""

import argparse
import functools

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.decoding.ctc.greedy import StreamingBestPath
from jax_speechlm.decoding.transducer.stream import StreamingGreedy
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.inference.asr.stream import StreamingProgram
from jax_speechlm.interop.hf import nemotron
from jax_speechlm.models.fast_conformer import SIZES
from jax_speechlm.models.transducer import LSTMPredictorConfig, TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.parallel.chips import topology
from jax_speechlm.planning import costs, hlo, schedule
from jax_speechlm.planning.ahead_of_time import PlanningError, compile_lowered, devices_of
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, Speech
from jax_speechlm.training.runs import LoadedRun

LETTERS = CharTokenizer(" abcdefghijklmnopqrstuvwxyz'")
PIECES = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 1024))))  # as many ids as the model has
NEMOTRON = Experiment(
    data=Speech(sets=()),
    objective=Transducer(
        network=TransducerConfig(dim=640, predictor=LSTMPredictorConfig(num_layers=2)), ctc_weight=0.0
    ),
    frontend=FrontEnd(mel=nemotron.features(80)),
    model=SIZES["0.6B, streaming"].replace(dtype="bfloat16"),
)


def recognizer(experiment: Experiment, tokenizer: CharTokenizer, chunk_ms: int) -> StreamingProgram:
    """Returns the step of an experiment without parameters."""
    objective = experiment.objective
    if isinstance(objective, Transducer):
        make = objective.make_model(experiment.model, tokenizer)
        search = StreamingGreedy(make, objective.durations)
    else:
        make = objective.build(experiment.model, experiment.frontend, tokenizer).make
        search = StreamingBestPath(experiment.model.dim, tokenizer.vocab_size)
    run = LoadedRun("abstract", 0, experiment, tokenizer, functional.declare(make).shapes)
    return StreamingProgram(run, search, chunk_ms=chunk_ms)


def row(program: StreamingProgram, streams: int, target: str) -> str:
    """Compiles a step for a target and returns its row of the table."""
    place = topology(target)
    (device,) = devices_of(place)

    def on_device(tree):
        sharding = SingleDeviceSharding(device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    features, params = program.features, program.run.params
    state = jax.eval_shape(functools.partial(program.init_state, batch=streams), params)
    inputs = [(features.chunk_samples, np.float32), (None, np.int32), (features.lead_samples, np.float32), (None, bool)]
    arrays = [jax.ShapeDtypeStruct((streams,) if size is None else (streams, size), dtype) for size, dtype in inputs]
    lowered = program.step.lower(*map(on_device, (params, state, *arrays)))
    compiled, text = compile_lowered(lowered, device.platform)
    stats, module = compiled.memory_analysis(), hlo.parse(text)
    counted = costs.count(module, {})
    seconds = schedule.seconds(module, {}, place)
    held = int(streams * program.features.chunk_samples / program.run.experiment.sample_rate / seconds)
    sizes = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    return (
        f"{streams:7} {sizes[0] / 1e6:13.1f} {sizes[1] / 1e6:12.1f} {1e3 * counted.flops / place.spec.flops:11.3f} "
        f"{1e3 * counted.bytes / place.spec.hbm_bandwidth:10.3f} {1e3 * seconds:12.3f} {held:8,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["v5e-1", "h100-1"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--models", nargs="+", default=["debian/en_streaming", "nemotron"])
    args = parser.parse_args()
    programs = {
        "debian/en_streaming": lambda: recognizer(registry.load("debian/en_streaming"), LETTERS, 320),
        "nemotron": lambda: recognizer(NEMOTRON, PIECES, 560),
    }
    print(f"{'model, target, streams':37} {'arguments MB':>12} {'temporary MB':>12} {'compute ms':>11} ", end="")
    print(f"{'memory ms':>10} {'estimate ms':>12} {'held':>8}")
    for name in args.models:
        program = programs[name]()
        for target in args.targets:
            for streams in args.streams:
                try:
                    print(f"{name:20} {target:7} {row(program, streams, target)}", flush=True)
                except PlanningError as error:
                    print(f"{name:20} {target:7} missing: {error}", flush=True)
                    break


if __name__ == "__main__":
    main()
