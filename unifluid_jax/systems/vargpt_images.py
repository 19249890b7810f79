"""How VARGPT draws: slots into the language model, states out of it to codes.

  slot → embedding → in_projector → decoder → out_projector → scale decoder

Source: VARGPT (arXiv 2501.12327) §3.2 and its released code. A slot is fed what
the image looks like after the scales before its own; its code is predicted at
that slot. Scales draw as in VAR (arXiv 2404.02905).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.multiscale_vq import MultiscaleVqCodec
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import Params
from unifluid_jax.models.adapter import Adapter
from unifluid_jax.models.scale_decoder import ScaleDecoder
from unifluid_jax.ops import scales
from unifluid_jax.systems import vargpt_config
from unifluid_jax.systems.common import packing, scale_decode, text_decode


class Images(NamedTuple):
  """Images that rows draw, M each."""

  codes: Any  # i32[B, M, N]
  places: Any  # i32[B, M * N], where their slots stand
  learned: Any  # bool[B, M]


class CodeLosses(NamedTuple):
  """What the logits of every code say, f32[B * M, N]; 0 if not learned."""

  nll: Any  # nats
  hits: Any  # 1.0 where the largest logit is the code
  weighted: Any  # nll times the scale's weight


class Drawing:
  """Both projectors and the scale decoder, around the language model.

  Attributes:
    before: how many slots of an image stand before each in its block of the
      language model, i32[N].
  """

  def __init__(self, config: Config, codec: MultiscaleVqCodec):
    """Builds the networks; no arrays are made here."""
    m = config.model
    self.config, self.codec = config, codec
    dtype, width = jnp.dtype(m.dtype), m.visual_decoder.width
    self.networks = {
      "in_projector": Adapter(m.decoder.width, dtype, hidden=width),
      "out_projector": Adapter(width, dtype, hidden=m.decoder.width),
      "visual_decoder": ScaleDecoder(m.visual_decoder, dtype, m.remat, m.scan),
    }
    self.before = vargpt_config.before_in_block(m)

  def init_inputs(self) -> dict[str, tuple[Array, ...]]:
    """What each network is initialised with."""
    c, width = self.config.model.visual_decoder, self.config.model.decoder.width
    slots = jnp.zeros((1, c.tokens, c.code_channels))
    return {
      "in_projector": (jnp.zeros((1, 1, c.width)),),
      "out_projector": (jnp.zeros((1, 1, width)),),
      "visual_decoder": (slots, jnp.zeros((1, c.width))),
    }

  def _apply(self, params: Params, name: str, *inputs: Any, **how: Any) -> Any:
    return self.networks[name].apply({"params": params[name]}, *inputs, **how)

  def _class_row(
    self, params: Params, rows: int, number: int
  ) -> Float[Array, "B W"]:
    labels = jnp.full((rows,), number, jnp.int32)
    return self._apply(params, "visual_decoder", labels, method="cond")

  # ------------------------------------------------------------------ networks

  def slots(
    self, params: Params, inputs: Float[Array, "B n Z"], span: range
  ) -> Float[Array, "B n D"]:
    """The slots of some scales, as the language model reads them.

    Positions and levels are added here, before the language model, as the
    released code has it; the scale decoder adds none.
    """
    start = self._class_row(params, len(inputs), vargpt_config.START)
    x = self._apply(
      params, "visual_decoder", inputs, start, span, method="embed"
    )
    return self._apply(params, "in_projector", x)

  def whole(
    self, params: Params, frozen: Params, codes: Int[Array, "B N"]
  ) -> Float[Array, "B N D"]:
    """All slots of images whose codes are known."""
    inputs = self.codec.inputs(frozen["codec"], codes)
    return self.slots(params, inputs, range(len(self.codec.config.scales)))

  def logits(
    self,
    params: Params,
    states: Float[Array, "B n D"],
    cache: Any = None,
    k: int | None = None,
    key: PRNGKeyArray | None = None,
  ) -> tuple[Float[Array, "B n V"], Any]:
    """Logits of the codes at their slots.

    Args:
      params: all parameters.
      states: of the language model, at all slots or at those of scale k.
      cache: of the scale decoder, before scale k.
      k: the scale.
      key: of the scale decoder's drop path.
    """
    x = self._apply(params, "out_projector", states)
    condition = self._class_row(params, len(x), vargpt_config.CONDITION)
    x, cache = self._apply(
      params, "visual_decoder", x, condition, cache, k, key, method="blocks"
    )
    logits = self._apply(params, "visual_decoder", x, condition, method="head")
    return logits, cache

  # ---------------------------------------------------------------- objective

  def losses(
    self,
    params: Params,
    images: Images,
    states: Float[Array, "B T D"],
    key: PRNGKeyArray,
  ) -> CodeLosses:
    """Cross entropies of the codes of all images.

    Args:
      params: all parameters.
      images: with the places of their slots in the rows.
      states: of the language model, of whole rows.
      key: of the scale decoder's drop path.
    """
    b, m, n = images.codes.shape
    states = jnp.take_along_axis(states, images.places[..., None], axis=1)
    states = parallel.constrain(states.reshape(b * m, n, -1), "BTD")
    logits, _ = self.logits(params, states, key=key)
    codes = images.codes.reshape(b * m, n)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    hits = (logits.argmax(axis=-1) == codes).astype(jnp.float32)
    weights = scales.slot_weights(
      self.codec.config.scales, self.config.loss.scale_weights
    )
    learned = images.learned.reshape(b * m, 1)
    return CodeLosses(
      *(jnp.where(learned, x, 0) for x in (nll, hits, nll * weights))
    )

  # -------------------------------------------------------------------- decode

  def draw(
    self,
    decoder: Any,
    params: Params,
    frozen: Params,
    given: Sequence[packing.Packed],
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> scale_decode.Drawn:
    """Draws an image after each prompt.

    Each scale is one call of the language model on its slots and one of the
    scale decoder, both with a cache.

    Args:
      decoder: the language model.
      params: all parameters.
      frozen: the tokenizer.
      given: prompts of one length that end with boi; then, where guidance
        leads away from null prompts, these, which are fed the same codes. With
        prompts alone it leads away from noise, new at each scale, in the place
        of the language model's states: from what has seen no code.
      keys: one per row; see `scale_decode.draw`.
      sampling: cfg, temperature, image_top_k, image_top_p, smooth.
    """
    packed = jax.tree.map(lambda *rows: jnp.concatenate(rows), *given)
    count = scale_decode.conditions(sampling.cfg)
    start, n = packed.x.shape[1], len(self.before)
    text, _ = text_decode.prefill(decoder, params, packed, n)
    offset = packed.valid.sum(axis=1, dtype=jnp.int32)

    def step(
      caches: tuple[Any, Any], inputs: Float[Array, "B n Z"], k: int
    ) -> tuple[list[Float[Array, "B n V"]], tuple[Any, Any]]:
      text, image = caches
      where = scales.slots(self.codec.config.scales, k)
      x = self.slots(params, inputs, range(k, k + 1))
      states, text = decoder.apply(
        {"params": params["decoder"]},
        jnp.concatenate([x] * len(given)),
        offset[:, None] + jnp.arange(where.start, where.stop),
        self._mask(packed.valid, where),
        text,
        start + where.start,
      )
      if count > len(given):
        noise = self._noise(keys, k, states)
        states = jnp.concatenate([states, noise])
      logits, image = self.logits(params, states, image, k)
      return jnp.split(logits, count), (text, image)

    caches = (
      text,
      self._apply(
        params, "visual_decoder", len(keys) * count, method="empty_cache"
      ),
    )
    return scale_decode.draw(
      self.codec, frozen["codec"], step, caches, keys, sampling
    )

  def _mask(
    self, prompt: Bool[Array, "R P"], where: slice
  ) -> Bool[Array, "R n S"]:
    """What slots see in the language model's cache.

    Args:
      prompt: which slots before the image are valid.
      where: the slots of the image that look.

    Returns:
      S are the prompt's slots and all of the image.
    """
    block = np.arange(len(self.before)) - self.before
    seen = jnp.asarray(block <= block[where, None])
    parts, rows = (prompt[:, None], seen[None]), (len(prompt), len(seen))
    parts = [jnp.broadcast_to(x, (*rows, x.shape[2])) for x in parts]
    return jnp.concatenate(parts, axis=2)

  def _noise(
    self, keys: Key[Array, "B"], k: int, like: Float[Array, "B n D"]
  ) -> Float[Array, "B n D"]:
    """Gaussian states of scale k; no code draws from their keys."""
    number = k + len(self.codec.config.scales)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    return jax.vmap(
      lambda key: jax.random.normal(key, like.shape[1:], like.dtype)
    )(keys)
