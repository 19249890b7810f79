"""Training of the image tokenizer: a KL-VAE, with an optional discriminator.

Source: Latent Diffusion Models (arXiv 2112.10752), loss of kl-f8
(ldm/modules/losses/contperceptual.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.codecs.kl_vae import check_shape
from unifluid_jax.core import presets, ranges
from unifluid_jax.core.config import Config
from unifluid_jax.core.ranges import AMOUNT, COUNT, Row, below
from unifluid_jax.core.types import Batch, Metrics, Params, SystemSpec
from unifluid_jax.data.fields import Pixels
from unifluid_jax.models import convolutions, kl_vae, patch_gan
from unifluid_jax.systems.common import reconstruction
from unifluid_jax.systems.common.reconstruction import batch_mean

_sg = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The tokenizer."""

  vae: presets.VaeConfig
  image_size: int
  dtype: Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The tokenizer's objective."""

  l1: float
  l2: float
  kl: float
  perceptual: float
  perceptual_weights: str  # npz of LPIPS VGG; needed when perceptual > 0
  adversarial: float
  adversarial_start: int
  discriminator_width: int
  discriminator_layers: int


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Nothing is sampled."""


class VaeSystem:
  """The tokenizer's networks and objective; a `types.System`.

  All losses are means over the pixels or latent elements of the whole batch
  and add up over its micro-batches. The adversarial terms do not (a ratio of
  gradient norms of the batch weighs them) and need it in one piece.

  Differs from LDM: generator and discriminator step together, on one scalar
  whose terms are kept apart by stopped gradients; the constant logvar of the
  reconstruction (0, never trained there) is left out.
  """

  parts = {"vae": convolutions.ROWS, "discriminator": patch_gan.ROWS}
  held = ()

  def __init__(self, config: Config):
    """Builds the modules."""
    model, self._weights = config.model, config.loss
    self._image_size = model.image_size
    dtype = jnp.dtype(model.dtype)
    self._vae = kl_vae.KlVae(model.vae, dtype)
    self._discriminator = patch_gan.PatchGan(
      self._weights.discriminator_width,
      self._weights.discriminator_layers,
      dtype,
    )

    image = Pixels("drawn", model.image_size, "crop", target=True)
    self.inputs = {"image": {"image": image}}
    self.codec = None
    self.frozen = reconstruction.perceptual_part(self._weights)

  def cost(self) -> None:
    """Not counted."""

  def init(self, key: PRNGKeyArray) -> Params:
    """Parameters of "vae" and, with an adversarial loss, "discriminator"."""
    vae_key, discriminator_key = jax.random.split(key)
    images = jnp.zeros((1, self._image_size, self._image_size, 3))
    params = {"vae": self._vae.init(vae_key, images)["params"]}
    if self._weights.adversarial:
      params["discriminator"] = self._discriminator.init(
        discriminator_key, images
      )["params"]
    return params

  def encode_moments(
    self, params: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B h w m"]:
    """Mean and log-variance of the raw latents; see `KlVae.encode`."""
    return self._apply(params["vae"], images, "encode")

  def reconstruct(
    self, params: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images decoded from their posterior's mode."""
    z = kl_vae.sample(self.encode_moments(params, images), None)
    return self._apply(params["vae"], z, "decode")

  def counts(self, batch: Batch) -> dict[str, int]:
    """Images of the batch; see `System.counts`."""
    return {"images": len(batch["image"]["image"])}

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, int],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """Reconstruction, KL and adversarial loss of a micro-batch.

    Args:
      params: as `init` returns them.
      frozen: "lpips" where the perceptual distance takes part.
      batch: "image" of task "image", f32[B, H, W, 3] in [-1, 1].
      counts: of the whole batch.
      key: draws the latents.
      step: number of the training step, from 0.

    Returns:
      The scalar to minimise; metrics: `kl` is per latent element, as are
      `latent_mean` and `latent_square`, the latents' first two moments; and
      nothing for `revise`.
    """
    images = batch["image"]["image"]
    w, count = self._weights, counts["images"]
    moments = self.encode_moments(params, images)
    z = kl_vae.sample(moments, key)
    features = self._apply(params["vae"], z, "decode_features")
    output = self._apply(params["vae"], features, "decode_output")
    nll, metrics = reconstruction.reconstruction(
      w, frozen, images, output, count
    )
    kl = batch_mean(kl_vae.kl(moments), count) / z[0].size
    total = nll + w.kl * kl
    metrics |= dict(
      kl=kl,
      latent_mean=batch_mean(z, count),
      latent_square=batch_mean(jnp.square(z), count),
    )
    if w.adversarial:
      terms = self._adversarial(params, frozen, images, features, output, step)
      total += terms[0]
      metrics |= terms[1]
    return total, metrics, {}

  def revise(
    self, params: Params, seen: Any, key: PRNGKeyArray, step: Any
  ) -> None:
    """Gradients alone change parameters."""

  def _apply(self, vae_params: Params, x: Array, method: str) -> Array:
    return self._vae.apply({"params": vae_params}, x, method=method)

  def _adversarial(
    self,
    params: Params,
    frozen: Params,
    images: Float[Array, "B H W 3"],
    features: Float[Array, "B H W d"],
    output: Float[Array, "B H W 3"],
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Generator and discriminator loss; neither trains the other's network.

    LDM sums the reconstruction over pixels and channels. This objective is
    that one divided by their number n.
    """
    w, n = self._weights, images[0].size
    vae, features = _sg((params["vae"], features))

    def decoded(kernel: Array) -> Array:
      swapped = convolutions.with_last_kernel(vae, kernel)
      return self._apply(swapped, features, "decode_output")

    def nll(x: Array) -> Array:
      return reconstruction.reconstruction(w, frozen, images, x, len(images))[0]

    last = reconstruction.LastLayer(convolutions.last_kernel(vae), decoded, nll)
    return reconstruction.adversarial(
      w, self._logits, params["discriminator"], images, output, step, last, n
    )

  def _logits(self, params: Params, x: Array) -> Array:
    return self._discriminator.apply({"params": params}, x)


def _check(config: Config, mesh: Any) -> None:
  """Refuses combinations that cannot work; see `types.SystemSpec`."""
  if mesh is not None:
    return
  check_shape(config.model.vae, config.model.image_size)
  reconstruction.check(config)


def _migrate(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree of a version whose autoencoders carried UniFluid's settings."""
  tree = dict(tree)
  if "vae_loss" not in tree:
    return tree
  kept = ("vae", "image_size", "dtype")
  tree.pop("order", None)
  return tree | {
    "model": {k: tree["model"][k] for k in kept},
    "loss": tree.pop("vae_loss"),
    "sampling": {},
    "batch": {"image": sum(tree["batch"].values())},
  }


def _summary(config: Config) -> dict[str, str]:
  return {"image": f"{config.model.image_size} pixels"}


SPEC = SystemSpec(
  model=ModelConfig,
  loss=LossConfig,
  sampling=SamplingConfig,
  ranges=(
    *ranges.VAE,
    Row("model.image_size", COUNT),
    Row(below("loss", "l1 l2 kl perceptual adversarial adversarial_start"),
        AMOUNT),
    Row(below("loss", "discriminator_width discriminator_layers"), COUNT),
  ),
  tasks=("image",),
  check=_check,
  migrate=_migrate,
  summary=_summary,
  build=VaeSystem,
)  # fmt: skip
