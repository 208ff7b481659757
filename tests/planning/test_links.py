"""Times of collectives on links, against counts by hand."""

import pytest

from jax_speechlm.parallel.chips import Topology, topology
from jax_speechlm.planning import links
from jax_speechlm.planning.collectives import Collective

SENT = 1e9


def seconds(name: str, devices, kind: str = "all-gather", one_ring: bool = False) -> float:
    """Time of SENT bytes a device among devices, or a range of as many."""
    devices = tuple(range(devices) if isinstance(devices, int) else devices)
    return links.seconds(Collective(kind, "", len(devices), 1, SENT, devices), topology(name), one_ring)


@pytest.mark.parametrize(
    ("name", "devices", "rings"),
    [
        ("v5e-256", [x for host in range(8) for x in (4 * host, 4 * host + 1)], 1.0),  # 16 chips of a row: a ring
        ("v5e-256", 256, 2.0),  # both axes
        ("v5e-16", 16, 1.0),  # 4 x 4 without linked ends: two lines
        ("v5e-16", [0, 1, 4, 5], 0.5),  # a line
        ("v5p-512", 256, 3.0),  # 4 x 8 x 8, all rings
        ("v5p-512", 8, 1.5),  # 4 x 2: a ring and a line
        ("v5p-512", 64, 2.5),  # 4 x 8 x 2
        ("v5p-512", [0, 64, 128, 192], 0.5),  # every second plane of a ring of 8: two groups share its links
        ("v5p-8", 4, 1.0),  # 2 x 2
        ("v5p-32", 16, 1.5),  # 2 x 2 x 4 has no linked ends
        ("tpu7x-128", 128, 6.0),  # both cores of a chip share its three rings
        ("tpu7x-128", range(0, 128, 2), 3.0),  # so do the groups of each core
    ],
)
def test_a_group_uses_the_links_of_all_its_axes(name, devices, rings):
    assert seconds(name, devices) == pytest.approx(SENT / (rings * topology(name).spec.link_bandwidth))


def test_a_single_ring_through_a_block_has_one_axis_worth_of_links():
    assert seconds("v5e-16", 16, one_ring=True) == SENT / 90e9
    assert seconds("v5e-16", [0, 1, 4, 5], one_ring=True) == SENT / 45e9
    assert seconds("v5p-512", 64, one_ring=True) == SENT / 180e9
    assert seconds("v5p-512", [0, 64, 128, 192], one_ring=True) == SENT / 90e9


def test_an_all_to_all_sends_each_chunk_a_quarter_of_the_ring():
    row = [x for host in range(4) for x in (4 * host, 4 * host + 1)]
    ring = [*row, *(x + 16 for x in row)]  # 16 chips of a row of v5e-256
    ring = [device for device in range(256) if topology("v5e-256").place(device)[2] == 0]
    whole = SENT * 16 / 15
    assert seconds("v5e-256", ring, "all-to-all") == pytest.approx(whole * 16 / 4 / 90e9)
    line = [device for device in range(16) if topology("v5e-16").place(device)[2] == 0]
    assert seconds("v5e-16", line, "all-to-all") == pytest.approx(SENT * 4 / 3 * 4 / 4 / 45e9)
    assert seconds("h100-8", 8, "all-to-all") == pytest.approx(SENT / 450e9)


def test_a_ring_over_gpu_nodes_enters_each_through_all_adapters():
    assert seconds("h100-64", 8) == SENT / 450e9
    assert seconds("h100-64", 64) == SENT / 400e9  # eight adapters of 50 GB/s
    assert seconds("h100-64", range(0, 64, 8)) == SENT / 50e9  # one GPU a node
    assert seconds("gb200-72", 72) == SENT / 900e9  # a rack is one node
    outside = SENT * 64 / 63 * 7 / 8
    assert seconds("h100-64", 64, "all-to-all") == pytest.approx(outside / 50e9)


def test_slices_are_joined_by_the_network():
    assert seconds("2xv5p-512", [0, 256], "all-reduce") == SENT / 6.25e9


@pytest.mark.parametrize(
    ("name", "chain", "busiest"),
    [
        ("v5p-512", [0, 1], 1),
        ("v5p-512", [0, 4], 1),  # two links on
        ("v5e-256", [device for device in range(256) if topology("v5e-256").place(device)[2] == 0], 1),
        ("v5e-16", [0, 1, 4, 5, 0], 1),  # the last passes the line in the other direction
        ("v5e-16", [0, 4, 1, 5], 2),
    ],
)
def test_a_permutation_is_as_slow_as_its_busiest_link(name, chain, busiest):
    assert seconds(name, chain, "collective-permute") == busiest * SENT / topology(name).spec.link_bandwidth


def test_small_slices_have_no_linked_ends():
    assert topology("v5e-128").wraps == (False, True)
    assert topology("v6e-256").wraps == (True, True)
    assert topology("v5p-64").wraps == (False,) * 3
    assert topology("v5p-128").wraps == (True,) * 3
    assert Topology("v4-12", "v4", (4, 4, 6)).wraps == (False,) * 3
