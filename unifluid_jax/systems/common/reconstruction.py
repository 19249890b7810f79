"""What the training of image tokenizers shares: reconstruction, and a GAN.

Source: Latent Diffusion Models (arXiv 2112.10752), loss of kl-f8
(ldm/modules/losses/contperceptual.py), which is VQGAN's with other means.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unifluid_jax.core.config import Config
from unifluid_jax.core.freeze import need
from unifluid_jax.core.types import Params, Part
from unifluid_jax.models import lpips

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
  kernel: Float[Array, "3 3 d e"],
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


def batch_mean(x: Float[Array, "B *rest"], count: int) -> Float[Array, ""]:
  """What these rows add to the mean over a batch of `count` rows."""
  return x.sum() / float(x[0].size * count)  # an int32 would overflow


def perceptual_part(weights: Any) -> Mapping[str, Part]:
  """LPIPS as a frozen part, where `weights` give it a share."""
  path = weights.perceptual_weights
  distance = Part(lpips.weight_shapes, lambda: lpips.load_lpips(path))
  return {"lpips": distance} if weights.perceptual else {}


def reconstruction(
  weights: Any,
  frozen: Params,
  images: Float[Array, "B H W 3"],
  output: Float[Array, "B H W 3"],
  count: int,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """Weighted pixel and perceptual distance, and its terms.

  Args:
    weights: `l1`, `l2` and `perceptual` of a system's LossConfig.
    frozen: "lpips" where the perceptual distance takes part.
    images: in [-1, 1].
    output: of the decoder.
    count: images of the whole batch; all results are means over it.
  """
  w = weights
  l1 = batch_mean(jnp.abs(images - output), count)
  l2 = batch_mean(jnp.square(images - output), count)
  total = w.l1 * l1 + w.l2 * l2
  metrics = dict(l1=l1, l2=l2, psnr=batch_mean(psnr(images, output), count))
  if w.perceptual:
    distance = lpips.distance(frozen["lpips"], images, output)
    perceptual = batch_mean(distance, count)
    total += w.perceptual * perceptual
    metrics["perceptual"] = perceptual
  return total, metrics


class LastLayer(NamedTuple):
  """Where the adaptive weight is measured."""

  kernel: Any  # f32[3, 3, d, e] of the decoder's last convolution
  decoded: Callable[[Any], Array]  # kernel → images
  nll: Callable[[Array], Array]  # images → reconstruction loss, a mean


def adversarial(
  weights: Any,
  logits: Callable[[Params, Array], Array],
  discriminator: Params,
  images: Float[Array, "B H W 3"],
  output: Float[Array, "B H W 3"],
  step: int | Int[Array, ""],
  last: LastLayer | None,
  n: int = 1,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """Generator and discriminator loss; neither trains the other's network.

  Args:
    weights: `adversarial` and `adversarial_start` of a system's LossConfig.
    logits: of the discriminator's parameters and images.
    discriminator: its parameters.
    images: real ones.
    output: the decoder's.
    step: of training; before the start both losses are 0.
    last: None leaves the weight constant.
    n: numbers that the published reconstruction sums and ours averages. The
      ratio of norms is taken on the published scale, for which its bounds
      were chosen, and divided by n again.
  """

  def generator(x: Array) -> Array:
    return -logits(_sg(discriminator), x).mean()

  weight = jnp.float32(1)
  if last is not None:
    weight = _sg(
      adaptive_weight(
        lambda k: n * last.nll(last.decoded(k)),
        lambda k: generator(last.decoded(k)),
        last.kernel,
      )
    )
  fool = generator(output)
  real = logits(discriminator, images)
  fake = logits(discriminator, _sg(output))
  judge = hinge(real, fake)
  started = jnp.asarray(step >= weights.adversarial_start, jnp.float32)
  total = started * (weights.adversarial * weight / n * fool + judge)
  return total, dict(
    generator=fool,
    discriminator=judge,
    logits_real=real.mean(),
    logits_fake=fake.mean(),
    adaptive_weight=weight,
  )


def check(config: Config) -> None:
  """Refuses objectives that cannot work.

  Raises:
    ConfigError: names the key and the fix.
  """
  loss = config.loss
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
