"""Random tiny models of transformers, the independent implementation.

Needs PyTorch and transformers; used by `make_fixtures.py` and by the tests of
tests/parity, never by `make test`.
"""

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file


def gemma_config(generation, **rest):
  """transformers' configuration: N * H != D, two queries a key."""
  common = dict(
    vocab_size=40, hidden_size=24, intermediate_size=32, head_dim=8,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, attn_implementation="eager",
    attention_dropout=0.0, use_cache=False,
  )  # fmt: skip
  if generation == 1:
    return transformers.GemmaConfig(**(common | rest))
  if generation == 2:
    own = dict(
      query_pre_attn_scalar=5, attn_logit_softcapping=2.0,
      final_logit_softcapping=1.5, sliding_window=3,
    )  # fmt: skip
    return transformers.Gemma2Config(**(common | own | rest))
  own = dict(
    query_pre_attn_scalar=5, sliding_window=3,
    layer_types=["sliding_attention"] * 2 + ["full_attention"],
    rope_parameters={
      "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
      "full_attention": {
        "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6,
      },
    },
  )  # fmt: skip
  return transformers.Gemma3TextConfig(**(common | own | rest))


def gemma(generation, seed=0, **rest):
  """A model with weights large enough for caps and norms to matter."""
  config = gemma_config(generation, **rest)
  made = {
    1: transformers.GemmaForCausalLM,
    2: transformers.Gemma2ForCausalLM,
    3: transformers.Gemma3ForCausalLM,
  }[generation](config)
  return randomise(made, seed)


def siglip(seed=0, **rest):
  """A vision model with its pooling head."""
  config = transformers.SiglipVisionConfig(**(_VISION | rest))
  return randomise(transformers.SiglipVisionModel(config), seed)


def paligemma(generation=2, seed=0, **rest):
  """A model over 9 image tokens; token 39 marks them in the text."""
  text = gemma_config(generation, **rest).to_dict()
  vision = transformers.SiglipVisionConfig(
    **_VISION, vision_use_head=False, projection_dim=24
  ).to_dict()
  config = transformers.PaliGemmaConfig(
    text_config=text, vision_config=vision, image_token_index=39,
    image_token_id=39, projection_dim=24, attn_implementation="eager",
  )  # fmt: skip
  return randomise(transformers.PaliGemmaForConditionalGeneration(config), seed)


def randomise(model, seed):
  """Every parameter anew: matrices by their fan-in, the rest around 0."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      fan = parameter[0].numel() if parameter.ndim > 1 else 16
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(noise * 1.5 / fan**0.5)
  return model.eval()


def numbers(model):
  """The state dict as numpy, as it is saved."""
  tied = getattr(model.config, "tie_word_embeddings", True)
  return {
    name: value.detach().numpy().copy()
    for name, value in model.state_dict().items()
    if not (name == "lm_head.weight" and tied)
  }


def save(model, path):
  """One safetensors file, names as the model has them."""
  save_file(numbers(model), str(path))


def tokens(batch=2, length=10, seed=1, vocab=39):
  """Random ids."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, vocab, (batch, length)).astype(np.int32)


def additive(mask):
  """bool [B, T, S] → what transformers adds to the scores."""
  lowest = torch.finfo(torch.float32).min
  keep = torch.tensor(np.array(mask))[:, None]
  return torch.where(keep, 0.0, lowest).float()


def masks(generation, mask, positions):
  """A mask for transformers; a local one too where it has such layers."""
  if generation == 1:
    return additive(mask)
  gap = positions[:, :, None] - positions[:, None, :]
  return {
    "full_attention": additive(mask),
    "sliding_attention": additive(mask & (np.abs(gap) < 3)),
  }


def run(model, tokens, mask=None, **rest):
  """Hidden states after the final norm, and logits."""
  out = model(
    torch.tensor(tokens).long(),
    attention_mask=torch.ones(tokens.shape) if mask is None else mask,
    output_hidden_states=True,
    **rest,
  )
  return out.hidden_states[-1], out.logits


def run_paligemma(model, images, tokens, prefix):
  """Logits of 9 image tokens and the text; `prefix` of it is seen freely."""
  ids = np.concatenate([np.full((len(tokens), 9), 39), tokens], 1)
  kinds = np.tile(np.arange(ids.shape[1]) >= 9 + prefix, (len(ids), 1))
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(ids).long(),
      pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)),
      attention_mask=torch.ones(ids.shape).long(),
      token_type_ids=torch.tensor(kinds.astype(int)),
    )
  return out.logits.numpy()


_VISION = dict(
  hidden_size=24, intermediate_size=40, num_hidden_layers=2,
  num_attention_heads=3, image_size=12, patch_size=4,
  attn_implementation="eager",
)  # fmt: skip
