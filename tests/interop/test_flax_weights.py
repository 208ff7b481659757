"""Parameters that Flax classes wrote: read as the library writes them, by the names and layouts of torch's classes."""

import json
import tracemalloc

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.interop.hf.msgpack import read_arrays
from jax_speechlm.interop.hf.weights import FLAX, FLAX_INDEX, read_weights
from tests.interop.foreign_folders import SPECIAL, write_json, write_text_model, write_whisper

TREE = {
    "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float16)},
    "b": {"c": {"embedding": np.zeros((4, 1, 2), ml_dtypes.bfloat16)}},
    "scalar": np.array(3, np.float32),
}
WHOLE = flax.serialization.msgpack_serialize(TREE)
CLASSES = [
    ("bert", "BertModel"),
    ("bert", "BertForMaskedLM"),
    ("bert", "BertForSequenceClassification"),
    ("bert", "BertForQuestionAnswering"),
    ("roberta", "RobertaForMaskedLM"),
    ("roberta", "RobertaForSequenceClassification"),
    ("distilbert", "DistilBertForMaskedLM"),
    ("distilbert", "DistilBertForTokenClassification"),
    ("gpt2", "GPT2LMHeadModel"),
    ("whisper", "WhisperForConditionalGeneration"),
]


def nested(arrays):
    """The parameters as a Flax class has them: nested by the parts of names, with transposed kernels."""
    tree = {}
    for name, value in arrays.items():
        *parents, last = name.split(".")
        if last == "weight" and any(part in parents[-1] for part in ("embeddings", "wte", "wpe", "embed_")):
            last = "embedding"
        elif last == "weight" and any(part in parents[-1].lower() for part in ("norm", "ln_")):
            last = "scale"
        elif last == "weight":
            last, value = "kernel", value.T
        part = tree
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = np.ascontiguousarray(value)
    return tree


def to_flax(folder, *, num_files=1):
    """Replaces a folder's safetensors by what a Flax class would have written."""
    tree = nested(read_weights(folder))
    tree.pop("lm_head", None) if "transformer" in tree else None  # tied, and not there a second time
    tree.pop("proj_out", None)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    if num_files == 1:
        (folder / FLAX).write_bytes(flax.serialization.msgpack_serialize(tree))
        return
    file_of = {}
    for number, name in enumerate(sorted(tree)):
        file = f"flax_model-{number + 1:05}-of-{len(tree):05}.msgpack"
        (folder / file).write_bytes(flax.serialization.msgpack_serialize({name: tree[name]}))
        leaves = flax.traverse_util.flatten_dict({name: tree[name]}, sep="/")
        file_of |= dict.fromkeys(leaves, file)
    write_json(folder, FLAX_INDEX, {"metadata": {}, "weight_map": file_of})


def write(folder, kind, architecture):
    if kind == "whisper":
        return write_whisper(folder)
    return write_text_model(folder, kind, architecture=architecture, **SPECIAL[kind])


@pytest.mark.parametrize(("kind", "architecture"), CLASSES)
def test_parameters_are_those_of_the_torch_class(tmp_path, kind, architecture):
    write(tmp_path / "theirs", kind, architecture)
    expected = read(read_folder(tmp_path / "theirs").sources)
    to_flax(tmp_path / "theirs")
    jax.tree.map(np.testing.assert_array_equal, read(read_folder(tmp_path / "theirs").sources), expected)


def test_a_folder_of_flax_becomes_a_run(tmp_path):
    write(tmp_path / "theirs", *CLASSES[1])
    to_flax(tmp_path / "theirs", num_files=2)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert not verdict.failed
    assert {check.name for check in verdict.checks} >= {"checkpoint", "parameters"}


def test_what_the_library_writes_is_read_alike(tmp_path, monkeypatch):
    for chunk in (2**30, 8):
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
        (tmp_path / "x").write_bytes(flax.serialization.msgpack_serialize(TREE))
        found = read_arrays(tmp_path / "x")
        expected = flax.traverse_util.flatten_dict(TREE, sep=".")
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name].astype(np.float32), array.astype(np.float32))


def test_nothing_is_read_before_it_is_used(tmp_path):
    array = np.zeros((1 << 22,), np.float32)
    (tmp_path / "x").write_bytes(flax.serialization.msgpack_serialize({"a": {"kernel": array}, "b": array[:3]}))
    tracemalloc.start()
    found = read_arrays(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert not found["a.kernel"].flags.writeable


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_accepted_is_one_that_the_library_reads_to_the_same_arrays(tmp_path, data):
    content = bytearray(WHOLE)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=3)):
        content[place] = byte
    content = bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    (tmp_path / "x").write_bytes(content)
    try:
        found = read_arrays(tmp_path / "x")
    except ExportError:
        return
    expected = flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(content), sep=".")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == np.asarray(array).tobytes()


def packed(shape=b"\x91\x02", dtype=b"\xa7float32", content=b"\xc4\x08" + bytes(8), kind=1):
    """A file of one array named "a", of any parts."""
    inside = b"\x93" + shape + dtype + content
    return b"\x81\xa1a\xc7" + bytes([len(inside), kind]) + inside


CHUNKS = b"\x81\xa1a\x83\xb9__msgpack_chunked_array__\xc3\xa5shape"
LIES = {
    "nothing": (b"", "it is empty"),
    "a list": (b"\x91\x01", "type 0x91"),
    "a number": (b"\x01", "no map of names"),
    "a pickle": (b"\x80\x04\x95\x00", "goes on behind"),
    "a text": (b"\x81\xa1a\xa1b", "a value of type 0xa1"),
    "a leaf that is a number": (b"\x81\xa1a\x07", "'a' is a number"),
    "a map longer than the file": (b"\xdf\xff\xff\xff\xff", "more than 65,536 names"),
    "a map of maps without end": (b"\x81\xa1a" * 40 + b"\x80", "nested more than 32"),
    "a name twice": (b"\x82\xa1a\x80\xa1a\x80", "stands in it twice"),
    "two names for one": (b"\x82\xa1a\x81\xa1b" + packed()[3:] + b"\xa3a.b" + packed()[3:], "stands in it twice"),
    "a long name": (b"\x81\xda\xff\xff" + bytes(70_000), "a name of 65,535 bytes"),
    "a name that is a number": (b"\x81\x01\x80", "a name that is no text"),
    "an extension of another type": (packed(kind=2), "extension of type 2"),
    "a shape beyond the bytes": (packed(shape=b"\x91\xce\xff\xff\xff\xff"), "cannot have 8 bytes"),
    "a negative shape": (packed(shape=b"\x91\xff"), "no possible shape"),
    "many axes": (packed(shape=b"\x99" + b"\x01" * 9), "no possible shape"),
    "empty axes beside huge ones": (
        packed(shape=b"\x92\x00\xcf\x0f" + b"\xff" * 7, content=b"\xc4\x00"),
        "larger than",
    ),
    "an unknown type": (packed(dtype=b"\xa5int64"), "of type 'int64'"),
    "objects": (packed(dtype=b"\xa6object"), "of type 'object'"),
    "bytes longer than the file": (packed(content=b"\xc6\xff\xff\xff\xff"), "within a value of 4,294,967,295"),
    "an array that goes on": (packed(content=b"\xc4\x08" + bytes(9)), "cannot have 8 bytes"),
    "cut short": (packed()[:-1], "it ends at byte"),
    "something behind": (packed() + b"\x00", "goes on behind"),
    "chunks without an end": (CHUNKS + b"\xdf\xff\xff\xff\xff", "more than 65,536 names"),
    "chunks of nothing": (CHUNKS + b"\x80\xa6chunks\x80", "no possible shape and chunks"),
    "chunks of another shape": (CHUNKS + b"\x81\xa10\x09\xa6chunks\x81\xa10" + packed()[3:], "cannot have 2 values"),
    "chunks that are numbers": (CHUNKS + b"\x81\xa10\x09\xa6chunks\x81\xa10\x01", "no possible shape and chunks"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_without_an_allocation(tmp_path, lie):
    content, message = LIES[lie]
    (tmp_path / "x").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ExportError, match=message):
            read_arrays(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    (tmp_path / "x").write_bytes(packed())
    np.testing.assert_array_equal(read_arrays(tmp_path / "x")["a"], [0, 0])  # or the parts were refused for nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": {"a": "../a.msgpack"}}, "no msgpack of the folder: refused"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "no msgpack of the folder: refused"),
        ({"weight_map": {"a": "gone.msgpack"}}, r"gone\.msgpack is missing"),
        ({"weight_map": {}}, "has no weight_map"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, change, message):
    (tmp_path / FLAX_INDEX).write_text(json.dumps(change))
    with pytest.raises(ExportError, match=message):
        read_weights(tmp_path)


def test_two_arrays_that_would_be_one_are_refused(tmp_path):
    array = np.zeros((2, 2), np.float32)
    tree = {"a": {"kernel": array, "weight": array}}
    (tmp_path / FLAX).write_bytes(flax.serialization.msgpack_serialize(tree))
    with pytest.raises(ExportError, match=r"are 'a\.weight' in torch's names"):
        read_weights(tmp_path)
