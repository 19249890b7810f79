"""VAR's transformer in PyTorch, written from its description, against ours.

The reference reads a state dict under VAR's names: layout, order of the
modulations, embedding, mask and cache follow the paper's released code.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import test_var_weights as names
from unifluid_jax.core import checkpoint
from unifluid_jax.models.scale_decoder import ScaleDecoder
from unifluid_jax.weights import convert

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Reference:
  """Modules as functions of a state dict."""

  def __init__(self, tensors, config):
    self.t = {k: torch.from_numpy(v) for k, v in tensors.items()}
    self.c = config
    counts = torch.tensor([side**2 for side in config.scales])
    self.level = torch.repeat_interleave(torch.arange(len(counts)), counts)

  def linear(self, x, name):
    return F.linear(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"))

  def embed(self, inputs, labels):
    cond = F.embedding(labels, self.t["class_emb.weight"])
    first = cond[:, None] + self.t["pos_start"]
    rest = self.linear(inputs[:, 1:], "word_embed")
    place = F.embedding(self.level, self.t["lvl_embed.weight"])
    return torch.cat([first, rest], 1) + place + self.t["pos_1LC"], cond

  def six(self, i, cond):
    active = F.silu(cond)
    if self.c.shared_adaln:
      made = self.linear(active, "shared_ada_lin.1")
      made = made.view(-1, 1, 6, self.c.width) + self.t[f"blocks.{i}.ada_gss"]
    else:
      made = self.linear(active, f"blocks.{i}.ada_lin.1")
      made = made.view(-1, 1, 6, self.c.width)
    return made.unbind(2)

  def norm(self, x):
    return F.layer_norm(x, (self.c.width,), eps=1e-6)

  def attention(self, i, x):
    at, (b, n, w) = f"blocks.{i}.attn", x.shape
    zeros = torch.zeros(w)
    bias = torch.cat([self.t[f"{at}.q_bias"], zeros, self.t[f"{at}.v_bias"]])
    qkv = F.linear(x, self.t[f"{at}.mat_qkv.weight"], bias)
    qkv = qkv.view(b, n, 3, self.c.heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    scale = self.t[f"{at}.scale_mul_1H11"].clamp_max(np.log(100)).exp()
    q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
    mask = self.level[:, None] >= self.level[None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return self.linear(out.transpose(1, 2).reshape(b, n, w), f"{at}.proj")

  def logits(self, inputs, labels):
    x, cond = self.embed(inputs, labels)
    for i in range(self.c.depth):
      gate1, gate2, scale1, scale2, shift1, shift2 = self.six(i, cond)
      x = x + gate1 * self.attention(i, self.norm(x) * (scale1 + 1) + shift1)
      y = self.norm(x) * (scale2 + 1) + shift2
      y = F.gelu(self.linear(y, f"blocks.{i}.ffn.fc1"), approximate="tanh")
      x = x + gate2 * self.linear(y, f"blocks.{i}.ffn.fc2")
    two = self.linear(F.silu(cond), "head_nm.ada_lin.1")
    scale, shift = two.view(-1, 1, 2, self.c.width).unbind(2)
    return self.linear(self.norm(x) * (scale + 1) + shift, "head")


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_imported_weights_give_the_same_logits(tmp_path, shared):
  config = dataclasses.replace(names.TINY, shared_adaln=shared)
  tensors = {k: 0.4 * x for k, x in names.random(config).items()}
  # One head above the largest temperature.
  tensors["blocks.0.attn.scale_mul_1H11"][0, 1] = 6.0
  path = names.write(
    tmp_path / "x.safetensors", tensors | names.buffers(config)
  )
  to = str(tmp_path / "ours")
  convert.to_checkpoint(f"var:{path}", to, lambda _: None)
  module, rng = ScaleDecoder(config), np.random.default_rng(1)
  inputs = rng.normal(size=(3, config.tokens, config.code_channels))
  inputs, labels = inputs.astype(np.float32), np.array([0, 5, 6])
  like = jax.eval_shape(
    module.init, jax.random.key(0), jnp.asarray(inputs[:, :1]),
    jnp.zeros((3, config.width)),
  )  # fmt: skip
  params = checkpoint.restore_part(
    to, checkpoint.latest_step(to), "params", {"decoder": like["params"]}
  )

  @jax.jit
  def ours(params):
    net = {"params": params["decoder"]}
    cond = module.apply(net, jnp.asarray(labels), method="cond")
    return module.apply(net, jnp.asarray(inputs), cond)

  with torch.no_grad():
    want = Reference(tensors, config).logits(
      torch.from_numpy(inputs), torch.from_numpy(labels)
    )
  np.testing.assert_allclose(ours(params), want.numpy(), rtol=1e-4, atol=1e-4)
