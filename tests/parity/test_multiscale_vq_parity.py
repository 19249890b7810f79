"""The multi-scale VQ autoencoder against PyTorch, from a file of VAR's form.

The reference is written from the paper's algorithms 1 and 2 (arXiv 2404.02905)
and the published formulas; its interpolations are PyTorch's own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from tests.parity.test_vq_parity import state_dict  # noqa: E402
from tests.parity.vq_networks import Network  # noqa: E402
from tests.weights import helpers  # noqa: E402
from tests.weights.test_multiscale_vq_weights import theirs  # noqa: E402
from unifluid_jax.core import presets  # noqa: E402
from unifluid_jax.models import multiscale_vq  # noqa: E402
from unifluid_jax.systems import vq_training  # noqa: E402
from unifluid_jax.weights import multiscale_vq as weights  # noqa: E402
from unifluid_jax.weights import readers  # noqa: E402
from unifluid_jax.weights.rows import nested  # noqa: E402

SCALES, SIDE = (1, 2, 3, 4, 6, 8), 8
CONFIG = presets.MultiscaleVqConfig(
  32, (1, 2, 2), 2, 8, encoder_attention=True, decoder_attention=True,
  codes=64, code_channels=8, scales=SCALES,
)  # fmt: skip
PHI_OF = (0, 0, 1, 2, 3, 3)


class Tokenizer(Network):
  """VQGAN's network with queries, keys and values in one tensor."""

  def __init__(self, state):
    """Splits them, and keeps the rest."""
    separate = {}
    for name, x in state.items():
      if ".qkv." in name:
        for part, third in zip("qkv", x.chunk(3), strict=True):
          separate[name.replace(".qkv.", f".{part}.")] = third
      else:
        separate[name] = x
    super().__init__(separate, "taming")
    self.table = state["quantize.embedding.weight"]

  def latent(self, images):
    """Images [B, 3, H, W] → f [B, e, g, g]."""
    return self._conv("quant_conv", self.encode(images))

  def phi(self, k, h):
    """A scale's vectors, interpolated and half of them convolved."""
    if h.shape[-1] != SIDE:
      h = F.interpolate(h, size=(SIDE, SIDE), mode="bicubic")
    name = f"quantize.quant_resi.qresi_ls.{PHI_OF[k]}"
    return 0.5 * h + 0.5 * self._conv(name, h)

  def vectors(self, codes, side):
    """Ids [B, side^2] → [B, e, side, side]."""
    h = F.embedding(codes, self.table).transpose(1, 2)
    return h.reshape(len(codes), -1, side, side)

  def quantise(self, f):
    """Ids of each scale, and the sum after each."""
    residual, total = f.detach().clone(), torch.zeros_like(f)
    codes, sums = [], []
    for k, side in enumerate(SCALES):
      z = residual
      if side != SIDE:
        z = F.interpolate(residual, size=(side, side), mode="area")
      z = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
      found = torch.cdist(
        z, self.table.detach(), compute_mode="donot_use_mm_for_euclid_dist"
      ).argmin(-1)
      found = found.reshape(len(f), -1)
      h = self.phi(k, self.vectors(found, side))
      total, residual = total + h, residual - h.detach()
      codes.append(found)
      sums.append(total)
    return codes, sums

  def inputs(self, codes):
    """What scales after the first are fed."""
    total, rows = torch.zeros(len(codes[0]), 8, SIDE, SIDE), []
    for k, side in enumerate(SCALES[:-1]):
      total = total + self.phi(k, self.vectors(codes[k], side))
      n = SCALES[k + 1]
      rows.append(F.interpolate(total, size=(n, n), mode="area").flatten(2))
    return torch.cat(rows, dim=2).transpose(1, 2)

  def image(self, total):
    """The sum of all scales → images [B, 3, H, W]."""
    x = self._conv("decoder.conv_in", self._conv("post_quant_conv", total))
    x = self._mid("decoder", x)
    for i in (2, 1, 0):
      x = self._level(f"decoder.up.{i}", x)
      if i:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self._conv(f"decoder.up.{i}.upsample.conv", x)
    return self._end("decoder", x)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """The reference, and our network with the weights of its file."""
  state = state_dict(theirs(CONFIG))
  state["quantize.embedding.weight"] *= 0.5
  path = str(tmp_path_factory.mktemp("var") / "vae_ch32v64z8.pth")
  statistic = {"quantize.ema_vocab_hit_SV": torch.zeros(6, 64)}
  torch.save(state | statistic, path)
  source = weights.Separate(readers.open_source(path))
  recipe = weights.recipe(source)
  params = jax.tree.map(
    jnp.asarray, nested(helpers.in_memory(source, recipe))["vq"]
  )
  net = multiscale_vq.MultiscaleVqVae(CONFIG)

  def run(method, x, p=params):
    with jax.default_matmul_precision("highest"):
      return net.apply({"params": p}, jnp.asarray(x), method=method)

  return Tokenizer(state), run, params


def channels_last(x):
  return x.detach().permute(0, 2, 3, 1).numpy()


def close(ours, theirs, tolerance):
  assert helpers.absolute(np.asarray(ours), theirs) < tolerance < theirs.std()


def test_kernels_are_those_of_pytorch():
  for outputs, inputs in ((16, 1), (16, 5), (16, 13), (8, 6), (32, 24)):
    eye = torch.eye(inputs).reshape(inputs, 1, inputs, 1)
    eye = eye.expand(-1, -1, -1, inputs)
    want = F.interpolate(eye, size=(outputs, outputs), mode="bicubic")
    ours = multiscale_vq.bicubic_matrix(outputs, inputs)
    np.testing.assert_allclose(ours.T, want[:, 0, :, 0], atol=1e-6)
    whole = torch.eye(outputs).reshape(outputs, 1, outputs, 1)
    whole = whole.expand(-1, -1, -1, outputs)
    want = F.interpolate(whole, size=(inputs, inputs), mode="area")
    ours = multiscale_vq.area_matrix(inputs, outputs)
    np.testing.assert_allclose(ours.T, want[:, 0, :, 0], atol=1e-6)


def test_codes_sums_inputs_and_images(both):
  network, run, _ = both
  images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
  images = images * 2 - 1
  with torch.no_grad():
    f = network.latent(images)
    codes, sums = network.quantise(f)
    want = network.image(sums[-1])
    fed = network.inputs(codes)
  found = run("quantise", images.permute(0, 2, 3, 1).numpy())
  close(found.z, channels_last(f), 1e-4)
  every = np.concatenate([c.numpy() for c in codes], axis=1)
  np.testing.assert_array_equal(found.codes, every)
  assert len(np.unique(every)) > 16
  for k, total in enumerate(sums):
    close(found.sums[:, k], channels_last(total), 1e-5)
  every = every.astype(np.int32)
  close(run("inputs", every)[:, 1:], fed.numpy(), 1e-5)
  close(run("decode", every), channels_last(want), 1e-4)


def test_the_loss_and_its_gradients(both):
  """(1/K) sum of beta |sg(f^) - f|^2 + |f^ - sg(f)|^2, and straight through."""
  network, run, params = both
  generator = torch.Generator().manual_seed(2)
  f = torch.randn(2, 8, SIDE, SIDE, generator=generator).requires_grad_()
  reads = torch.randn(f.shape, generator=generator)  # the decoder's
  names = ["quantize.embedding.weight"] + [
    f"quantize.quant_resi.qresi_ls.{i}.{leaf}"
    for i in range(4)
    for leaf in ("weight", "bias")
  ]
  for name in names:
    network.state[name].requires_grad_()
  _, sums = network.quantise(f)
  loss = sum(
    0.25 * F.mse_loss(s.detach(), f) + F.mse_loss(s, f.detach()) for s in sums
  ) / len(sums)  # fmt: skip
  passed = f + (sums[-1] - f).detach()
  (loss + (reads * passed).sum()).backward()

  class Weights:
    commitment, order, average = 0.25, "standard", 0.0

  def ours(x, p):
    found = run("quantise_latents", x, p)
    value = vq_training.quantisation_loss(Weights, found, len(x))
    read = (channels_last(reads) * found.straight_through).sum()
    return value + read, value

  gradient = jax.value_and_grad(ours, (0, 1), has_aux=True)
  (_, value), (df, dp) = gradient(jnp.asarray(channels_last(f)), params)
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  np.testing.assert_allclose(df, channels_last(f.grad), rtol=1e-4, atol=1e-6)
  grads = [network.state[name].grad for name in names]
  assert min(g.abs().max() for g in grads) > 1e-4
  table, *rest = (g.numpy() for g in grads)
  np.testing.assert_allclose(
    dp["codebook"]["table"], table, rtol=1e-4, atol=1e-6
  )
  for i in range(4):
    kernel = rest[2 * i].transpose(2, 3, 1, 0)
    got = dp["phi"]["kernels"][i], dp["phi"]["biases"][i]
    np.testing.assert_allclose(got[0], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[1], rest[2 * i + 1], rtol=1e-4, atol=1e-6)
