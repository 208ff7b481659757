"""Parameters are read in parts: no row is lost, and a host reads only its own share."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers.hugging_face import IdMap
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.import_ import read_folder
from jax_speechlm.parallel.mesh import MeshShape, make_mesh, param_shardings
from tests.interop.foreign_folders import SPECIAL, write_text_model


@given(
    num_rows=st.integers(5, 40), order=st.permutations(range(5)), named=st.integers(5, 40),
    has=st.tuples(st.booleans(), st.booleans(), st.booleans()), is_text=st.booleans(),
)  # fmt: skip
def test_no_row_is_lost_or_doubled(num_rows, order, named, has, is_text):
    has_padding, has_mask, has_begin = has
    padding, end, mask, begin, _ = order
    places = IdMap(
        num_rows,
        padding if has_padding or not is_text else None,
        end if is_text else None,
        mask if has_mask and is_text else None,
        begin if has_begin and is_text else None,
        tuple(range(named, num_rows)),
    )
    there = places.theirs[places.theirs >= 0]
    assert sorted(there) == list(range(num_rows))
    assert [places.theirs[number] for number in places.ours] == list(range(num_rows))
    vocabulary = Vocabulary(places.tokenizer_size)
    if has_padding or not is_text:
        assert places.theirs[0] == padding
    if is_text:
        assert places.theirs[vocabulary.boundary] == end
        if has_mask:
            assert places.theirs[vocabulary.mask] == mask
        rows = places.rows(vocabulary.size)
        assert len(rows) == vocabulary.size
        if named + 2 <= num_rows:
            assert len(there) == len(places.theirs)  # rows without a name served, none was made
    else:
        assert len(places.theirs) == num_rows


@pytest.mark.parametrize("kind", ["modernbert", "bert", "llama"])
def test_a_host_reads_what_its_devices_hold_and_no_more(tmp_path, monkeypatch, kind):
    """Of 8 devices along fsdp, a host with two reads a quarter of what is spread, and all of what is not."""
    write_text_model(tmp_path / "theirs", kind, **SPECIAL[kind])
    imported = read_folder(tmp_path / "theirs")
    sources = jax.tree.leaves(imported.sources)
    assert all(layer.base is not None for source in sources for layer in source.layers)  # views: nothing was read
    reads, read = [], mapping.TensorSource.read

    def counted(source, *args):
        reads.append(read(source, *args))
        return reads[-1]

    monkeypatch.setattr(mapping.TensorSource, "read", counted)
    mesh = make_mesh(MeshShape(fsdp=8))
    params = jax.tree.leaves(imported.place(mesh))
    whole = sum(leaf.nbytes for leaf in params)
    shares = [leaf.addressable_shards[0].data.nbytes for leaf in params]
    assert sum(part.nbytes for part in reads) == whole  # all eight devices are this host's: each byte once
    assert max(part.nbytes for part in reads) == max(shares)  # and never more at a time than a device's share
    assert sum(shares) < whole / 4

    reads.clear()
    shardings = param_shardings(mesh, imported.declaration.axes, imported.declaration.shapes)
    for source, sharding in zip(sources, jax.tree.leaves(shardings), strict=True):
        places = sharding.devices_indices_map(source.shape)
        for index in {str(places[device]): places[device] for device in mesh.devices.flat[:2]}.values():
            source.read(index, np.float32)
    expected = [share if share == leaf.nbytes else 2 * share for share, leaf in zip(shares, params, strict=True)]
    assert sum(part.nbytes for part in reads) == sum(expected) < whole / 2


@given(st.data())
@settings(max_examples=30)
def test_any_part_of_a_source_is_that_part_of_the_whole(data):
    rng = np.random.default_rng(0)
    ids = data.draw(st.none() | st.lists(st.integers(-1, 5), min_size=1, max_size=9).map(np.array))
    axis, stacked = data.draw(st.integers(0, 1)), data.draw(st.booleans())
    layers = tuple(rng.normal(size=(6, 6)) for _ in range(3 if stacked else 1))
    source = mapping.TensorSource(layers, stacked, ids, axis)
    whole = source.read()
    assert whole.shape == source.shape
    parts = [layer if ids is None else np.take(np.insert(layer, 6, 0, axis), ids, axis) for layer in layers]
    np.testing.assert_array_equal(whole, np.stack(parts) if stacked else parts[0])
    index = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in source.shape)
    if all(part.stop > part.start for part in index):
        np.testing.assert_array_equal(source.read(index), whole[index])
