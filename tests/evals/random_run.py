"""A run as training leaves it, with random parameters: ready in seconds."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from configs import debug
from unifluid_jax import systems
from unifluid_jax.core import checkpoint
from unifluid_jax.data import text
from unifluid_jax.models.kl_vae import KlVae

SENTENCES = ("a photo of a bench and a cow", "caption 0 of 12", "prompt 3")
STEP = 3


def write(root):
  """Tokenizer, autoencoder and one checkpoint below a folder.

  Returns:
    The workdir, and the flags of its configuration.
  """
  changes = {
    "text.tokenizer": f"{root}/tokenizer.model",
    "model.vae_path": f"{root}/vae",
    "model.vae.latent_mean": 0.0,
    "model.vae.latent_scale": 1.0,
  }
  tree = debug.get_config()
  tree.update_from_flattened_dict(changes)
  c = systems.resolve(tree)
  tokenizer = text.train(SENTENCES, c.text.tokenizer, 64)
  assert tokenizer.vocab_size <= c.model.decoder.vocab
  blank, run = jnp.zeros((1, 8, 8, 3)), root / "run"
  vae = _random(lambda key: KlVae(c.model.vae).init(key, blank)["params"])
  meta = {"config": json.loads(json.dumps(tree.to_dict()))}
  _save(c, f"{root}/vae", {"params": {"vae": vae}}, {})
  _save(c, str(run), {"ema": _random(systems.build(c).init)}, meta)
  shutil.copy(c.text.tokenizer, run)
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  return run, ["--config=configs/debug.py", *flags, f"--workdir={run}"]


def _random(init):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.float32(0.1 * rng.normal(size=leaf.shape)),
    jax.eval_shape(init, jax.random.key(0)),
  )


def _save(c, workdir, state, meta):
  saved = checkpoint.Checkpoints(workdir, c.checkpoint)
  saved.save(STEP, state, meta)
  saved.close()
