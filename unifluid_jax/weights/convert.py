"""One conversion from its arguments to its files."""

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from unifluid_jax.weights import (
  clip,
  engine,
  gemma,
  gguf_llama,
  inception,
  kl_vae,
  llama,
  llama_settings,
  llava,
  multiscale_vq,
  orbax_files,
  paligemma,
  readers,
  scale_decoder,
  siglip,
  to_hf,
  vargpt,
  vq,
)
from unifluid_jax.weights.rows import (
  Recipe,
  Source,
  WeightsError,
  check_absent,
)

KINDS = (
  "gemma", *llama_settings.KINDS, "gguf", "paligemma", "llava", "vargpt",
  "siglip", "kl_vae", "vq", "var_vq", "var", "inception",
)  # fmt: skip
_DTYPES = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def to_checkpoint(
  spec: str,
  directory: str,
  say: Callable[[str], None],
  dtype: str | None = None,
  image_size: int | None = None,
) -> None:
  """Converts published weights.

  Args:
    spec: "KIND:PATH".
    directory: to write; must not exist.
    say: takes the lines of the coverage table.
    dtype: "float32", "bfloat16", or None to keep the file's.
    image_size: pixels a side, for kinds with positions.

  Raises:
    WeightsError: the arguments, or the files, are not what they should be.
  """
  kind, path = _parse(spec)
  check_absent(directory)
  source = readers.open_source(path)
  if kind == "var_vq":
    source = multiscale_vq.Separate(source)
  if kind == "vargpt":
    source = vargpt.View(source)
  recipe = _recipe(kind, source, image_size)
  say(f"{path}: {recipe.found}")
  plan = engine.make_plan(source, recipe, _DTYPES[dtype] if dtype else None)
  for line in engine.coverage(plan):
    say(line)
  meta = {
    "kind": recipe.kind,
    "found": recipe.found,
    "source": path,
    "dropped": dict([*plan.dropped, *plan.cut]),
    **recipe.meta,
  }
  orbax_files.write(directory, plan.leaves, {"weights": meta}, recipe.files)


def to_hugging_face(
  spec: str, directory: str, say: Callable[[str], None]
) -> None:
  """Writes a part of a checkpoint of ours as safetensors.

  Args:
    spec: "KIND:PATH" of a conversion or a run.
    directory: to write; must not exist.
    say: takes a line that sums up.

  Raises:
    WeightsError: no checkpoint, or a part that it does not hold.
  """
  kind, path = _parse(spec)
  back = {
    "gemma": gemma.hf_recipe,
    "siglip": siglip.hf_recipe,
    "kl_vae": kl_vae.hf_recipe,
    "vq": vq.hf_recipe,
    "var_vq": multiscale_vq.hf_recipe,
    "var": scale_decoder.hf_recipe,
    **_of_llamas(llama.hf_recipe),
  }
  if kind not in back:
    raise WeightsError(
      f"--to-hf writes {', '.join(back)}, not {kind}; the parts of a "
      "paligemma are written as gemma and siglip, the decoder of a llava or a "
      "vargpt as llama"
    )
  source: Source = to_hf.Params(readers.open_source(path))
  kept = "averaged weights, " if source.averaged else ""
  if kind == "var_vq":
    source = multiscale_vq.Merged(source)
  recipe = back[kind](source)
  name = "diffusion_pytorch_model" if kind == "kl_vae" else "model"
  count = to_hf.write(directory, name, source, recipe)
  say(f"{path}: {recipe.found}: {count} tensors, {kept}Hugging Face names")


def _parse(spec: str) -> tuple[str, str]:
  kind, _, path = spec.partition(":")
  if kind not in KINDS or not path:
    raise WeightsError(
      f"--from={spec}: expected KIND:PATH with a kind of {', '.join(KINDS)}"
    )
  return kind, path


def _recipe(kind: str, source: Source, image_size: int | None) -> Recipe:
  class_token = "embeddings.class_embedding"  # CLIP has one, SigLIP has not
  if kind == "siglip" and any(
    name.endswith(class_token) for name in source.names()
  ):
    kind = "clip"
  sized = {
    "paligemma": paligemma.recipe,
    "llava": llava.recipe,
    "vargpt": vargpt.recipe,
    "siglip": siglip.recipe,
    "clip": clip.recipe,
  }
  if kind in sized:
    return sized[kind](source, image_size)
  if image_size:
    raise WeightsError(f"--image_size has no meaning for {kind}: leave it out")
  plain = {
    "gemma": gemma.recipe,
    "gguf": gguf_llama.recipe,
    "kl_vae": kl_vae.recipe,
    "vq": vq.recipe,
    "var_vq": multiscale_vq.recipe,
    "var": scale_decoder.recipe,
    "inception": inception.recipe,
    **_of_llamas(llama.recipe),
  }
  return plain[kind](source)


def _of_llamas(recipe: Callable[..., Recipe]) -> dict[str, Any]:
  """A recipe of each kind of the family."""
  return {
    kind: functools.partial(recipe, kind=kind) for kind in llama_settings.KINDS
  }
