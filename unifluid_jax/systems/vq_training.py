"""Training of a discrete image tokenizer: VQGAN, LlamaGen, VAR and between.

Sources: VQGAN (arXiv 2012.09841; CompVis/taming-transformers), LlamaGen
(arXiv 2406.06525; FoundationVision/LlamaGen), VAR (arXiv 2404.02905;
FoundationVision/VAR, which has the quantiser's loss and no trainer). Codes that
hardly occur are replaced by vectors that were to be coded, which none of them
does. Codes may be aligned with captions, as UniTok's (arXiv 2502.20321), whose
several codebooks are not built.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.core.config import Config
from unifluid_jax.core.parameter_rows import Row as ParameterRow
from unifluid_jax.core.types import Batch, Metrics, Params, SystemSpec
from unifluid_jax.data.fields import Pixels
from unifluid_jax.models import alignment as towers
from unifluid_jax.models import convolutions, multiscale_vq, patch_gan, vq
from unifluid_jax.systems import vq_config
from unifluid_jax.systems.common import alignment, reconstruction
from unifluid_jax.systems.common.reconstruction import batch_mean

_SMOOTHING = 1e-5  # of the counts that divide an averaged codebook

_sg = jax.lax.stop_gradient


Quantised = vq.Quantised | multiscale_vq.MultiscaleQuantised


def quantisation_loss(
  weights: Any, found: Quantised, count: int
) -> Float[Array, ""]:
  """Codes drawn to vectors, and vectors to codes: means over elements.

  Both orders have the same value and differ in gradients. An averaged
  codebook follows its vectors by itself. Of several scales the sums after
  each of them count alike (VAR).

  Args:
    weights: `commitment`, `order` and `average` of a LossConfig.
    found: of a micro-batch.
    count: images of the whole batch.
  """
  w, z, nearest = weights, found.targets, found.approximations
  codes = batch_mean(jnp.square(nearest - _sg(z)), count)
  encoder = batch_mean(jnp.square(_sg(nearest) - z), count)
  if w.average:
    return w.commitment * encoder
  if w.order == "legacy":
    return w.commitment * codes + encoder
  return codes + w.commitment * encoder


class VqSystem:
  """The tokenizer's networks and objective; a `types.System`.

  Means over the cells, pixels and channels of the whole batch add up over its
  micro-batches. Entropy, adversarial and alignment terms, and the encoder
  outputs that replace codes, need a batch in one piece.

  `usage/count` averages how often a step uses each code, in each scale if
  there are several; a code is replaced if no scale has use for it, and its
  successor is a vector of any scale. An averaged codebook
  (`loss.average`; VQ-VAE, arXiv 1711.00937, appendix A.1) is held, and
  `averages` keeps what it is a quotient of.

  Differs: generator and discriminator step together, on one scalar whose
  terms are kept apart by stopped gradients. Adam's moments of a replaced row
  stay; they are near 0, since a code without uses has no gradient. Averages
  start at count 1, not 0, by which taming's constructor divides unused codes.
  """

  def __init__(self, config: Config):
    """Builds the modules."""
    model, self._weights = config.model, config.loss
    self._config, self._image_size = model.vq, model.image_size
    dtype = jnp.dtype(model.dtype)
    self._scales = getattr(model.vq, "scales", ())
    network = multiscale_vq.MultiscaleVqVae if self._scales else vq.VqVae
    self._vq = network(model.vq, dtype)
    self._discriminator = patch_gan.PatchGan(
      self._weights.discriminator_width,
      self._weights.discriminator_layers,
      dtype,
    )
    image = Pixels("drawn", model.image_size, "crop", target=True)
    self.inputs = alignment.inputs(config, image)
    self._task = next(iter(self.inputs))
    self.codec = None
    self.frozen = reconstruction.perceptual_part(self._weights)
    counts = (ParameterRow("count", (None,)),)
    sums = (ParameterRow("sum", (None, None)),)
    by_scale = (ParameterRow("count", (None, None)),)
    self.parts = {
      "vq": multiscale_vq.ROWS if self._scales else vq.ROWS,
      "usage": by_scale if self._scales else counts,
      "averages": counts + sums,
      "discriminator": patch_gan.ROWS,
      "alignment": towers.ROWS,
    }
    self._alignment = None
    if self._weights.align:
      self._alignment = alignment.TextAlignment(config, dtype)
    averaged = ("averages", "vq/codebook") if self._weights.average else ()
    self.held = ("usage", *averaged)

  def cost(self) -> None:
    """Not counted."""

  def init(self, key: PRNGKeyArray) -> Params:
    """Parameters of "vq", "usage" and what the objective needs besides."""
    vq_key, discriminator_key = jax.random.split(key)
    images = jnp.zeros((1, self._image_size, self._image_size, 3))
    scales = (len(self._scales),) if self._scales else ()
    params = {
      "vq": self._vq.init(vq_key, images)["params"],
      "usage": {"count": jnp.zeros((*scales, self._config.codes))},
    }
    if self._weights.average:
      table = vq.vectors(self._table(params), self._config.normalised)
      count = jnp.ones(self._config.codes)
      params["averages"] = {"count": count, "sum": table}
    if self._weights.adversarial:
      params["discriminator"] = self._discriminator.init(
        discriminator_key, images
      )["params"]
    if self._alignment is not None:
      params["alignment"] = self._alignment.init(jax.random.fold_in(key, 2))
    return params

  def encode(
    self, params: Params, images: Float[Array, "B H W 3"]
  ) -> Int[Array, "B *cells"]:
    """Codes of images."""
    return self._apply(params["vq"], images, "encode")

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images decoded from their codes."""
    del frozen
    return self._apply(params["vq"], images, "__call__")

  def counts(self, batch: Batch) -> dict[str, int]:
    """Images of the batch; see `System.counts`."""
    return {"images": len(batch[self._task]["image"])}

  # -------------------------------------------------------------- objective

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, int],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """Reconstruction, quantisation and adversarial loss of a micro-batch.

    Args:
      params: as `init` returns them.
      frozen: "lpips" where the perceptual distance takes part.
      batch: "image" of task "image", f32[B, H, W, 3] in [-1, 1]; with
        alignment, of task "t2i", and its "caption", i32[B, P].
      counts: of the whole batch.
      key: picks the vectors that may replace codes.
      step: number of the training step, from 0.

    Returns:
      The scalar to minimise; metrics: `commitment` is the squared distance
      per element of vectors and codes, `usage` and `perplexity` are of the
      average counts before this step, over all scales and, as `usage_2x2`,
      in each; and for `revise` the uses "count" f32[V], of several scales
      f32[K, V], the "sum" f32[V, e] of each code's vectors, and "candidates"
      f32[V, e].
    """
    images = batch[self._task]["image"]
    w, count = self._weights, counts["images"]
    found = self._apply(params["vq"], images, "quantise")
    z = found.straight_through
    features = self._apply(params["vq"], z, "decode_features")
    output = self._apply(params["vq"], features, "decode_output")
    total, metrics = reconstruction.reconstruction(
      w, frozen, images, output, count
    )
    total += w.codebook * quantisation_loss(w, found, count)
    share = len(images) / count
    used = params["usage"]["count"]
    metrics |= dict(
      commitment=batch_mean(jnp.square(found.z - found.nearest), count),
      usage=share * self._is_used(_over_scales(used)).mean(),
      perplexity=share * vq.perplexity(_over_scales(used)),
    )
    for side, own in zip(self._scales, used if self._scales else (),
                         strict=True):  # fmt: skip
      metrics[f"usage_{side}x{side}"] = share * self._is_used(own).mean()
    if w.entropy:
      table = vq.vectors(self._table(params), self._config.normalised)
      metrics["entropy"] = vq.entropy_loss(found.z, table)
      total += w.entropy * metrics["entropy"]
    if self._alignment is not None:
      term, found_pairs = self._alignment.loss(
        params["alignment"], z, batch[self._task]["caption"]
      )
      total += w.align * term
      metrics |= found_pairs
    if w.adversarial:
      terms = self._adversarial(params, frozen, images, features, output, step)
      total += terms[0]
      metrics |= terms[1]
    return total, metrics, self._seen(found, key)

  def _adversarial(
    self,
    params: Params,
    frozen: Params,
    images: Float[Array, "B H W 3"],
    features: Float[Array, "B i j d"],
    output: Float[Array, "B H W 3"],
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Generator and discriminator loss; see `reconstruction.adversarial`.

    VQGAN and LlamaGen average the reconstruction over pixels, as we do.
    """
    w, last = self._weights, None
    net, features = _sg((params["vq"], features))

    def decoded(kernel: Array) -> Array:
      swapped = convolutions.with_last_kernel(net, kernel)
      return self._apply(swapped, features, "decode_output")

    def nll(x: Array) -> Array:
      return reconstruction.reconstruction(w, frozen, images, x, len(images))[0]

    def logits(discriminator: Params, x: Array) -> Array:
      return self._discriminator.apply({"params": discriminator}, x)

    if w.adaptive:
      kernel = convolutions.last_kernel(net)
      last = reconstruction.LastLayer(kernel, decoded, nll)
    return reconstruction.adversarial(
      w, logits, params["discriminator"], images, output, step, last
    )

  # --------------------------------------------------------------- codebook

  def _seen(self, found: Quantised, key: PRNGKeyArray) -> Params:
    """What `revise` needs of a batch; nothing of it has a gradient."""
    w, k = self._weights, self._config.codes
    codes = found.codes.reshape(-1)
    z = _sg(found.compared).reshape(len(codes), -1)
    seen = {"count": found.uses(self._config)}
    if w.average:
      seen["sum"] = jnp.zeros((k, z.shape[1])).at[codes].add(z)
    if w.data_init or w.revive_every:
      # Each vector once, where there are enough of them.
      order = jax.random.permutation(key, len(codes))
      seen["candidates"] = z[order[jnp.arange(k) % len(codes)]]
    return seen

  def revise(
    self, params: Params, seen: Params, key: PRNGKeyArray, step: Any
  ) -> Params:
    """Counts uses, averages the codebook, replaces codes that hardly occur."""
    w, used = self._weights, params["usage"]["count"]
    used = w.usage_decay * used + (1 - w.usage_decay) * seen["count"]
    params = {**params, "usage": {"count": used}}
    if w.average:
      params = self._averaged(params, seen)
    total = _over_scales(used)
    replaced = jnp.zeros(len(total), bool)
    if w.revive_every:
      due = (step + 1) % w.revive_every == 0
      replaced = due & (total < w.revive_below * total.mean())
    if w.data_init:
      replaced |= step == 0
    if "candidates" not in seen:
      return params
    return self._replaced(params, replaced, seen["candidates"])

  def _averaged(self, params: Params, seen: Params) -> dict[str, Any]:
    """The codebook as the mean of the vectors that were nearest to it."""
    decay, averages = self._weights.average, params["averages"]
    count = decay * averages["count"] + (1 - decay) * seen["count"]
    total = decay * averages["sum"] + (1 - decay) * seen["sum"]
    n, k = count.sum(), len(count)
    smooth = (count + _SMOOTHING) / (n + k * _SMOOTHING) * n
    averages = {"count": count, "sum": total}
    params = {**params, "averages": averages}
    return self._with_table(params, total / smooth[:, None])

  def _replaced(
    self,
    params: Params,
    rows: Array,
    candidates: Float[Array, "K e"],
  ) -> dict[str, Any]:
    """Rows of the codebook replaced, as used as the mean code from now on."""
    table = jnp.where(rows[:, None], candidates, self._table(params))
    params = self._with_table(params, table)
    used = params["usage"]["count"]
    mean = _over_scales(used).mean()
    if self._scales:  # which scale will use them is not known: not the coarse
      last = jnp.arange(len(used)) == len(used) - 1
      mean = mean * last[:, None]
    params["usage"] = {"count": jnp.where(rows, mean, used)}
    if self._weights.average:
      old = params["averages"]
      params["averages"] = {
        "count": jnp.where(rows, 1.0, old["count"]),
        "sum": jnp.where(rows[:, None], candidates, old["sum"]),
      }
    return params

  def _is_used(self, used: Float[Array, "V"]) -> Array:
    """Codes that occurred within about the last 1 / (1 - decay) steps."""
    once = 1 - self._weights.usage_decay
    return used >= once * math.exp(-1)

  def _table(self, params: Params) -> Float[Array, "K e"]:
    return params["vq"]["codebook"]["table"]

  def _with_table(self, params: Params, table: Array) -> dict[str, Any]:
    return {**params, "vq": {**params["vq"], "codebook": {"table": table}}}

  def _apply(self, net: Params, x: Array, method: str) -> Any:
    return self._vq.apply({"params": net}, x, method=method)


def _over_scales(used: Float[Array, "*K V"]) -> Float[Array, "V"]:
  return used.sum(0) if used.ndim > 1 else used


SPEC = SystemSpec(
  model=vq_config.ModelConfig,
  loss=vq_config.LossConfig,
  sampling=vq_config.SamplingConfig,
  ranges=vq_config.RANGES,
  tasks=("image", "t2i"),
  check=vq_config.check,
  migrate=dict,
  summary=vq_config.summary,
  build=VqSystem,
  text_rows=lambda config: config.model.alignment.vocab,
)

MULTISCALE_SPEC = dataclasses.replace(
  SPEC,
  model=vq_config.MultiscaleModelConfig,
  ranges=vq_config.MULTISCALE_RANGES,
  check=vq_config.check_multiscale,
)
