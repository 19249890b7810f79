"""Model FLOPs and tokens of a UniFluid step, by arithmetic.

Matrix products only, forward and backward (three times the forward), no
rematerialisation: the numerator of MFU as PaLM (arXiv 2204.02311, appendix B)
defines it.
"""

from unifluid_jax.core.config import Config
from unifluid_jax.core.presets import DecoderConfig, HeadConfig, VitConfig


def step_cost(config: Config) -> tuple[int, float]:
  """Backbone tokens and model FLOPs of one step over all tasks.

  Padding is not counted, nor the frozen VAE.
  """
  m, tokens, flops = config.model, 0, 0.0
  for task, rows in config.batch.items():
    length, images, drawn, answers = _shapes(config)[task]
    tokens += rows * length
    flops += rows * decoder_flops(m.decoder, length)
    flops += rows * images * vit_flops(m.vit)
    flops += (
      rows
      * drawn
      * config.loss.draws
      * head_flops(m.head, m.decoder.width, m.token_channels)
    )
    flops += rows * answers * 2 * m.decoder.width * m.decoder.vocab
  return tokens, 3 * flops


def _shapes(config: Config) -> dict[str, tuple[int, int, int, int]]:
  """task → (sequence, images seen, image tokens, answers) of a row."""
  m, text = config.model, config.text
  n, v = m.image_tokens, (m.vit.image_size // m.vit.patch) ** 2
  edit_prefix = v + (n if m.edit_latents else 0)
  seen, answer = config.data.images, text.prefix + text.suffix - 1
  return {
    "t2i": (text.prompt + n, 0, n, 0),
    "i2t": (seen * v + answer, seen, 0, text.suffix),
    "edit": (edit_prefix + text.prompt + n, 1, n, 0),
    "text": (answer, 0, 0, text.suffix),
  }


def fused_attention_flops(config: Config) -> dict[str, float]:
  """FLOPs that a step's fused attention runs, masked positions included.

  Two products forward, again where the layers are rematerialised and do not
  keep what the kernel's backward pass reads, and five backward, over rows
  padded to the longest task.

  Returns:
    Of the "decoder", and of the vision encoder, "vit", where it is fused too.
  """
  m, shapes = config.model, _shapes(config)
  used = {task: rows for task, rows in config.batch.items() if rows}
  c, length = m.decoder, max(shapes[task][0] for task in used)
  product = 2.0 * c.depth * c.heads * c.head_dim * length**2
  products = {"decoder": sum(used.values()) * product}
  if m.attention == "mosaic":
    images = sum(rows * shapes[task][1] for task, rows in used.items())
    c, length = m.vit, (m.vit.image_size // m.vit.patch) ** 2
    products["vit"] = images * 2.0 * c.depth * c.width * length**2
  # "dots" keeps the kernel's inputs and its result, all that mosaic reads.
  again = m.remat == "full" or (m.remat == "dots" and m.attention != "mosaic")
  return {k: v * (9 if again else 7) for k, v in products.items()}


def decoder_flops(c: DecoderConfig, length: int) -> float:
  """Forward FLOPs of one sequence, without embedding and logits."""
  projections = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
  attention = 2 * c.heads * c.head_dim * length
  layer = projections + 3 * c.width * c.mlp + attention
  return 2.0 * c.depth * length * layer


def vit_flops(c: VitConfig) -> float:
  """Forward FLOPs of one image."""
  n = (c.image_size // c.patch) ** 2
  layer = 4 * c.width**2 + 2 * c.width * c.mlp + 2 * c.width * n
  return 2.0 * n * (c.depth * layer + 3 * c.patch**2 * c.width)


def head_flops(c: HeadConfig, condition: int, channels: int) -> float:
  """Forward FLOPs of one draw of one token."""
  blocks = c.depth * 5 * c.width**2 + 2 * c.width**2
  rest = c.width**2 + 256 * c.width + 3 * channels * c.width
  return 2.0 * (blocks + rest + condition * c.width)
