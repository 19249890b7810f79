"""Programs short enough to be counted by hand."""

from pathlib import Path

import pytest

from unifluid_jax.aot import hlo

LOOP = Path(__file__).with_name("loop.hlo").read_text()


@pytest.fixture(scope="module")
def module():
  return hlo.parse(LOOP, 4)


def found(module):
  return {
    (c.kind, c.bytes): (c.times, c.groups, c.asynchronous)
    for c in hlo.collectives(module)
  }


def test_loops_multiply(module):
  both = found(module)
  assert both["all-reduce", 32] == (15, ((0, 1), (2, 3)), False)
  assert both["all-gather", 128] == (5, ((0, 2), (1, 3)), False)


def test_a_fused_reduce_scatter_is_one(module):
  assert found(module)["reduce-scatter", 64 * 32 * 2][0] == 1
  assert not any(
    k == "all-reduce" and b == 64 * 32 * 2 for k, b in found(module)
  )


def test_a_plain_reduce_scatter_counts_what_goes_in(module):
  assert ("reduce-scatter", 2 * 4 * 4) in found(module)


def test_an_asynchronous_fusion_counts_once(module):
  twins = [c for c in hlo.collectives(module) if c.bytes == 4 * 32 * 2]
  assert len(twins) == 1
  assert twins[0].asynchronous and twins[0].groups == ((0, 1), (2, 3))


def test_started_collectives_count_their_result(module):
  assert found(module)["all-gather", 32] == (1, ((0, 1, 2, 3),), True)


@pytest.mark.parametrize(
  "kind, shape, size",
  [
    ("all-reduce", "(f32[8]{0}, f32[4]{0})", 48),
    ("all-gather", "((f32[8], f32[4]), (f32[32], f32[16]))", 192),
    ("all-gather", "(f32[8]{0}, f32[32]{0})", 128),
    ("collective-permute", "(f32[8], f32[8], u32[], u32[])", 32),
  ],
)
def test_started_collectives_of_several_arrays_count_all(kind, shape, size):
  text = (
    "ENTRY %main (a: f32[8]) -> f32[8] {\n"
    f"  %s = {shape} {kind}-start(%a, %b), replica_groups={{{{0,1,2,3}}}}\n"
    "}\n"
  )
  (only,) = hlo.collectives(hlo.parse(text, 4))
  assert (only.bytes, only.asynchronous) == (size, True)


def test_permutes_have_pairs(module):
  assert found(module)["collective-permute", 3][1] == ((0, 1), (1, 2))


def test_everything_was_found(module):
  assert len(hlo.collectives(module)) == 7


def test_cycles_by_trip_count(module):
  cycles = hlo.cycles(module, {"decoder": "Gemma", "vit": "Vit"})
  assert cycles.total == 100 + 7 * 15
  assert cycles.by_kind == {"products": 100, "copies": 105, "other": 0}
  assert cycles.by_part == {"decoder": 100, "vit": 0, "other": 105}
  assert cycles.unknown == 1


def test_a_loop_without_bound_runs_once():
  text = LOOP.replace("constant(3)", "parameter(1)")
  both = found(hlo.parse(text, 4))
  assert both["all-reduce", 32][0] == 5


def test_parts_of_a_mesh_axis_form_groups():
  text = LOOP.replace(
    "mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}",
    "mesh['a'=4] {'a':(2)2}",
  )
  twins = [
    c for c in hlo.collectives(hlo.parse(text, 4)) if c.bytes == 4 * 32 * 2
  ]
  assert twins[0].groups == ((0, 1), (2, 3))


@pytest.mark.parametrize(
  "shape, size",
  [
    ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
    ("(f32[4]{0}, (s8[3], pred[]))", 20),
    ("u4[6]{0}", 3),
    ("token[]", 0),
    ("f8e4m3fn[5]", 5),
  ],
)
def test_bytes_of_shapes(shape, size):
  assert hlo.bytes_of(shape) == size


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("nothing", 1)


def test_what_runs_on_the_sparse_cores_is_asynchronous():
  text = """\
%called (p: bf16[16,8], t: token[]) -> bf16[64,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  ROOT %gathered = bf16[64,8]{1,0} all-gather(%p), \
replica_groups=[1,4]<=[4], dimensions={0}
}, execution_thread="sparsecore"

%later (p.1: bf16[16,8], t.1: token[]) -> bf16[64,8] {
  %p.1 = bf16[16,8]{1,0} parameter(0)
  %t.1 = token[] parameter(1)
  ROOT %call = bf16[64,8]{1,0} call(%p.1, %t.1), to_apply=%called
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[16,8]) -> bf16[64,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  %ready = token[] custom-call(), custom_call_target="Prepare"
  %start = ((bf16[16,8]{1,0}, token[]), bf16[64,8]{1,0}) \
async-start(%x, %ready), async_execution_thread="sparsecore", calls=%later
  ROOT %done = bf16[64,8]{1,0} async-done(%start)
}
"""
  (one,) = hlo.collectives(hlo.parse(text, 4))
  assert (one.kind, one.bytes, one.asynchronous) == ("all-gather", 1024, True)


def test_what_slices_sum_goes_through_their_hosts():
  """As libtpu writes it for v5e:2x2*2."""
  module = hlo.parse(
    """HloModule two_slices
ENTRY %main (p: f32[256,8,128]) -> f32[256,8,128] {
  %p = f32[256,8,128]{2,1,0:T(8,128)} parameter(0)
  %after-all = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.1_0"}
  %send = (f32[256,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%p, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,8,128]{2,1,0:T(8,128)}, u32[]{:S(2)}, token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[256,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %sum = f32[256,8,128]{2,1,0:T(8,128)} get-tuple-element(%recv-done), index=0
}
""",
    8,
  )
  (found,) = hlo.collectives(module)
  assert found == hlo.Collective(
    "all-reduce", ((0, 4),), 256 * 8 * 128 * 4, 1, True, ""
  )
