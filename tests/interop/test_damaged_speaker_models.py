"""Speaker models in transformers' form whose settings or arrays do not fit are refused with the setting named."""

import json
import shutil

import numpy as np
import pytest

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.import_ import read_folder
from jax_speechlm.interop.hf.registry import package, write_model
from jax_speechlm.interop.hf.weights import write_weights
from tests.interop.tiny_runs import tiny_run


@pytest.fixture(scope="module")
def speakers(tmp_path_factory):
    """A speaker model as others write it: without our record."""
    folder = tmp_path_factory.mktemp("speakers")
    write_model(folder, package(tiny_run("speaker")))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tdnn_dim": None}, "tdnn_dim=None is not possible"),
        ({"tdnn_kernel": [3, 0]}, r"tdnn_kernel=\[3, 0\] is not possible"),
        ({"tdnn_dilation": "1, 1"}, "tdnn_dilation=1, 1 is not possible"),
        ({"tdnn_kernel": [3, 2, 1]}, "one entry a layer, got 2, 3 and 2"),
        ({"tdnn_kernel": [3, 3]}, "the arrays of speaker/tdnn/layer1/kernel give"),
        ({"xvector_output_dim": 7}, "the arrays of speaker/"),
        ({"use_weighted_layer_sum": True}, "the arrays of mix give None"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "classes must be distinct"),
        ({"id2label": {"0": "a"}}, "id2label does not name the 3 classes"),
    ],
)
def test_a_speaker_model_whose_settings_do_not_fit_is_refused(speakers, tmp_path, changes, message):
    folder = shutil.copytree(speakers, tmp_path / "folder")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ExportError, match=message):
        read_folder(folder)


def test_a_head_of_another_form_is_refused(speakers, tmp_path):
    folder = shutil.copytree(speakers, tmp_path / "folder")
    made = package(tiny_run("speaker"))
    write_weights(folder, made.arrays | {"objective.weight": np.zeros(8, np.float32)})
    with pytest.raises(ExportError, match="has 1 dimensions, and not 2"):
        read_folder(folder)
