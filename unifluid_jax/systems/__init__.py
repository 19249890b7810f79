"""Systems: what is trained, behind the contract of types.py."""

from typing import Any

from unifluid_jax.core.config import Config


def build(config: Config) -> Any:
  """The system `config.system` names; imports only that one."""
  if config.system == "vae":
    from unifluid_jax.systems.tokenizer_training import VaeSystem

    return VaeSystem(config)
  from unifluid_jax.systems.unifluid import UniFluid

  return UniFluid(config)
