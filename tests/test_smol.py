"""configs/unifluid_smol.py trains on a language model out of a GGUF file."""

import jax
import numpy as np

from configs import unifluid_smol
from tests.systems import conftest
from tests.weights import gguf_writer
from unifluid_jax import systems, train
from unifluid_jax.core import parallel
from unifluid_jax.weights import convert, gguf_llama, readers

_VOCAB = 24


def model_file(tmp_path):
  """The tiny Llama with pieces enough for the examples' ids."""
  letters = [chr(ord("a") + i) for i in range(_VOCAB)]
  fields = gguf_writer.FIELDS | {
    "tokenizer.ggml.tokens": letters,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (_VOCAB - 3),
  }
  arrays = gguf_writer.tensors()
  rng = np.random.default_rng(1)
  arrays["token_embd.weight"] = rng.normal(size=(_VOCAB, 24)).astype("f4")
  return gguf_writer.write(tmp_path / "x.gguf", fields, arrays)


def configuration(tmp_path):
  """The shipped one with the shapes of that file, and tiny other networks."""
  tiny = conftest.tiny()
  c = unifluid_smol.get_config()
  c.init.decoder = str(tmp_path / "ours")
  c.batch = dict(t2i=0, i2t=8, edit=0, text=0)  # compiles sooner without
  c.text.update(prompt=5, prefix=5, suffix=4)
  c.model.decoder.update(
    vocab=_VOCAB, width=24, depth=2, mlp=32, heads=4, kv_heads=2, head_dim=6
  )
  for part in ("vit", "head", "vae"):
    for key in c.model[part]:
      if key != "preset":
        c.model[part].update({key: getattr(getattr(tiny.model, part), key)})
  c.model.patch = 2
  c.model.dtype = "float32"
  c.loss.draws = 1
  c.optim.warmup = 1
  c.mesh = dict(data=1, fsdp=1, tensor=1)
  return systems.resolve(c)


def test_a_few_steps(tmp_path):
  path = model_file(tmp_path)
  convert.to_checkpoint(f"gguf:{path}", str(tmp_path / "ours"), lambda _: None)
  config = configuration(tmp_path)
  source = readers.open_source(str(path))
  theirs = gguf_llama.recipe(source).meta["decoder"]
  assert theirs == {key: getattr(config.model.decoder, key) for key in theirs}

  system = systems.build(config)
  job = train.make_job(config, system, jax.devices()[:1])
  with jax.set_mesh(job.mesh):
    restored, said = train.restore_or_init(job, str(tmp_path / "run"), {})
    assert "decoder from" in said and "warning" not in said
    state, losses = restored.state, []
    table = np.asarray(state.params["decoder"]["embedder"]["table"])
    np.testing.assert_array_equal(table, source.read("token_embd.weight"))
    examples = conftest.examples()
    batch = jax.tree.map(np.asarray, {"i2t": examples["i2t"]})
    for _ in range(4):
      given = parallel.to_global(batch, job.mesh)
      state, metrics = job.step(state, {}, given)
      losses.append(float(metrics["loss"]))
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
  moved = state.params["decoder"]["layers"]["mlp"]["up"]
  first = source.read("blk.0.ffn_up.weight").T
  assert np.abs(np.asarray(moved[0]) - first).max() > 1e-5
