"""Settings of networks and texts that cannot work, whichever system has them.

All raise ConfigError with the keys and the fix.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from unifluid_jax.core import presets
from unifluid_jax.core.freeze import need
from unifluid_jax.core.types import BOS, EOS, UNK


def special_ids(special: Mapping[str, Any], vocab: int) -> dict[str, int]:
  """Ids of special tokens by name: those of core/types.py unless named.

  Args:
    special: config.text.special.
    vocab: rows of the decoder's table.

  Returns:
    All that are given as ids. What is given as a piece of the tokenizer is
    left out: a system has no tokenizer.

  Raises:
    ConfigError: an id without a row.
  """
  ids = {"bos": BOS, "eos": EOS, "unk": UNK} | dict(special)
  ids = {name: i for name, i in ids.items() if not isinstance(i, str)}
  for name, i in ids.items():
    need(
      type(i) is int and 0 <= i < vocab,
      f"text.special.{name}={i!r} must be an id below "
      f"model.decoder.vocab={vocab}",
    )
  return ids


def check_special(special: Mapping[str, Any], vocab: int) -> None:
  """Of systems that read bos, eos and unk, by their ids."""
  ids = special_ids(special, vocab)
  for role in ("bos", "eos", "unk"):
    need(
      role in ids,
      f"text.special.{role}={special.get(role)!r}: the system has no tokenizer "
      "and reads its id: give that instead of the piece",
    )


def check_control(
  special: Mapping[str, Any],
  vocab: int,
  control: Sequence[str],
  others: Sequence[str] = (),
) -> dict[str, int]:
  """Of systems with control tokens: each has a row of its own.

  Args:
    special: config.text.special.
    vocab: rows of the decoder's table.
    control: names of the control tokens.
    others: names of further tokens that the system reads.

  Returns:
    Ids by name.
  """
  check_special(special, vocab)
  ids = special_ids(special, vocab)
  for name in (*control, *others):
    need(
      name in ids,
      f"text.special.{name} is missing: give the id of {name.upper()}, a row "
      "of the vocabulary",
    )
  taken = {ids["bos"], ids["eos"]}
  for name in control:
    need(
      ids[name] not in taken,
      f"text.special.{name}={ids[name]} has another role too: bos, eos, "
      f"{', '.join(control)} need ids of their own",
    )
    taken.add(ids[name])
  return ids


def check_dialogue(config: Any) -> None:
  """Of systems that draw N tokens between BOI and EOI in dialogues."""
  n, room = config.model.image_tokens, config.text.dialogue
  least = n + 4  # BOS, BOI, EOI, EOS
  need(
    room >= least or not (room or config.batch.get("dialogue")),
    f"text.dialogue={room} has no room for an image of {n} tokens and BOS, "
    f"BOI, EOI, EOS: use >= {least}",
  )


def check_decoder(c: presets.DecoderConfig) -> None:
  """Of config.model.decoder."""
  need(
    c.heads % c.kv_heads == 0,
    f"model.decoder.heads={c.heads} must be a multiple of "
    f"model.decoder.kv_heads={c.kv_heads}",
  )
  need(c.head_dim % 2 == 0, "model.decoder.head_dim must be even")
  need(
    c.pre_norms or c.post_norms,
    "model.decoder has no norms: set pre_norms=True or post_norms=True",
  )


def check_vit(c: presets.VitConfig) -> None:
  """Of config.model.vit."""
  need(
    c.image_size >= c.patch,
    f"model.vit.image_size={c.image_size} must hold a patch at least: "
    f"model.vit.patch={c.patch}",
  )
  need(
    c.width % c.heads == 0,
    f"model.vit.width={c.width} must be a multiple of "
    f"model.vit.heads={c.heads}",
  )


def check_scale_decoder(
  c: presets.ScaleDecoderConfig, vq: presets.MultiscaleVqConfig, key: str
) -> None:
  """Of a scale decoder under `key`, and whether it predicts config.model.vq."""
  need(
    c.width % c.heads == 0,
    f"{key}.width={c.width} must be a multiple of {key}.heads={c.heads}",
  )
  need(
    c.scales[0] == 1,
    f"{key}.scales={c.scales} must begin with 1: the condition is one slot",
  )
  for name in ("scales", "codes", "code_channels"):
    ours, theirs = getattr(c, name), getattr(vq, name)
    need(
      ours == theirs, f"{key}.{name}={ours} must be model.vq.{name}={theirs}"
    )
