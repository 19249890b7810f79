"""Systems: what is trained, behind the contract of types.py."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unifluid_jax.core.config import Config, SamplingConfig

# Key in metrics.jsonl → title of its curve, as reports show it.
LOSSES: Mapping[str, str] = {
  "loss_visual": "L_visual (MSE + VB)",
  "loss_text": "L_text (nats)",
}
# How a run was made to answer: what two runs may differ in and be compared.
SAMPLING_OPTIONS = frozenset(f.name for f in dataclasses.fields(SamplingConfig))


def build(config: Config) -> Any:
  """The system `config.system` names; imports only that one."""
  if config.system == "vae":
    from unifluid_jax.systems.tokenizer_training import VaeSystem

    return VaeSystem(config)
  from unifluid_jax.systems.unifluid import UniFluid

  return UniFluid(config)


def summary(config: Config) -> dict[str, str]:
  """What a report says of a run's configuration, label → value."""
  d, m = config.model.decoder, config.model
  batch = ", ".join(f"{k} {v}" for k, v in config.batch.items() if v)
  return {
    "decoder": f"{d.depth} layers x {d.width}",
    "image tokens": f"{m.image_tokens} x {m.token_channels}",
    "batch": batch,
    "lambda": f"{config.loss.text_weight:g}",
    "optimizer": f"{config.optim.name}, lr {config.optim.lr:g}",
    "sampling": f"{config.sampling.steps} steps, cfg {config.sampling.cfg:g}",
  }
