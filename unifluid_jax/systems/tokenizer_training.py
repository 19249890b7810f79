"""Training of the image tokenizer: a KL-VAE, with an optional discriminator.

Source: Latent Diffusion Models (arXiv 2112.10752), loss of kl-f8
(ldm/modules/losses/contperceptual.py).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unifluid_jax.codecs.kl_vae import check_shape
from unifluid_jax.core import presets, ranges
from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import need
from unifluid_jax.core.ranges import AMOUNT, COUNT, Row, below
from unifluid_jax.core.types import Batch, Metrics, Params, Part, SystemSpec
from unifluid_jax.data.fields import Pixels
from unifluid_jax.models import convolutions, kl_vae, lpips, patch_gan

_MAX_ADAPTIVE = 1e4
_ADAPTIVE_EPS = 1e-4

_sg = jax.lax.stop_gradient


def psnr(
  x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]
) -> Float[Array, "B"]:
  """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
  mse = jnp.square(x - y).mean((1, 2, 3))
  return 10 * jnp.log10(4 / jnp.maximum(mse, 1e-10))


def hinge(
  real: Float[Array, "B i j"], fake: Float[Array, "B i j"]
) -> Float[Array, ""]:
  """The discriminator's hinge loss of its logits."""
  relu = jax.nn.relu
  return 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean())


def adaptive_weight(
  nll: Callable[[Any], Array],
  generator: Callable[[Any], Array],
  kernel: Float[Array, "3 3 d 3"],
) -> Float[Array, ""]:
  """Balance of the adversarial term against the reconstruction.

  Args:
    nll: reconstruction loss of an image, summed over its pixels and channels
      and averaged over the batch, as a function of the decoder's last kernel.
    generator: the generator's adversarial loss, likewise.
    kernel: where both are differentiated.

  Returns:
    clip(|grad nll| / (|grad generator| + 1e-4), 0, 1e4) (LDM).
  """
  nll_norm = jnp.linalg.norm(jax.grad(nll)(kernel))
  norm = jnp.linalg.norm(jax.grad(generator)(kernel))
  return jnp.clip(nll_norm / (norm + _ADAPTIVE_EPS), 0, _MAX_ADAPTIVE)


def _mean(x: Float[Array, "B *rest"], count: int) -> Float[Array, ""]:
  """What these rows add to the mean over a batch of `count` rows."""
  return x.sum() / float(x[0].size * count)  # an int32 would overflow


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
    path = self._weights.perceptual_weights
    distance = Part(lpips.weight_shapes, lambda: lpips.load_lpips(path))
    self.frozen = {"lpips": distance} if self._weights.perceptual else {}

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
    nll, metrics = self._reconstruction(frozen, images, output, count)
    kl = _mean(kl_vae.kl(moments), count) / z[0].size
    total = nll + w.kl * kl
    square = _mean(jnp.square(z), count)
    metrics |= dict(kl=kl, latent_mean=_mean(z, count), latent_square=square)
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

  def _reconstruction(
    self,
    frozen: Params,
    images: Float[Array, "B H W 3"],
    output: Float[Array, "B H W 3"],
    count: int,
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted pixel and perceptual distance, and its terms.

    Means over a whole batch of `count` images.
    """
    w = self._weights
    l1 = _mean(jnp.abs(images - output), count)
    l2 = _mean(jnp.square(images - output), count)
    total = w.l1 * l1 + w.l2 * l2
    metrics = dict(l1=l1, l2=l2, psnr=_mean(psnr(images, output), count))
    if w.perceptual:
      distance = lpips.distance(frozen["lpips"], images, output)
      perceptual = _mean(distance, count)
      total += w.perceptual * perceptual
      metrics["perceptual"] = perceptual
    return total, metrics

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
    that one divided by their number n, hence the weight's 1 / n; the ratio of
    norms is taken on LDM's scale, for which its bounds were chosen.
    """
    w, n = self._weights, images[0].size
    discriminator = params["discriminator"]
    vae, features = _sg((params["vae"], features))

    def logits(discriminator_params: Params, x: Array) -> Array:
      return self._discriminator.apply({"params": discriminator_params}, x)

    def decoded(kernel: Array) -> Array:
      swapped = convolutions.with_last_kernel(vae, kernel)
      return self._apply(swapped, features, "decode_output")

    def generator(x: Array) -> Array:
      return -logits(_sg(discriminator), x).mean()

    weight = _sg(
      adaptive_weight(
        lambda k: (
          n * self._reconstruction(frozen, images, decoded(k), len(images))[0]
        ),
        lambda k: generator(decoded(k)),
        convolutions.last_kernel(vae),
      )
    )
    fool = generator(output)
    real = logits(discriminator, images)
    fake = logits(discriminator, _sg(output))
    judge = hinge(real, fake)
    started = jnp.asarray(step >= w.adversarial_start, jnp.float32)
    total = started * (w.adversarial * weight / n * fool + judge)
    return total, dict(
      generator=fool,
      discriminator=judge,
      logits_real=real.mean(),
      logits_fake=fake.mean(),
      adaptive_weight=weight,
    )


def _check(config: Config, mesh: Any) -> None:
  """Refuses combinations that cannot work; see `types.SystemSpec`."""
  if mesh is not None:
    return
  m, loss = config.model, config.loss
  check_shape(m.vae, m.image_size)
  need(
    not loss.perceptual or bool(loss.perceptual_weights),
    "loss.perceptual > 0 needs loss.perceptual_weights: the path of an npz "
    "with LPIPS VGG weights; or set loss.perceptual=0",
  )
  need(
    not loss.adversarial or config.accumulate == 1,
    f"loss.adversarial={loss.adversarial} weighs gradients of a whole batch, "
    f"accumulate={config.accumulate} cuts it: set accumulate=1 or "
    "loss.adversarial=0",
  )


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
