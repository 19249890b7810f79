"""The text-alignment term of image tokenizers: their codes against captions.

Source: UniTok (arXiv 2502.20321), a CLIP loss beside the reconstruction, of
equal weight. Its weights are trained with the tokenizer and are no part of it:
what codes mean is in the codes.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import need
from unifluid_jax.core.types import Params
from unifluid_jax.data.fields import Field, Text
from unifluid_jax.models import alignment
from unifluid_jax.ops.contrastive import contrastive

_SHORTEST = 2  # slot of captions: a token and EOS


def inputs(config: Config, image: Field) -> dict[str, dict[str, Field]]:
  """The fields of a tokenizer: images, with captions where those take part."""
  if not config.loss.align:
    return {"image": {"image": image}}
  slot = config.text.prompt
  caption = Text("prompt", slot, after=("eos",), align="left")
  return {"t2i": {"image": image, "caption": caption}}


class TextAlignment:
  """Towers of one tokenizer, and their loss over a whole batch."""

  def __init__(self, config: Config, dtype: Any):
    """Builds the towers; `config` has `model.vq` and `model.alignment`."""
    m = config.model
    side = m.image_size // m.vq.factor
    self._shape = (1, side**2, m.vq.code_channels)
    self._length = config.text.prompt
    self._towers = alignment.Alignment(
      m.alignment, side**2, self._length, m.vq.code_channels, dtype
    )

  def init(self, key: PRNGKeyArray) -> Params:
    """Parameters of both towers."""
    z = jnp.zeros(self._shape)
    ids = jnp.zeros((1, self._length), jnp.int32)
    return self._towers.init(key, z, ids)["params"]

  def loss(
    self,
    params: Params,
    z: Float[Array, "B h w e"],
    captions: Int[Array, "B T"],
  ) -> tuple[Float[Array, ""], Mapping[str, Array]]:
    """The contrastive loss of a whole batch.

    Every image of a global batch is compared with every caption of it, on
    however many devices. Equal captions are not held against one another.

    Args:
      params: as `init` returns them.
      z: the codes' vectors, with the encoder's gradient.
      captions: ids, left-aligned.

    Returns:
      The loss; and as metrics, the loss as "alignment", and as "retrieval" the
      share of images and captions whose partner is the nearest.
    """
    vectors = z.reshape(len(z), -1, z.shape[-1])
    x, y, scale = self._towers.apply({"params": params}, vectors, captions)
    same = (captions[:, None] == captions[None]).all(-1)
    loss, found = contrastive(x, y, scale, same)
    return loss, dict(alignment=loss, retrieval=found)


def check(config: Config) -> None:
  """Refuses captions without the term, and the term without captions.

  Raises:
    ConfigError: names the key and the fix.
  """
  weight, batch = config.loss.align, config.batch
  plain, captioned = batch.get("image", 0), batch.get("t2i", 0)
  if not weight:
    need(
      not captioned,
      f"batch.t2i={captioned}: only loss.align > 0 reads captions; set "
      f"batch.image={captioned} and batch.t2i=0, or loss.align=1",
    )
    return
  need(
    not plain,
    f"loss.align={weight} needs a caption per image: set batch.t2i={plain} "
    "and batch.image=0, or loss.align=0",
  )
  need(
    config.accumulate == 1,
    f"loss.align={weight} compares a whole batch, "
    f"accumulate={config.accumulate} cuts it: set accumulate=1 or loss.align=0",
  )
  need(
    captioned > 1,
    f"batch.t2i={captioned}: loss.align={weight} compares images with one "
    "another's captions, set at least 2",
  )
  need(
    config.text.prompt >= _SHORTEST,
    f"text.prompt={config.text.prompt}: captions need at least {_SHORTEST}",
  )
  c = config.model.alignment
  need(
    c.width % c.heads == 0,
    f"model.alignment.width={c.width} must be a multiple of "
    f"model.alignment.heads={c.heads}",
  )
