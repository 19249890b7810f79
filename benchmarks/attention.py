r"""Times the fused attention of the device at hand against the plain one.

  python -m benchmarks.attention
  python -m benchmarks.attention --forward=64x32x4x2,128x64x8x2 \
      --dq=64x32x8x2,128x32x8x2

Shapes are those of the 2B configuration in training. Blocks, for GPUs only,
are queries x keys x warps x stages, one kernel varied at a time around the
default of the table; --blocks=64x32,… sets those of all three kernels.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from unifluid_jax.core import cli
from unifluid_jax.ops import attention, triton_attention
from unifluid_jax.ops.triton_attention import Blocks

_ROWS = flags.DEFINE_integer("rows", 32, "Sequences of a call.")
_LENGTH = flags.DEFINE_integer("length", 384, "Positions of a sequence.")
_HEADS = flags.DEFINE_integer("heads", 8, "Of queries.")
_KV_HEADS = flags.DEFINE_integer("kv_heads", 4, "Of keys and values.")
_SIZE = flags.DEFINE_integer("size", 256, "Channels of a head.")
_SOFTCAP = flags.DEFINE_float("softcap", 50.0, "0: none.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of queries, keys, values.")
_CALLS = flags.DEFINE_integer("calls", 20, "Timed calls of each.")
_BLOCKS = flags.DEFINE_list("blocks", [], "Of all three kernels.")
_VARIED = {
  name: flags.DEFINE_list(name, [], f"Blocks of the kernel {name} alone.")
  for name in triton_attention.Plan._fields
}


def main(_: list[str]) -> None:
  """Prints a row a kernel: both times, ratios to plain, distance from it."""
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  arrays, base = _arrays(), None
  for name, attend in _variants():
    try:
      values, *times = _measure(attend, *arrays)
    except Exception as error:  # one that does not fit must not end the rest
      text = str(error).strip().splitlines() or [type(error).__name__]
      print(f"{name:32} failed: {text[0][:150]}", flush=True)
      continue
    base = base or (values, times)
    ratios = [b / a for a, b in zip(times, base[1], strict=True)]
    print(
      f"{name:32} forward {times[0]:7.3f} ms x{ratios[0]:5.2f}   with backward "
      f"{times[1]:7.3f} ms x{ratios[1]:5.2f}   off {_off(values, base[0])}",
      flush=True,
    )


def _variants() -> Iterator[tuple[str, Callable[..., Any]]]:
  yield "plain", attention.attend
  platform = jax.devices()[0].platform
  if platform == "tpu":
    for name in ("splash", "mosaic"):
      yield name, functools.partial(attention.attend, kernel=name)
  if platform != "gpu":
    return
  yield "triton", functools.partial(attention.attend, kernel="triton")
  wide = jnp.dtype(_DTYPE.value).itemsize
  plan = triton_attention.default_plan(_SIZE.value * wide)
  for text in _BLOCKS.value:
    blocks = {name: _blocks(text, getattr(plan, name)) for name in plan._fields}
    yield f"all {text}", _with(plan._replace(**blocks))
  for name, flag in _VARIED.items():
    for text in flag.value:
      blocks = _blocks(text, getattr(plan, name))
      yield f"{name} {text}", _with(plan._replace(**{name: blocks}))


def _blocks(text: str, default: Blocks) -> Blocks:
  """Blocks as "64x32" or "64x32x4x2"; what is missing is the default's."""
  numbers = [int(number) for number in text.split("x")]
  return Blocks(*numbers, *default[len(numbers) :])


def _with(plan: triton_attention.Plan) -> Callable[..., Any]:
  return functools.partial(triton_attention.flash, plan=plan)


def _arrays() -> tuple[list[jax.Array], jax.Array, jax.Array]:
  """Queries, keys, values; weights of the result; image and text masks."""
  b, t, h = _ROWS.value, _LENGTH.value, _SIZE.value
  n, kv = _HEADS.value, _KV_HEADS.value
  shapes = [(b, t, heads, h) for heads in (n, kv, kv, n)]
  keys = jax.random.split(jax.random.key(0), 4)
  *qkv, weights = (
    jax.random.normal(key, shape, _DTYPE.value)
    for key, shape in zip(keys, shapes, strict=True)
  )
  # A prefix that sees itself, then causal: long for one task, short for other.
  prefix = jnp.where(jnp.arange(b) % 2, 2 * t // 3, t // 6)[:, None]
  block = jnp.maximum(jnp.arange(t) - prefix + 1, 0)
  return qkv, weights, attention.block_causal_mask(block, block >= 0)


def _measure(attend, qkv, weights, mask) -> tuple[list[np.ndarray], float, ...]:
  """The result and its gradients; milliseconds without and with them."""
  kwargs = dict(softcap=_SOFTCAP.value, scale=_SIZE.value**-0.5)

  def forward(qkv):
    return attend(*qkv, mask, **kwargs)

  def backward(qkv):
    out, pull = jax.vjp(forward, qkv)
    return out, *pull(weights)[0]

  times = []
  for f in (forward, backward):
    f = jax.jit(f)
    values = jax.block_until_ready(f(qkv))
    begin = time.perf_counter()
    for _ in range(_CALLS.value):
      last = f(qkv)
    jax.block_until_ready(last)
    times.append((time.perf_counter() - begin) * 1000 / _CALLS.value)
  return [np.asarray(x, np.float32) for x in values], *times


def _off(values: list[np.ndarray], base: list[np.ndarray]) -> str:
  """Root mean squares of the differences, to those of the base's values."""
  shares = (
    np.linalg.norm(x - y) / np.linalg.norm(y)
    for x, y in zip(values, base, strict=True)
  )
  return " ".join(f"{share:.1e}" for share in shares)


if __name__ == "__main__":
  cli.run(main)
