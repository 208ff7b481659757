"""A transducer on a causal FastConformer as a folder of NemotronAsrStreamingForRNNT, and back."""

from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import nemotron
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import read_folder
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.interop.hf.registry import package
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.transducer import LSTMPredictorConfig, StatelessPredictorConfig, TransducerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.recipes.experiment import Experiment, Speech
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import load

TOKENIZER = CharTokenizer(" abc")
NETWORK = TransducerConfig(dim=12, predictor=LSTMPredictorConfig(num_layers=2))
EXPERIMENT = Experiment(
    data=Speech(sets=("noise",)),
    objective=Transducer(network=NETWORK),
    frontend=FrontEnd(mel=nemotron.features(16)),
    model=FastConformerConfig(
        input_dim=16, dim=8, num_layers=2, num_heads=2, kernel_size=5, channels=4, causal=True, chunk_lengths=(1, 2),
        left_context=4,
    ),
)  # fmt: skip


def run_of(experiment):
    objective = experiment.objective.build(experiment.model, experiment.frontend, TOKENIZER)
    params = functional.init(objective.make, jax.random.key(0))
    return LoadedRun(Path("runs/tiny/checkpoints/7"), 7, experiment, TOKENIZER, params)


@pytest.mark.parametrize("has_record", [True, False])
def test_it_comes_back_without_its_ctc_head(has_record, tmp_path):
    run, out = run_of(EXPERIMENT), tmp_path / "out"
    write_checked(run, out)
    if not has_record:
        (out / "jax_speechlm.json").unlink()
    config, processor = load(out, "config.json"), load(out, "processor_config.json")
    assert (config["architectures"], config["blank_token_id"], config["vocab_size"]) == ([nemotron.ARCHITECTURE], 0, 5)
    assert processor["supported_num_lookahead_tokens"] == [1, 0]
    imported = read_folder(out)
    expected = {name: part for name, part in run.params.items() if name != "head"}
    jax.tree.map(np.testing.assert_array_equal, read(imported.sources), jax.device_get(expected))
    assert imported.experiment.model == EXPERIMENT.model
    assert imported.experiment.frontend.mel == EXPERIMENT.frontend.mel
    assert imported.experiment.objective.network.predictor == NETWORK.predictor
    assert imported.experiment.objective.ctc_weight == 0
    assert imported.tokenizer.pieces == TOKENIZER.pieces


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Transducer(network=NETWORK, durations=(0, 1))}, r"without objective\.durations"),
        ({"model": ConformerConfig(input_dim=16, dim=8, num_layers=1, num_heads=2)}, "causal FastConformer"),
        (
            {"objective": Transducer(network=NETWORK.replace(predictor=StatelessPredictorConfig()))},
            "and this is a stateless one",
        ),
        ({"frontend": FrontEnd(mel=nemotron.features(16).replace(normalize="running"))}, "stack 1 and normalize false"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused(changes, message):
    run = LoadedRun(Path("runs/tiny"), 7, EXPERIMENT.replace(**changes), TOKENIZER, {})
    with pytest.raises(ExportError, match=message):
        package(run)
