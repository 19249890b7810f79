"""UniFluid in JAX: one autoregressive model that draws and describes images.

import unifluid_jax
model = unifluid_jax.load("runs/shapes")
image = model.generate("two green squares", seed=0)
model.caption(image), model.answer(image, "how many squares are there")
"""

import sys
from typing import Any

from unifluid_jax.core import interrupt

__version__ = "0.1.0"

# So Python calls itself while it looks for the module of `python -m`: this is
# one of our commands. Its imports take seconds, and can swallow Ctrl-C too.
if sys.argv[:1] == ["-m"]:
  interrupt.listen()


def load(workdir: str, **options: Any) -> Any:
  """A trained model as an `api.Model`; see `unifluid_jax.api.load`."""
  from unifluid_jax import api

  return api.load(workdir, **options)
