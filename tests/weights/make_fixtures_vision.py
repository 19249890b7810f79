"""Makes the fixtures of the vision networks with PyTorch, once.

    python tests/weights/make_fixtures_vision.py

needs torch, transformers and diffusers (CPU). `tiny_vae/` and `tiny_clip/`
are written by diffusers and transformers, `*.ckpt` and `*.pth` by
torch.save, and `vision.npz` holds what the networks compute. Inception is
too large to be stored: its weights are `random_weights`, by name.
"""

import zlib
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).with_name("fixtures")


def random_weights(name, shape):
  """The same numbers everywhere for a tensor's name and shape."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  x = rng.random(shape, np.float32) - np.float32(0.5)
  scale = name.endswith("weight") and len(shape) == 1
  if scale or name.endswith("running_var"):
    return 1 + x
  if len(shape) > 1:
    return x * np.float32((18 / np.prod(shape[1:])) ** 0.5)
  return np.asarray(x / 5)


def inception_image():
  """One image in [-1, 1] of 13 x 13 coloured squares, f32[1, 299, 299, 3]."""
  squares = 2 * np.random.default_rng(7).random((1, 13, 13, 3), np.float32) - 1
  return squares.repeat(23, axis=1).repeat(23, axis=2)


def inception_network():
  """The network of pytorch-fid, written out in PyTorch; random weights."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  class Unit(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
      super().__init__()
      self.conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding, bias=False
      )
      self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
      return F.relu(self.bn(self.conv(x)))

  def mean(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

  class A(nn.Module):
    def __init__(self, c, pool):
      super().__init__()
      self.branch1x1 = Unit(c, 64, 1)
      self.branch5x5_1 = Unit(c, 48, 1)
      self.branch5x5_2 = Unit(48, 64, 5, padding=2)
      self.branch3x3dbl_1 = Unit(c, 64, 1)
      self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
      self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
      self.branch_pool = Unit(c, pool, 1)

    def forward(self, x):
      b = self.branch5x5_2(self.branch5x5_1(x))
      c = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
      parts = [self.branch1x1(x), b, self.branch3x3dbl_3(c)]
      return torch.cat([*parts, self.branch_pool(mean(x))], 1)

  class B(nn.Module):
    def __init__(self):
      super().__init__()
      self.branch3x3 = Unit(288, 384, 3, 2)
      self.branch3x3dbl_1 = Unit(288, 64, 1)
      self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
      self.branch3x3dbl_3 = Unit(96, 96, 3, 2)

    def forward(self, x):
      c = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
      return torch.cat(
        [self.branch3x3(x), self.branch3x3dbl_3(c), F.max_pool2d(x, 3, 2)], 1
      )

  class C(nn.Module):
    def __init__(self, c):
      super().__init__()
      self.branch1x1 = Unit(768, 192, 1)
      self.branch7x7_1 = Unit(768, c, 1)
      self.branch7x7_2 = Unit(c, c, (1, 7), padding=(0, 3))
      self.branch7x7_3 = Unit(c, 192, (7, 1), padding=(3, 0))
      self.branch7x7dbl_1 = Unit(768, c, 1)
      self.branch7x7dbl_2 = Unit(c, c, (7, 1), padding=(3, 0))
      self.branch7x7dbl_3 = Unit(c, c, (1, 7), padding=(0, 3))
      self.branch7x7dbl_4 = Unit(c, c, (7, 1), padding=(3, 0))
      self.branch7x7dbl_5 = Unit(c, 192, (1, 7), padding=(0, 3))
      self.branch_pool = Unit(768, 192, 1)

    def forward(self, x):
      b = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
      c = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
      c = self.branch7x7dbl_5(self.branch7x7dbl_4(c))
      return torch.cat([self.branch1x1(x), b, c, self.branch_pool(mean(x))], 1)

  class D(nn.Module):
    def __init__(self):
      super().__init__()
      self.branch3x3_1 = Unit(768, 192, 1)
      self.branch3x3_2 = Unit(192, 320, 3, 2)
      self.branch7x7x3_1 = Unit(768, 192, 1)
      self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
      self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
      self.branch7x7x3_4 = Unit(192, 192, 3, 2)

    def forward(self, x):
      c = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
      b = self.branch3x3_2(self.branch3x3_1(x))
      return torch.cat([b, self.branch7x7x3_4(c), F.max_pool2d(x, 3, 2)], 1)

  class E(nn.Module):
    def __init__(self, c, pool):
      super().__init__()
      self.pool = pool
      self.branch1x1 = Unit(c, 320, 1)
      self.branch3x3_1 = Unit(c, 384, 1)
      self.branch3x3_2a = Unit(384, 384, (1, 3), padding=(0, 1))
      self.branch3x3_2b = Unit(384, 384, (3, 1), padding=(1, 0))
      self.branch3x3dbl_1 = Unit(c, 448, 1)
      self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
      self.branch3x3dbl_3a = Unit(384, 384, (1, 3), padding=(0, 1))
      self.branch3x3dbl_3b = Unit(384, 384, (3, 1), padding=(1, 0))
      self.branch_pool = Unit(c, 192, 1)

    def forward(self, x):
      b = self.branch3x3_1(x)
      c = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
      parts = [self.branch1x1(x), self.branch3x3_2a(b), self.branch3x3_2b(b)]
      parts += [self.branch3x3dbl_3a(c), self.branch3x3dbl_3b(c)]
      return torch.cat([*parts, self.branch_pool(self.pool(x))], 1)

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
      self.Conv2d_2a_3x3 = Unit(32, 32, 3)
      self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
      self.Conv2d_3b_1x1 = Unit(64, 80, 1)
      self.Conv2d_4a_3x3 = Unit(80, 192, 3)
      self.Mixed_5b, self.Mixed_5c = A(192, 32), A(256, 64)
      self.Mixed_5d, self.Mixed_6a = A(288, 64), B()
      self.Mixed_6b, self.Mixed_6c = C(128), C(160)
      self.Mixed_6d, self.Mixed_6e = C(160), C(192)
      self.Mixed_7a, self.Mixed_7b = D(), E(1280, mean)
      self.Mixed_7c = E(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
      self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
      x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
      x = self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2))
      x = F.max_pool2d(self.Conv2d_4a_3x3(x), 3, 2)
      x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
      x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
      x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
      features = x.mean((2, 3))
      return features, self.fc(features)

  return randomized(Network())


def randomized(module):
  """`random_weights` in every tensor, and evaluation mode."""
  import torch

  with torch.no_grad():
    for name, x in module.state_dict().items():
      if x.is_floating_point():
        x.copy_(torch.from_numpy(random_weights(name, tuple(x.shape))))
  return module.eval()


def compvis_names(state, levels):
  """A diffusers state dict under CompVis' names and layouts."""
  out = {}
  for name, x in state.items():
    parts = name.split(".")
    if parts[1] in ("down_blocks", "up_blocks"):
      up, i = parts[1] == "up_blocks", int(parts[2])
      head = [parts[0], "up", levels - 1 - i] if up else [parts[0], "down", i]
      kind, j, rest = parts[3], parts[4], parts[5:]
      kinds = {
        "resnets": ["block", j], "attentions": ["attn", j],
        "downsamplers": ["downsample"], "upsamplers": ["upsample"],
      }  # fmt: skip
      parts = [*map(str, head), *kinds[kind], *rest]
    elif parts[1] == "mid_block":
      inner = {"resnets": f"block_{int(parts[3]) + 1}", "attentions": "attn_1"}
      parts = [parts[0], "mid", inner[parts[2]], *parts[4:]]
    elif parts[1] == "conv_norm_out":
      parts[1] = "norm_out"
    name = ".".join(parts)
    for theirs, compvis in [
      ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
      ("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
    ]:  # fmt: skip
      name = name.replace(f".{theirs}.", f".{compvis}.")
    attention = ".attn" in name and x.ndim == 2
    out[name] = x[:, :, None, None] if attention else x
  return out


def make_vae(levels=("DownEncoderBlock2D", "AttnDownEncoderBlock2D")):
  """A tiny AutoencoderKL with attention where KL-16 has it."""
  import diffusers

  return randomized(
    diffusers.AutoencoderKL(
      block_out_channels=(4, 8),
      down_block_types=levels,
      up_block_types=("UpDecoderBlock2D",) * 2,
      layers_per_block=1,
      latent_channels=3,
      norm_num_groups=2,
      scaling_factor=0.5,
    )
  )


def make_clip():
  """A tiny CLIP vision encoder."""
  import transformers

  return randomized(
    transformers.CLIPVisionModel(
      transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=14,
        patch_size=4,
      )
    )
  )


def variety():
  """Tensors of every kind that a file can hold, two of one storage."""
  import torch

  base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
  return {
    "whole": base,
    "transposed": base.T,
    "inner": base[1:3, 2:5],
    "half": base.half(),
    "bfloat16": base.bfloat16(),
    "double": base.double(),
    "long": torch.arange(5),
    "bool": torch.tensor([True, False, True]),
    "bytes": torch.arange(4, dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(base[0].clone()),
  }


def main():
  """Writes all of it."""
  import torch
  from diffusers.loaders import single_file_utils

  out = {}
  vae = make_vae()
  vae.save_pretrained(FIXTURES / "tiny_vae")
  compvis = compvis_names(vae.state_dict(), 2)
  back = single_file_utils.convert_ldm_vae_checkpoint(
    dict(compvis), dict(vae.config)
  )
  for name, x in vae.state_dict().items():
    # It does not know KL-16's attention inside a level.
    assert (
      ".attentions." in name
      and "_blocks." in name
      or torch.equal(back[name], x)
    ), name
  training = {"epoch": 3, "state_dict": compvis, "optimizer_states": [{}]}
  torch.save(training, FIXTURES / "tiny_vae.ckpt")
  images = 2 * np.random.default_rng(1).random((2, 10, 8, 3), np.float32) - 1
  with torch.no_grad():
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    posterior = vae.encode(x).latent_dist
    decoded = vae.decode(posterior.mean).sample
  out["vae_images"] = images
  out["vae_mean"] = posterior.mean.permute(0, 2, 3, 1).numpy()
  out["vae_logvar"] = posterior.logvar.permute(0, 2, 3, 1).numpy()
  out["vae_decoded"] = decoded.permute(0, 2, 3, 1).numpy()

  clip = make_clip()
  clip.save_pretrained(FIXTURES / "tiny_clip")
  images = np.random.default_rng(2).random((2, 14, 14, 3), np.float32)
  with torch.no_grad():
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    states = clip(x, output_hidden_states=True).hidden_states
  out["clip_images"] = images
  out["clip_features"] = states[-2][:, 1:].numpy()

  with torch.no_grad():
    x = torch.from_numpy(inception_image()).permute(0, 3, 1, 2)
    features, logits = inception_network()(x)
  out["inception_features"] = features.numpy()
  out["inception_logits"] = logits.numpy()
  np.savez_compressed(FIXTURES / "vision.npz", **out)

  torch.save(variety(), FIXTURES / "variety.pth")
  torch.save(
    variety(),
    FIXTURES / "variety_legacy.pth",
    _use_new_zipfile_serialization=False,
  )
  arrays = {
    k: v.detach().float().numpy() if k == "bfloat16" else v.detach().numpy()
    for k, v in variety().items()
  }
  np.savez(FIXTURES / "variety.npz", **arrays)


if __name__ == "__main__":
  main()
