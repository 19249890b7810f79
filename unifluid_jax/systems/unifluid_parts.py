"""Where UniFluid's networks stand in its parameters, and how each is split."""

from unifluid_jax.core.parameter_rows import KERNEL, MATRIX, Row
from unifluid_jax.models import diffusion_head, gemma, vit

_PROJECTOR = (
  Row(r"kernel", ("fsdp", None), ((0,), (1,)), KERNEL),
  Row(r"bias", (None,)),
)
_IMAGE = (
  Row(r"in/kernel", (None, "fsdp"), ((0,), (1,)), KERNEL),  # CD
  Row(r"(position|next_position)", (None, "fsdp"), decay=MATRIX),  # ND
  Row(r"in/bias|boi", (None,)),  # D
)

PARTS = {
  "decoder": gemma.ROWS,
  "vit": vit.ROWS,
  "projector": _PROJECTOR,
  "image": _IMAGE,
  "head": diffusion_head.ROWS,
}
