"""A checkpoint of a run becomes an exported model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from unifluid_jax import (
  __version__,
  exported,
  identity,
  loading,
  model_card,
  systems,
)
from unifluid_jax.core import checkpoint, telemetry
from unifluid_jax.weights import hf_parts
from unifluid_jax.weights.rows import all_or_nothing, check_absent


def export(
  run: str,
  to: str,
  *,
  dtype: str = "float32",
  raw: bool = False,
  step: int | None = None,
  license: str | None = None,
  hf: bool = False,
  say: Callable[[str], None] = lambda line: None,
) -> None:
  """Writes one checkpoint of a run, all of it or nothing.

  Args:
    run: its workdir.
    to: directory to write; must not exist.
    dtype: of `exported.DTYPES`.
    raw: the trained weights, not their moving average.
    step: default the newest.
    license: of the weights, for the model card.
    hf: whether to add parts for transformers and diffusers.
    say: takes what was written.

  Raises:
    ValueError: no run, an image tokenizer's, or a folder that exists.
  """
  check_absent(to)
  if exported.is_exported(run):
    raise ValueError(f"{run} is exported already: name the run it was made of")
  step = checkpoint.latest_step(run) if step is None else step
  model = loading.read(run, step, ema=not raw)
  parts = exported.stored_parts(model.system, model.params, model.frozen, dtype)
  extra = _hf_parts(model, parts, run, say) if hf else {}
  facts = _facts(model, run, to, step, dtype, raw, license)
  facts = facts._replace(parts={k: p.loads for k, p in extra.items()})
  tokenizer = None
  if model.tokenizer is not None:
    tokenizer = (epath.Path(run) / identity.TOKENIZER).read_bytes()
  with all_or_nothing(to) as place:
    size = exported.write(place, facts.settings, parts, tokenizer)
    found = model_card.license_files(model.config, run)
    model_card.copy_licenses(found, place)
    card = model_card.text(facts._replace(licenses=list(found)))
    (place / "README.md").write_text(card, encoding="utf-8")
    for name, part in extra.items():
      say(f"hf/{name}: {hf_parts.write(place / 'hf' / name, part)}")
  count = facts.settings["parameters"] / 1e6
  say(f"wrote {to}: {count:,.1f} M parameters, {size / 1e6:,.1f} MB of weights")


def _hf_parts(
  model: loading.Loaded,
  parts: dict[str, Any],
  run: str,
  say: Callable[[str], None],
) -> dict[str, hf_parts.Part]:
  """What --hf adds; says what cannot be."""
  codec = model.system.codec
  extra, others = hf_parts.plan(
    model.config.model,
    parts["model"],
    parts.get("codec", {}),
    run,
    codec.path if codec else "",
  )
  for line in others:
    say(f"left out of hf/: {line}")
  return extra


def _facts(
  model: loading.Loaded,
  run: str,
  to: str,
  step: int,
  dtype: str,
  raw: bool,
  license: str | None,
) -> model_card.Facts:
  """What config.json and the card say."""
  meta = checkpoint.read_meta(run, step)
  settings: dict[str, Any] = {
    "version": __version__,
    "jax": jax.__version__,
    "system": model.config.system,
    "name": model.config.name,
    "step": step,
    "averaged": loading.averaged(model.config, not raw),
    "dtype": dtype,
    "parameters": telemetry.count(model.params),
    "identity": meta.get("identity") or {},
    "config": systems.migrated(meta["config"]),
  }
  return model_card.Facts(
    name=Path(to).name,
    config=model.config,
    settings=exported.without_home(settings),
    scores=model_card.scores_at(run, step),
    prompt=model_card.example_prompt(
      run, getattr(model.config.model, "names", ())
    ),
    licenses=[],
    license=license,
    parts={},
  )
