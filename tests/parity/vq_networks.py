"""VQ autoencoders in PyTorch, as functions of a state dict.

After the papers and the published formulas (VQGAN, arXiv 2012.09841; LlamaGen,
arXiv 2406.06525): the networks exist where the state dict has their names.
"""

import torch
from torch.nn import functional as F


class Network:
  """A state dict under VQGAN's ("taming") or LlamaGen's names."""

  def __init__(self, state, names):
    """Keeps both."""
    self.state, self.taming = state, names == "taming"
    self.block = "block" if self.taming else "res"
    self.middle = ("block_1", "attn_1", "block_2") if self.taming else "012"
    level = "encoder.down" if self.taming else "encoder.conv_blocks"
    places = {n.split(".")[2] for n in state if n.startswith(f"{level}.")}
    self.levels = len(places)

  def codes(self, images):
    """Images [B, 3, H, W] in [-1, 1] → ids [B, h, w]."""
    z = self._conv("quant_conv", self.encode(images)).permute(0, 2, 3, 1)
    table = self.state["quantize.embedding.weight"]
    if not self.taming:
      z, table = F.normalize(z, dim=-1), F.normalize(table, dim=-1)
    squares = z.square().sum(-1, keepdim=True) + table.square().sum(-1)
    return (squares - 2 * z @ table.T).argmin(-1)

  def encode(self, images):
    """Images → what the quantiser's convolution reads."""
    x = self._conv("encoder.conv_in", images)
    for i in range(self.levels):
      at = f"encoder.{'down' if self.taming else 'conv_blocks'}.{i}"
      x = self._level(at, x)
      if i < self.levels - 1:
        x = F.pad(x, (0, 1, 0, 1))  # right and bottom
        x = self._conv(f"{at}.downsample.conv", x, stride=2, padding=0)
    return self._end("encoder", self._mid("encoder", x))

  def decode(self, codes):
    """Ids → images, not clipped."""
    table = self.state["quantize.embedding.weight"]
    if not self.taming:
      table = F.normalize(table, dim=-1)
    x = table[codes].permute(0, 3, 1, 2)
    x = self._conv("decoder.conv_in", self._conv("post_quant_conv", x))
    x = self._mid("decoder", x)
    for step in range(self.levels):
      i = self.levels - 1 - step if self.taming else step
      at = f"decoder.{'up' if self.taming else 'conv_blocks'}.{i}"
      x = self._level(at, x)
      if step < self.levels - 1:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self._conv(f"{at}.upsample.conv", x)
    return self._end("decoder", x)

  def _conv(self, name, x, stride=1, padding=None):
    kernel = self.state[f"{name}.weight"]
    if padding is None:
      padding = kernel.shape[-1] // 2
    return F.conv2d(x, kernel, self.state[f"{name}.bias"], stride, padding)

  def _norm(self, name, x):
    scale, bias = (self.state[f"{name}.{leaf}"] for leaf in ("weight", "bias"))
    return F.group_norm(x, 32, scale, bias, eps=1e-6)

  def _resnet(self, name, x):
    h = self._conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", x)))
    h = self._conv(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", h)))
    if f"{name}.nin_shortcut.weight" in self.state:
      x = self._conv(f"{name}.nin_shortcut", x)
    return x + h

  def _attention(self, name, x):
    h = self._norm(f"{name}.norm", x)
    q, k, v = (self._conv(f"{name}.{p}", h).flatten(2) for p in "qkv")
    scores = torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5
    h = torch.einsum("bij,bcj->bci", scores.softmax(-1), v)
    return x + self._conv(f"{name}.proj_out", h.reshape(x.shape))

  def _level(self, at, x):
    j = 0
    while f"{at}.{self.block}.{j}.conv1.weight" in self.state:
      x = self._resnet(f"{at}.{self.block}.{j}", x)
      if f"{at}.attn.{j}.q.weight" in self.state:
        x = self._attention(f"{at}.attn.{j}", x)
      j += 1
    return x

  def _mid(self, side, x):
    first, attention, last = (f"{side}.mid.{n}" for n in self.middle)
    x = self._attention(attention, self._resnet(first, x))
    return self._resnet(last, x)

  def _end(self, side, x):
    x = F.silu(self._norm(f"{side}.norm_out", x))
    return self._conv(f"{side}.conv_out", x)
