"""Makes the fixtures of Gemma, PaliGemma and SigLIP with transformers.

  python -m tests.weights.make_fixtures

Needs PyTorch 2.13.0 and transformers 5.23.0. Each directory holds a random
tiny model as transformers saves it and, in expected.npz, inputs and what it
makes of them.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.weights import references

FIXTURES = Path(__file__).parent / "fixtures"
# Tensors whose gradients are kept: one of each way of reshaping.
GRADIENTS = (
  "model.embed_tokens.weight",
  "model.layers.0.self_attn.q_proj.weight",
  "model.layers.1.self_attn.o_proj.weight",
  "model.layers.2.mlp.down_proj.weight",
)


def main():
  """All of them."""
  for generation in (1, 2, 3):
    make_gemma(generation)
  make_siglip()
  make_paligemma()


def make_gemma(generation):
  """Causal, prefix mask, padding on the left, gradients."""
  model = references.gemma(generation)
  tokens = references.tokens()
  b, t = tokens.shape
  out = {"tokens": tokens}
  causal = run(model, tokens, torch.ones(b, t))
  out |= {"causal/hidden": causal[0], "causal/logits": causal[1]}
  prefix = np.tril(np.ones((b, t, t), bool))
  prefix[:, :6, :6] = True
  seen = references.masks(generation, prefix, np.tile(np.arange(t), (b, 1)))
  out |= {"prefix/mask": prefix, "prefix/logits": run(model, tokens, seen)[1]}
  valid = np.ones((b, t), bool)
  valid[1, :4] = False
  positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
  padded = run(
    model, tokens, torch.tensor(valid.astype(int)),
    position_ids=torch.tensor(positions),
  )  # fmt: skip
  out |= {"padded/valid": valid, "padded/logits": padded[1]}
  noise = np.random.default_rng(2).normal(size=causal[1].shape)
  noise = noise.astype(np.float32)
  _, logits = references.run(model, tokens, torch.ones(b, t))
  (logits * torch.tensor(noise)).sum().backward()
  grads = dict(model.named_parameters())
  out |= {"noise": noise}
  out |= {f"grad/{n}": grads[n].grad.numpy() for n in GRADIENTS}
  save(f"gemma{generation}", model, out)


def make_siglip():
  """Tokens of two images, with a rest beside the last cells."""
  model = references.siglip(image_size=14)
  images = random_images(14)
  with torch.no_grad():
    out = model(torch.tensor(images.transpose(0, 3, 1, 2)))
  found = out.last_hidden_state.numpy()
  save("siglip", model, {"images": images, "tokens": found})


def make_paligemma():
  """Image, prefix of 4 and suffix of 5 to logits."""
  model = references.paligemma(
    2, num_hidden_layers=2, sliding_window=64,
    layer_types=["sliding_attention", "full_attention"],
  )  # fmt: skip
  images, tokens = random_images(12), references.tokens(2, 9)
  logits = references.run_paligemma(model, images, tokens, prefix=4)
  out = {"images": images, "tokens": tokens, "logits": logits}
  save("paligemma", model, out)


def run(model, tokens, mask, **rest):
  """Hidden states and logits as numpy."""
  with torch.no_grad():
    return [x.numpy() for x in references.run(model, tokens, mask, **rest)]


def random_images(size):
  """float32 [2, size, size, 3] in [-1, 1]."""
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def save(name, model, expected):
  """A directory; every file below 100 kB."""
  at = FIXTURES / name
  at.mkdir(parents=True, exist_ok=True)
  model.config.to_json_file(str(at / "config.json"))
  save_file(references.numbers(model), str(at / "model.safetensors"))
  np.savez_compressed(at / "expected.npz", **expected)
  for file in at.iterdir():
    file.chmod(0o644)
    assert file.stat().st_size < 100_000, file


if __name__ == "__main__":
  main()
