"""VAR: images of a class, predicted scale by scale.

Paper: VAR (arXiv 2404.02905) §3; what it leaves open follows its released code
(github.com/FoundationVision/VAR). A multi-scale VQ tokenizer makes N codes of
an image, P_k x P_k at scale k. A transformer predicts all codes of a scale at
once from the scales before it:

  slot     0       1 ... 4            5 ...
  reads    class   f^ after scale 0   f^ after scale 1     down to P_k x P_k
  sees     0       0 ... 4            0 ... 13             its scale and before
  predicts code 0  scale 1            scale 2

f^ is the image's latent as far as the scales before make it. Nothing is
shifted: a slot predicts the code that stands in its own place.

Differs: images are cropped at the centre, where VAR draws crops of images
resized to 1.125 times the size.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.multiscale_vq import MultiscaleVqCodec
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import (
  Batch,
  Metrics,
  Params,
  Part,
  SystemSpec,
)
from unifluid_jax.models import scale_decoder, stack
from unifluid_jax.ops import scales
from unifluid_jax.ops.cross_entropy import TokenLosses, chunked_cross_entropy
from unifluid_jax.systems import var_config
from unifluid_jax.systems.common import cost, scale_decode

_TASK = "t2i"


class Var:
  """The System of `config.system == "var"`; it draws images only."""

  parts, held = var_config.PARTS, ()

  def __init__(self, config: Config):
    """Builds the networks; no arrays are made here."""
    m = config.model
    self.config = config
    self.decoder = scale_decoder.ScaleDecoder(
      m.decoder, jnp.dtype(m.dtype), m.remat, m.scan
    )
    self.codec = MultiscaleVqCodec(m.vq, m.vq_path, m.image_size)
    self.inputs = var_config.inputs(config, self.codec)
    # Exact: a code that flips is another.
    codec = Part(self.codec.shapes, self.codec.load, exact=True)
    self.frozen = {"codec": codec}
    self._weights = scales.slot_weights(
      m.decoder.scales, config.loss.scale_weights
    )

  def init(self, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters; see the System protocol."""
    d = self.config.model.decoder
    inputs = jnp.zeros((1, 1, d.code_channels))
    cond = jnp.zeros((1, d.width))
    return {"decoder": self.decoder.init(key, inputs, cond)["params"]}

  def cost(self) -> cost.StepCost:
    """Tokens and FLOPs of one step; the frozen tokenizer is not counted."""
    return var_config.step_cost(self.config)

  # ------------------------------------------------------------------- loss

  def counts(self, batch: Batch) -> dict[str, int]:
    """Codes: of all scales, and of the last one."""
    rows, d = len(batch[_TASK]["class"]), self.config.model.decoder
    return {"tokens": rows * d.tokens, "last": rows * d.scales[-1] ** 2}

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, int],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """Mean cross entropy of the codes of all scales.

    Metrics are of all slots alike, whatever their weights.
    """
    k_drop, k_path = jax.random.split(key)
    fields = batch[_TASK]
    codes = self.codec.tokens(frozen["codec"], fields["image"], None)
    drop = jax.random.uniform(k_drop, (len(codes),))
    drop = drop < self.config.loss.class_dropout
    labels = jnp.where(drop, self.null, fields["class"])
    found = self.token_losses(params, frozen, codes, labels, k_path)
    weights = self._weights * self._progress(step)
    total = (found.nll * weights).sum() / counts["tokens"]
    last = found.nll.shape[1] - self.config.model.decoder.scales[-1] ** 2
    return (
      total,
      {
        "loss_image": found.nll.sum() / counts["tokens"],
        "image_accuracy": found.hits.sum() / counts["tokens"],
        "loss_last_scale": found.nll[:, last:].sum() / counts["last"],
        "last_scale_accuracy": found.hits[:, last:].sum() / counts["last"],
      },
      {},
    )

  @property
  def null(self) -> int:
    """The null class: what guidance leads away from."""
    return self.config.model.decoder.classes

  def token_losses(
    self,
    params: Params,
    frozen: Params,
    codes: Int[Array, "B N"],
    labels: Int[Array, "B"],
    key: PRNGKeyArray | None = None,
  ) -> TokenLosses:
    """Of every code, given its class and the scales before it."""
    c, d = self.config.loss, self.config.model.decoder
    inputs = jax.lax.stop_gradient(self.codec.inputs(frozen["codec"], codes))
    cond = self._apply(params, labels, method="cond")
    x = self._apply(params, inputs, cond, range(len(d.scales)), method="embed")
    x = parallel.constrain(x, "BTD")
    hidden, _ = self._apply(params, x, cond, key=key, method="blocks")

    def logits_of(h: Float[Array, "B n W"]) -> Float[Array, "B n V"]:
      return self._apply(params, h, cond, method="head")

    # There a share is spread over the other codes, in PyTorch over all.
    smoothing = c.label_smoothing * (d.codes - 1) / d.codes
    return chunked_cross_entropy(
      logits_of, hidden, codes, c.vocab_chunk, smoothing
    )

  def _progress(self, step: int | Int[Array, ""]) -> Float[Array, "N"] | float:
    """Weights of the slots in progressive training (VAR trainer.py).

    A scale that joins begins at 1 % and grows, but the last, which has its
    full weight at once. Differs: scales that have not joined are computed too,
    with weight 0; those before do not see them.
    """
    c, d = self.config.loss, self.config.model.decoder
    if not c.progressive:
      return 1.0
    since = step - var_config.joins(self.config)
    ramp = jnp.clip((since + 1) / c.progressive_ramp, var_config.LEAST, 1.0)
    k = np.arange(len(d.scales))
    grows = (k >= c.progressive_first) & (k < len(d.scales) - 1)
    weight = jnp.where(since < 0, 0.0, jnp.where(grows, ramp, 1.0))
    return weight[scales.levels(d.scales)]

  def revise(
    self, params: Params, seen: Any, key: PRNGKeyArray, step: Any
  ) -> None:
    """Gradients alone change parameters."""

  # ----------------------------------------------------------------- decode

  def generate(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "*rows"],
    sampling: Any,
  ) -> Float[Array, "B H W 3"]:
    """Images in [-1, 1] of classes.

    Args:
      params: all parameters.
      frozen: the tokenizer.
      prompts: "class" of task "t2i", i32[B].
      keys: one key, split by row, or one key per row.
      sampling: cfg, temperature, image_top_k, image_top_p, smooth.
    """
    drawn = self._drawn(params, frozen, prompts, keys, sampling)
    return self.codec.image(frozen["codec"], drawn.latent)

  def stages(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, most: int,
  ) -> Float[Array, "B S H W 3"]:  # fmt: skip
    """Images while they appear, scale by scale; see `types.Stager`."""
    drawn = self._drawn(params, frozen, prompts, keys, sampling)
    codec = self.codec, frozen["codec"]
    return scale_decode.images_of_stages(*codec, drawn, most)

  def _drawn(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any,
  ) -> scale_decode.Drawn:  # fmt: skip
    """What `generate` decodes; arguments are the same."""
    labels = prompts[_TASK]["class"]
    keys = keys if keys.ndim else jax.random.split(keys, len(labels))
    return self.draw(params, frozen["codec"], labels, keys, sampling)

  def draw(
    self,
    params: Params,
    frozen: Params,
    labels: Int[Array, "B"],
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> scale_decode.Drawn:
    """Codes and latents; see `scale_decode.draw`."""
    params = self._cast_for_decoding(params)
    given = [labels, jnp.full_like(labels, self.null)]
    given = jnp.concatenate(given[: scale_decode.conditions(sampling.cfg)])
    cond = self._apply(params, given, method="cond")
    times = len(given) // len(labels)

    def step(cache: Any, inputs: Float[Array, "B n Z"], k: int) -> Any:
      inputs = jnp.concatenate([inputs] * times)
      x = self._apply(params, inputs, cond, range(k, k + 1), method="embed")
      x, cache = self._apply(params, x, cond, cache, k, method="blocks")
      logits = self._apply(params, x, cond, method="head")
      return jnp.split(logits, times), cache

    cache = self._apply(params, len(given), method="empty_cache")
    return scale_decode.draw(self.codec, frozen, step, cache, keys, sampling)

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the frozen tokenizer: an upper bound for generation."""
    del params
    return self.codec.reconstruct(frozen["codec"], images)

  def _cast_for_decoding(self, params: Params) -> Params:
    """The layers' weights cast once, and not for every scale."""
    net = params["decoder"]
    layers = stack.narrow(net["layers"], self.decoder.dtype)
    return params | {"decoder": net | {"layers": layers}}

  def _apply(self, params: Params, *args: Any, **how: Any) -> Any:
    return self.decoder.apply({"params": params["decoder"]}, *args, **how)


SPEC = SystemSpec(
  model=var_config.ModelConfig,
  loss=var_config.LossConfig,
  sampling=var_config.SamplingConfig,
  ranges=var_config.RANGES,
  tasks=(_TASK,),
  check=var_config.check,
  check_sampling=var_config.check_guidance,
  migrate=dict,
  summary=var_config.summary,
  losses={"loss_image": "L_image (nats)"},
  build=Var,
  tables=(),
  codec_path="vq_path",
  text_rows=lambda config: 0,
)
