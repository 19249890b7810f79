"""The range of every number in a configuration: one row per key.

A number that no row names must still be finite.
"""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from unifluid_jax.core.freeze import ConfigError

_UINT32 = 2**32 - 1  # seeds are folded into keys of 32 bits
_INT32 = 2**31 - 1  # sizes and steps are counted on devices in int32
_FLOAT32 = 3.4028234663852886e38


class Range(NamedTuple):
  """Numbers from `low` to `high`; an open end is not one of them."""

  low: int | float = -math.inf
  high: int | float = math.inf
  opens_low: bool = False
  opens_high: bool = False
  or_rest: bool = False  # -1 is allowed too: all that remain

  def holds(self, x: int | float) -> bool:
    """Whether `x` lies within; NaN and infinity never do."""
    if self.or_rest and x == -1:
      return True
    if isinstance(x, float) and not math.isfinite(x):
      return False
    above = x > self.low if self.opens_low else x >= self.low
    below = x < self.high if self.opens_high else x <= self.high
    return above and below

  def __str__(self) -> str:
    """As it stands in an error, after "must be"."""
    if self == ANY:
      return "a finite number"
    if self.high == math.inf:
      if self.low == 0 and self.opens_low:
        return "positive"
      rest = ", or -1 (all devices that remain)" if self.or_rest else ""
      return f"at least {self.low:g}{rest}"
    left, right = "[("[self.opens_low], "])"[self.opens_high]
    return f"in {left}{_plain(self.low)}, {_plain(self.high)}{right}"


COUNT = Range(1)  # what sizes or divides something
AMOUNT = Range(0)  # 0 is none, or off
POSITIVE = Range(0, opens_low=True)
SHARE = Range(0, 1)
DECAY = Range(0, 1, opens_high=True)  # moving averages, drop rates
SEED = Range(0, _UINT32)
ANY = Range()


class Row(NamedTuple):
  """What the numbers of some keys may be."""

  keys: str  # separated by spaces; * stands for a name
  range: Range


def below(parent: str, names: str) -> str:
  """Keys of one node, for a row."""
  return " ".join(f"{parent}.{name}" for name in names.split())


# Of keys that all systems share; each adds those of its own.
ROWS = (
  Row("seed data.world.seed", SEED),
  Row("steps accumulate", COUNT),
  Row("batch.*", AMOUNT),
  Row("data.workers data.train.*.weight data.eval.*.weight", AMOUNT),
  Row("data.train.*.limit data.eval.*.limit text.train_vocab", AMOUNT),
  Row("data.train.*.min_score data.eval.*.min_score", ANY),
  Row("data.threads data.images", COUNT),
  Row(below("data.world", "train validation held_out"), COUNT),
  Row(
    f"{below('data.world', 'in_context dialogues signs')} text.dialogue", AMOUNT
  ),
  Row("data.world.*", ANY),
  Row(below("data.augment", "shift scale colour"), DECAY),
  Row("data.max_bad_share", SHARE),
  Row("data.max_pixels", Range(1, 178_956_970)),  # what Pillow opens at most
  # Training.
  Row("optim.lr optim.adam_lr optim.warmup optim.rates.*", AMOUNT),
  Row("optim.weight_decay optim.clip", AMOUNT),
  Row("optim.b1 optim.b2 optim.ema", DECAY),
  Row(below("optim.parts.*", "lr weight_decay clip start"), AMOUNT),
  Row(below("optim.parts.*", "b1 b2"), DECAY),
  # Smaller ones vanish in float32, and 0 / 0 ruins what has no gradient.
  Row("optim.eps", Range(1e-30)),
  Row("policy.prompts policy.weight policy.worse", AMOUNT),
  Row("policy.draws", Range(2)),  # an advantage is over others
  Row("policy.sampling.*", ANY),  # checked as options
  Row(below("mesh", "data fsdp tensor"), Range(1, or_rest=True)),
  Row("mesh.slices", COUNT),
  Row("checkpoint.every checkpoint.keep log.every", COUNT),
  Row("checkpoint.keep_every log.profile_start log.profile_steps", AMOUNT),
  # Use.
  Row("eval.examples eval.prompts_per_task eval.batch", COUNT),
  # Drawings have 32-bit seeds, which lie a million apart.
  Row("eval.seed", Range(0, 4000)),
  Row("eval.poll_seconds", Range(0, 86_400, opens_low=True)),
)

# Of networks that several systems have.
DECODER = (
  Row(
    below("model.decoder", "vocab width depth mlp heads kv_heads head_dim"),
    COUNT,
  ),
  Row(
    below(
      "model.decoder",
      "query_scale rope_base rope_base_global rope_scale_global norm_epsilon",
    ),
    POSITIVE,
  ),
  Row(
    below(
      "model.decoder", "attn_softcap final_softcap window rope_original_length"
    ),
    AMOUNT,
  ),
  Row("model.decoder.dropout", DECAY),
)
VIT = (
  Row(below("model.vit", "width depth mlp heads patch image_size"), COUNT),
)
VAE = (
  Row(below("model.vae", "base multipliers blocks latent groups stem"), COUNT),
  Row("model.vae.latent_mean", ANY),
  Row("model.vae.latent_scale", POSITIVE),
)
VQ = (
  Row(
    below(
      "model.vq",
      "base multipliers blocks latent groups stem codes code_channels",
    ),
    COUNT,
  ),
)
MULTISCALE_VQ = (
  *VQ,
  Row("model.vq.scales", COUNT),
  Row("model.vq.phi", AMOUNT),
  Row("model.vq.phi_ratio", SHARE),
)


def scale_decoder(node: str, depth: Range = COUNT) -> tuple[Row, ...]:
  """Of a `presets.ScaleDecoderConfig`, by its key."""
  sizes = "width heads mlp codes code_channels scales"
  return (
    Row(f"{node}.depth", depth),
    Row(below(node, sizes), COUNT),
    Row(below(node, "classes gate_init"), AMOUNT),
    Row(f"{node}.drop_path", DECAY),
  )


# Of answers, as `systems/common/text_decode` draws them.
ANSWERS = (
  Row("sampling.text_temperature", POSITIVE),
  Row("sampling.top_k", AMOUNT),
  Row("sampling.top_p", Range(0, 1, opens_low=True)),
  Row("sampling.beams", COUNT),
  Row("sampling.seed", SEED),
)

# Tuples that something is divided into, or that are gone through in turn.
_NEVER_EMPTY = ("pattern", "multipliers", "scales")


def check(config: Any, rows: tuple[Row, ...] = ()) -> None:
  """Refuses the first number that is outside its range.

  Args:
    config: a `config.Config`.
    rows: of its system's keys.

  Raises:
    ConfigError: its key, its value and the range.
  """
  for key, value in numbers(config):
    row = row_of(key, rows)
    allowed = ANY if row is None else _representable(value, row.range)
    if not allowed.holds(value):
      raise ConfigError(f"config.{key}={value!r} must be {allowed}")


def numbers(node: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
  """Dotted keys and values of all numbers; those of a tuple share its key.

  Raises:
    ConfigError: a tuple without entries that needs some.
  """
  if dataclasses.is_dataclass(node):
    items = [(f.name, getattr(node, f.name)) for f in dataclasses.fields(node)]
  elif isinstance(node, Mapping):
    items = list(node.items())
  elif isinstance(node, (tuple, list)):
    if not node and key.rpartition(".")[2] in _NEVER_EMPTY:
      raise ConfigError(f"config.{key}=() must have an entry at least")
    for entry in node:
      yield from numbers(entry, key)
    return
  else:
    if isinstance(node, (int, float)) and not isinstance(node, bool):
      yield key, node
    return
  for name, value in items:
    yield from numbers(value, f"{key}.{name}" if key else str(name))


@functools.cache
def row_of(key: str, rows: tuple[Row, ...] = ()) -> Row | None:
  """The first row that names a key, of all systems' or of these."""
  for row in (*ROWS, *rows):
    for pattern in row.keys.split():
      if pattern == key or fnmatch.fnmatchcase(key, pattern):
        return row
  return None


def _representable(value: int | float, wanted: Range) -> Range:
  """The range, cut to what devices can hold; the whole one where it fits."""
  limit = _INT32 if isinstance(value, int) else _FLOAT32
  if wanted.high < math.inf or not abs(value) > limit:  # NaN: as it is
    return wanted
  return wanted._replace(low=max(wanted.low, -limit), high=limit)


def _plain(x: int | float) -> str:
  return str(x) if isinstance(x, int) else f"{x:g}"
