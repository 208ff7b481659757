"""Estimates of small programs in HLO text, against times by hand."""

import pytest

from jax_speechlm.parallel.chips import topology
from jax_speechlm.planning import costs, hlo, schedule

MESH = {"data": 1, "fsdp": 16}
RING = "replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}"
MILLI = 1_500_000  # cycles of v5e in a millisecond
GATHER = 90e9 * 1e-3 * 16 / 15  # bytes that two lines of v5e-16 gather in a millisecond


def milliseconds(*lines: str, before: str = "") -> float:
    """The estimate for v5e-16 of an entry computation of these lines."""
    return schedule.seconds(hlo.parse(program(*lines, before=before)), MESH, topology("v5e-16")) * 1e3


def program(*lines: str, before: str = "") -> str:
    """A program with an entry computation of these lines, after other computations."""
    body = "\n".join(f"  %{line}" for line in (*lines, "nothing = () tuple()"))
    body = body.replace("%nothing", "ROOT %nothing")
    head = "ENTRY %main (p: bf16[8]) -> () {\n  %p = bf16[8]{0} parameter(0)"
    return f"HloModule m\n{before}\n{head}\n{body}\n}}\n"


def compute(name: str, time: float, operand: str = "p") -> str:
    """An instruction of so many milliseconds."""
    cycles = f'backend_config={{"window_config":{{"estimated_cycles":"{int(time * MILLI)}"}}}}'
    return f"{name} = bf16[8]{{0}} negate(%{operand}), {cycles}"


def elements(share: float) -> int:
    """Elements of a bf16 shard of which a gather of the whole takes so many milliseconds."""
    return round(GATHER * share / 16 / 2)


def gather(name: str, time: float, start: str = "") -> str:
    size = elements(time)
    shapes = f"(bf16[{size}]{{0}}, bf16[{16 * size}]{{0}})" if start else f"bf16[{16 * size}]{{0}}"
    return f"{name} = {shapes} all-gather{start}(%shard), channel_id=1, {RING}, dimensions={{0}}"


def shard(time: float) -> str:
    return f"shard = bf16[{elements(time)}]{{0}} bitcast(%p)"


def test_instructions_take_their_cycles_one_after_the_other():
    assert milliseconds(compute("a", 2), compute("b", 3, "a")) == pytest.approx(5)


def test_a_synchronous_collective_is_exposed():
    assert milliseconds(shard(4), compute("a", 2), gather("g", 4)) == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(("beside", "total"), [(1, 4), (9, 9)])
def test_an_asynchronous_collective_costs_what_nothing_hides(beside, total):
    done = "gd = bf16[8]{0} all-gather-done(%g)"
    assert milliseconds(shard(4), gather("g", 4, "-start"), compute("a", beside), done) == pytest.approx(
        total, rel=1e-3
    )


def test_collectives_on_the_same_links_wait_for_each_other():
    lines = (shard(4), gather("g", 4, "-start"), gather("h", 4, "-start"), compute("a", 5))
    assert milliseconds(*lines, "gd = bf16[8]{0} all-gather-done(%g)") == pytest.approx(5, rel=1e-3)
    assert milliseconds(*lines, "hd = bf16[8]{0} all-gather-done(%h)") == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize(("start", "bound", "step", "trips"), [(0, 7, 1, 7), (0, 8, 2, 4), (1, 8, 2, 4), (2, 2, 1, 0)])
def test_loops_run_from_their_start_by_their_step(start, bound, step, trips):
    before = f"""
%body (b: (s32[], bf16[8])) -> (s32[], bf16[8]) {{
  %b = (s32[], bf16[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %p = bf16[8]{{0}} get-tuple-element(%b), index=1
  %{compute("x", 2)}
  %by = s32[] constant({step})
  %next = s32[] add(%i, %by)
  ROOT %t = (s32[], bf16[8]{{0}}) tuple(%next, %x)
}}

%condition (c: (s32[], bf16[8])) -> pred[] {{
  %c = (s32[], bf16[8]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant({bound})
  ROOT %less = pred[] compare(%j, %end), direction=LT
}}
"""
    lines = (
        f"from = s32[] constant({start})",
        "init = (s32[], bf16[8]{0}) tuple(%from, %p)",
        "w = (s32[], bf16[8]{0}) while(%init), condition=%condition, body=%body",
    )
    assert milliseconds(*lines, before=before) == pytest.approx(2 * trips)


def test_without_the_compilers_cycles_an_instruction_takes_its_arithmetic_or_its_traffic():
    size = 819_000_000 // 4  # elements of bf16 that are read and written in a millisecond
    assert milliseconds(f"x = bf16[{size}]{{0}} bitcast(%p)", f"y = bf16[{size}]{{0}} negate(%x)") == pytest.approx(1)
    kernel = (
        'k = bf16[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"flops":"197000000000"}'
    )
    assert milliseconds(kernel) == pytest.approx(1)


@pytest.mark.parametrize(("beside", "total"), [(1, 4), (9, 9)])
def test_fusions_run_a_gather_step_by_step_beside_their_products(beside, total):
    """As the compiler writes a gather for v5e in the backward pass of layers that are computed again."""
    size = elements(4)
    small, large = f"bf16[{size}]{{0}}", f"bf16[{16 * size}]{{0}}"
    part = f"%g = {large} all-gather(%a), channel_id=7, {RING}, dimensions={{0}}"
    before = f"""
%start (a: {small}) -> ({small}, {large}) {{
  %a = {small} parameter(0)
  {part}
  ROOT %r = ({small}, {large}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%step (a: {small}, b: bf16[8]) -> (bf16[8], {large}) {{
  %a = {small} parameter(0)
  %b = bf16[8]{{0}} parameter(1)
  {part}
  ROOT %r = (bf16[8]{{0}}, {large}) tuple(%b, %g)
}}

%done (a: {small}) -> {large} {{
  %a = {small} parameter(0)
  {part}
  ROOT %r = {large} custom-call(%a, %g), custom_call_target="AsyncCollectiveDone"
}}
"""
    cycles = f'backend_config={{"estimated_cycles":"{beside * MILLI}"}}'
    lines = (
        shard(4),
        f"s = ({small}, {large}) fusion(%shard), kind=kCustom, calls=%start",
        f"t = (bf16[8]{{0}}, {large}) fusion(%shard, %p), kind=kOutput, calls=%step, {cycles}",
        f"u = {large} fusion(%shard), kind=kCustom, calls=%done",
    )
    assert milliseconds(*lines, before=before) == pytest.approx(total, rel=1e-3)
    module = hlo.parse(program(*lines, before=before))
    (gathered,) = costs.count(module, MESH).collectives
    assert (gathered.times, gathered.sent) == (1, 15 * size * 2)
