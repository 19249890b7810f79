"""Shapes of the networks: one frozen dataclass each, and the published sizes.

Sources: Gemma 1-3, Llama 2 and 3.2, SmolLM2, Qwen2.5 and Chameleon (technical
reports and released configurations), SigLIP So400m/14, CLIP ViT-L/14, the
autoencoders of Stable Diffusion (f8) and MAR (KL-16), the VQ autoencoders of
VQGAN, Chameleon, LlamaGen and VAR, MAR's diffusion head, VAR's transformer.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder-only transformer: Gemma, Llama, Qwen2 or Chameleon."""

  vocab: int
  width: int  # D
  depth: int  # L
  mlp: int  # hidden size of each of the gate and up projections
  heads: int
  kv_heads: int  # K
  head_dim: int  # H
  query_scale: float | None = None  # None: head_dim ** -0.5
  attn_softcap: float = 0.0  # 0: off
  final_softcap: float = 0.0
  post_norms: bool = False  # norm the branch's output: Gemma 2, 3; Chameleon
  qk_norm: bool = False  # Gemma 3, Chameleon
  window: int = 0  # keys a local layer sees, itself included
  pattern: tuple[Literal["local", "global"], ...] = ("global",)  # repeated
  rope_base: float = 10_000.0  # local layers, and all layers without Gemma 3
  rope_base_global: float = 10_000.0
  rope_scale_global: float = 1.0  # positions of global layers divided by it
  dropout: float = 0.0  # residual, of both branches
  activation: Literal["gelu_tanh", "silu"] = "gelu_tanh"  # of the gate
  # RMSNorm times 1 + scale in float32, or times scale after the downcast.
  norm: Literal["gemma", "llama"] = "gemma"
  norm_epsilon: float = 1e-6
  pre_norms: bool = True  # False in Chameleon 34B, which has post_norms alone
  # RMSNorm shared by the heads, or LayerNorm with parameters per head.
  qk_norm_kind: Literal["rms", "layer"] = "rms"
  qkv_bias: bool = False  # Qwen2
  scale_embedding: bool = True  # by sqrt(width)
  tied: bool = True  # the output layer is the embedding table
  # Llama 3: only wavelengths near and above this length are stretched by
  # rope_scale_global; 0: all are.
  rope_original_length: int = 0


@dataclasses.dataclass(frozen=True)
class VitConfig:
  """A SigLIP or CLIP vision encoder without pooling head."""

  width: int
  depth: int
  mlp: int
  heads: int
  patch: int
  image_size: int


@dataclasses.dataclass(frozen=True)
class HeadConfig:
  """The head that draws continuous tokens; see `models/token_head.py`."""

  width: int
  depth: int
  kind: Literal["ddpm", "flow", "shortcut", "energy", "distilled"] = "ddpm"
  fused: bool = False  # drawing, by the kernels of `ops/fused_head.py`


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Encoder and decoder of an image tokenizer; see models/convolutions.py."""

  base: int  # channels before `multipliers`
  multipliers: tuple[int, ...]
  blocks: int  # residual blocks a level in the encoder; the decoder has +1
  latent: int  # channels of z
  attention: bool = True  # one attention layer in the middle
  encoder_attention: bool = False  # and after each block of its last level
  decoder_attention: bool = False  # and after each block of its first level
  groups: int = 32  # of every GroupNorm
  stem: int = 1  # pixels a side folded into channels before the first layer

  @property
  def factor(self) -> int:
    """Pixels a latent cell covers in each direction."""
    return self.stem * 2 ** (len(self.multipliers) - 1)


@dataclasses.dataclass(frozen=True)
class VaeConfig(AutoencoderConfig):
  """A KL autoencoder of the Stable-Diffusion family.

  Latents leave it as (z - latent_mean) * latent_scale. `None` means measured
  on the training images and stored with the trained weights.
  """

  latent_mean: float | None = None
  latent_scale: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VqConfig(AutoencoderConfig):
  """A VQ autoencoder: VQGAN, Chameleon's or LlamaGen's."""

  codes: int  # K
  code_channels: int  # e
  normalised: bool  # l2-normalised vectors and codebook, as LlamaGen


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
  """Two towers that compare images' codes with captions."""

  vocab: int = 32_768  # rows of the captions' table
  width: int = 512
  image_depth: int = 1
  text_depth: int = 12
  heads: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiscaleVqConfig(VqConfig):
  """VAR's VQ autoencoder: an image as residual codes of growing grids."""

  scales: tuple[int, ...]  # P_k, cells a side; the last is the latent's side
  phi: int = 4  # convolutions that the scales share; 0: one per scale
  phi_ratio: float = 0.5  # of the convolution's output in its sum with h
  normalised: bool = False  # VAR compares vectors as they are

  @property
  def tokens(self) -> int:
    """N, codes of all scales."""
    return sum(side**2 for side in self.scales)


@dataclasses.dataclass(frozen=True)
class ScaleDecoderConfig:
  """VAR's transformer over the scales of an image."""

  width: int  # W
  depth: int  # L; 0 leaves the embedding and the head
  heads: int
  mlp: int  # hidden size
  codes: int  # V, of the tokenizer's codebook
  code_channels: int  # Z, of its vectors
  scales: tuple[int, ...]  # P_k, sides of the scales; K of them
  classes: int  # rows of the class table without the null class's, the last
  shared_adaln: bool = False  # one modulation for all layers, plus an offset
  l2_norm: bool = True  # unit queries and keys, with a learned temperature
  drop_path: float = 0.0  # of the last layer; linear from 0 at the first
  gate_init: float = 1e-5  # initial scale of the rows that make gates

  @property
  def tokens(self) -> int:
    """N, codes of all scales."""
    return sum(side**2 for side in self.scales)


_GEMMA2 = dict(
  attn_softcap=50.0,
  final_softcap=30.0,
  post_norms=True,
  window=4096,
  pattern=("local", "global"),
)
_GEMMA3 = dict(
  post_norms=True,
  qk_norm=True,
  pattern=("local",) * 5 + ("global",),
  rope_base_global=1_000_000.0,
)


def _gemma(vocab, width, depth, mlp, heads, kv_heads, head_dim=256, **rest):
  return DecoderConfig(
    vocab, width, depth, mlp, heads, kv_heads, head_dim, **rest
  )


GEMMA = {
  "gemma1_2b": _gemma(256_000, 2048, 18, 16_384, 8, 1),
  "gemma1_7b": _gemma(256_000, 3072, 28, 24_576, 16, 16),
  "gemma2_2b": _gemma(256_000, 2304, 26, 9216, 8, 4, **_GEMMA2),
  "gemma2_9b": _gemma(256_000, 3584, 42, 14_336, 16, 8, **_GEMMA2),
  "gemma2_27b": _gemma(
    256_000, 4608, 46, 36_864, 32, 16, 128, query_scale=144**-0.5, **_GEMMA2
  ),
  # Our own shape: the paper's 0.7B is not described. Gemma 3 1B's body
  # proportions with Gemma 2's blocks: 0.698B without embeddings.
  "gemma2_700m": _gemma(256_000, 1152, 26, 6912, 4, 1, **_GEMMA2),
  "gemma3_270m": _gemma(262_144, 640, 18, 2048, 4, 1, window=512, **_GEMMA3),
  "gemma3_1b": _gemma(262_144, 1152, 26, 6912, 4, 1, window=512, **_GEMMA3),
  "gemma3_4b": _gemma(
    262_144, 2560, 34, 10_240, 8, 4,
    window=1024, rope_scale_global=8.0, **_GEMMA3,
  ),
}  # fmt: skip

_LLAMA = dict(
  activation="silu", norm="llama", norm_epsilon=1e-5, scale_embedding=False
)
_QWEN2 = _LLAMA | dict(
  norm_epsilon=1e-6, rope_base=1e6, rope_base_global=1e6, qkv_bias=True
)
_LLAMA2_7B = DecoderConfig(
  32_000, 4096, 32, 11_008, 32, 32, 128, tied=False, **_LLAMA
)

DECODER = {
  **GEMMA,
  "llama2_7b": _LLAMA2_7B,  # and Vicuna 7B, finetuned from it
  "llama3_1b": DecoderConfig(  # Llama 3.2
    128_256, 2048, 16, 8192, 32, 8, 64,
    rope_base=5e5, rope_base_global=5e5, rope_scale_global=32.0,
    rope_original_length=8192, **_LLAMA,
  ),
  "smollm2_135m": DecoderConfig(
    49_152, 576, 30, 1536, 9, 3, 64,
    rope_base=1e5, rope_base_global=1e5, **_LLAMA,
  ),
  "qwen2_5_0_5b": DecoderConfig(
    151_936, 896, 24, 4864, 14, 2, 64, **_QWEN2
  ),
  "qwen2_5_7b": DecoderConfig(
    152_064, 3584, 28, 18_944, 28, 4, 128, tied=False, **_QWEN2
  ),
  "qwen2_5_32b": DecoderConfig(
    152_064, 5120, 64, 27_648, 40, 8, 128, tied=False, **_QWEN2
  ),
  "chameleon_7b": dataclasses.replace(
    _LLAMA2_7B, vocab=65_536, qk_norm=True, qk_norm_kind="layer"
  ),
  "chameleon_34b": DecoderConfig(  # called 30B where it is published
    65_536, 8192, 48, 22_016, 64, 8, 128, tied=False, qk_norm=True,
    qk_norm_kind="layer", pre_norms=False, post_norms=True, **_LLAMA,
  ),
}  # fmt: skip

VIT = {
  "so400m_14": VitConfig(1152, 27, 4304, 16, patch=14, image_size=224),
}

# Built by models/clip_vit.py, which stops before the last block.
CLIP_VIT = {
  "l14_336": VitConfig(1024, 24, 4096, 16, patch=14, image_size=336),
}

HEAD = {
  "mar_b": HeadConfig(1024, 6),
  "mar_l": HeadConfig(1280, 8),
  "mar_h": HeadConfig(1536, 12),
}

VAE = {
  "sd_f8": VaeConfig(
    128, (1, 2, 4, 4), 2, 4, latent_mean=0.0, latent_scale=0.18215
  ),
  "mar_kl16": VaeConfig(
    128, (1, 1, 2, 2, 4), 2, 16,
    encoder_attention=True, latent_mean=0.0, latent_scale=0.2325,
  ),
}  # fmt: skip


def _vq(multipliers, attention, codes, code_channels, normalised):
  """`attention` beside the middle's: after blocks of the lowest level."""
  return VqConfig(
    128, multipliers, 2, 256,
    encoder_attention=attention, decoder_attention=attention,
    codes=codes, code_channels=code_channels, normalised=normalised,
  )  # fmt: skip


_F16 = (1, 1, 2, 2, 4)
VQ = {
  "chameleon": _vq(_F16, False, 8192, 256, normalised=False),
  "taming_f16": _vq(_F16, True, 16_384, 256, normalised=False),
  "llamagen_vq16": _vq(_F16, True, 16_384, 8, normalised=True),
  "llamagen_vq8": _vq((1, 2, 2, 4), True, 16_384, 8, normalised=True),
}

MULTISCALE_VQ = {
  "var_f16": MultiscaleVqConfig(
    160, _F16, 2, 32, encoder_attention=True, decoder_attention=True,
    codes=4096, code_channels=32, scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
  ),
}  # fmt: skip
# The same weights on images of 512 x 512.
MULTISCALE_VQ["var_f16_512"] = dataclasses.replace(
  MULTISCALE_VQ["var_f16"], scales=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
)


def _var(depth, gate_init, vq="var_f16", shared_adaln=False):
  return ScaleDecoderConfig(
    64 * depth, depth, depth, 256 * depth, 4096, 32,
    MULTISCALE_VQ[vq].scales, 1000, shared_adaln,
    drop_path=0.1 * depth / 24, gate_init=gate_init,
  )  # fmt: skip


SCALE_DECODER = {
  "d16": _var(16, 1e-3),
  "d20": _var(20, 1e-3),
  "d24": _var(24, 1e-4),
  "d30": _var(30, 1e-5),
  "d36": _var(36, 5e-6, "var_f16_512", shared_adaln=True),
}
