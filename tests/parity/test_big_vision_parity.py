"""Gemma, the ViT and the data sets of big_vision against ours.

big_vision is no package: its checkout goes on PYTHONPATH, beside the extra
"big_vision"; elsewhere these are skipped.
"""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

pytest.importorskip("big_vision", reason="big_vision is not installed")
pytest.importorskip("tensorflow", reason="big_vision needs TensorFlow")
pytest.importorskip("overrides", reason="big_vision's data sets need it")

from big_vision.models import vit as their_vit
from big_vision.models.ppp import gemma as their_gemma

from tests.weights import helpers
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data.sources import source as sources
from unifluid_jax.weights import gemma, siglip

B, T = 2, 9
GEMMA = dict(
  variant="tiny", width=24, depth=3, mlp_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, norm_eps=1e-6, vocab_size=40, scan=True,
)  # fmt: skip


def save(path, params, prefix):
  """A random tree in big_vision's own file format."""
  flat = traverse_util.flatten_dict(params, sep="/")
  rng = np.random.default_rng(1)
  flat = {
    k: np.asarray(v + 0.1 * rng.normal(size=v.shape), np.float32)
    for k, v in flat.items()
  }
  np.savez(path, **{f"params/{prefix}/{k}": v for k, v in flat.items()})
  return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_gemma(tmp_path, generation, mask):
  more = dict(
    post_norms=True, attn_logits_softcap=2.0, final_logits_softcap=1.5
  )
  net = their_gemma.Model(**GEMMA, **(more if generation == 2 else {}))
  tokens = np.random.default_rng(0).integers(0, 40, (B, T))
  seen = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T)).copy()
  if mask == "prefix":
    seen[0, :4, :4] = seen[1, :7, :7] = True
  params = net.init(jax.random.key(0), jnp.asarray(tokens))["params"]
  params = save(tmp_path / "llm.npz", params, "llm")
  want, out = net.apply(
    {"params": params}, jnp.asarray(tokens), mask=jnp.asarray(seen)
  )
  ours, meta = helpers.convert(
    tmp_path / "llm.npz", gemma.recipe, tmp_path / "ours"
  )
  same = dict(post_norms=True, attn_softcap=2.0, final_softcap=1.5)
  config = helpers.gemma_config(meta, **(same if generation == 2 else {}))
  hidden, logits = helpers.run_gemma(config, ours["decoder"], tokens, mask=seen)
  assert helpers.relative(hidden, out["pre_logits"]) < 1e-5
  assert helpers.absolute(logits, want) < 1e-4


@pytest.mark.parametrize("scan", [False, True])
def test_vit(tmp_path, scan):
  net = their_vit.Model(
    variant=None, patch_size=(4, 4), width=24, depth=2, mlp_dim=48,
    num_heads=3, pool_type="map", scan=scan,
  )  # fmt: skip
  images = np.random.default_rng(0).uniform(-1, 1, (B, 12, 12, 3))
  images = images.astype(np.float32)
  params = net.init(jax.random.key(0), jnp.asarray(images))["params"]
  params = save(tmp_path / "img.npz", params, "img")
  _, out = net.apply({"params": params}, jnp.asarray(images))
  ours, meta = helpers.convert(
    tmp_path / "img.npz", siglip.recipe, tmp_path / "ours"
  )
  meta["vit"]["image_size"] = 12
  got = helpers.run_vit(meta, ours["vit"], images)
  assert helpers.relative(got, out["encoded"]) < 2e-5


@pytest.mark.parametrize("limit", [0, 2])
def test_a_data_set_with_preprocessing(tmp_path, limit):
  """Its JSONL reader, file names opened by it, pixels resized by it."""
  lines = []
  for i in range(3):
    pixels = np.full((8, 6, 3), 40 * i, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    prefix = "how bright" if i == 2 else ""
    line = {"image": f"{i}.png", "prefix": prefix, "suffix": f"grey {i}"}
    lines.append(json.dumps(line))
  (tmp_path / "x.jsonl").write_text("\n".join(lines))
  path = (
    f"bv:jsonl(fname='{tmp_path}/x.jsonl', fopen_keys={{'image': "
    f"'{tmp_path}'}})|decode|resize(4)|copy(inkey='suffix', outkey='text')"
  )
  config = SourceConfig(format="big_vision", path=path, limit=limit)
  source = sources.open_source(config, "", "caption en")
  assert len(source) == (limit or 3)
  first = source[0]
  assert first.captions == ("grey 0",)
  second = np.asarray(Image.open(io.BytesIO(source[1].image)))
  np.testing.assert_array_equal(second, np.full((4, 4, 3), 40))
  if not limit:
    assert source[2].questions == (("how bright", "grey 2"),)
    assert source.indices("t2i").tolist() == [0, 1]


def test_an_unknown_operation_is_named(tmp_path):
  (tmp_path / "x.jsonl").write_text('{"image": "a", "suffix": "b"}')
  path = f"bv:jsonl(fname='{tmp_path}/x.jsonl')|sharpen_it"
  config = SourceConfig(format="big_vision", path=path)
  with pytest.raises(ValueError, match="data.train.mine.path=.*sharpen_it"):
    sources.open_source(config, "", "caption en", "data.train.mine")
