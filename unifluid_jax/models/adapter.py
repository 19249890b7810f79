"""Features of one network as inputs of another, by two layers (LLaVA-1.5).

Sources: LLaVA-1.5 (arXiv 2310.03744) §3.2, UniToken (arXiv 2504.04423) §3.1,
VARGPT (arXiv 2501.12327) §3.2.
"""

from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from unifluid_jax.core.parameter_rows import KERNEL, Row

ROWS = (
  Row(r"in/kernel", ("fsdp", "tensor"), ((0,), (1,)), KERNEL),
  Row(r"out/kernel", ("tensor", "fsdp"), ((0,), (1,)), KERNEL),
  Row(r"(in|out)/bias", (None,)),
)


class Adapter(nn.Module):
  """Dense, exact GELU, Dense.

  Attributes:
    width: D, of the outputs.
    dtype: of the products; parameters are float32.
    hidden: width between the layers; 0: D as well.
  """

  width: int
  dtype: Any
  hidden: int = 0

  @nn.compact
  def __call__(self, x: Float[Array, "B n C"]) -> Float[Array, "B n D"]:
    """Projects every feature."""
    x = nn.Dense(self.hidden or self.width, dtype=self.dtype, name="in")(x)
    x = jax.nn.gelu(x, approximate=False)
    return nn.Dense(self.width, dtype=self.dtype, name="out")(x)
