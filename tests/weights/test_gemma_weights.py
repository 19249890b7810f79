import json

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.weights import helpers
from unifluid_jax.core.presets import GEMMA
from unifluid_jax.weights import (
  engine,
  gemma,
  orbax_files,
  readers,
  safetensors_file,
  to_hf,
)
from unifluid_jax.weights.rows import WeightsError, nested

BF16 = np.dtype(ml_dtypes.bfloat16)
HIDDEN, LOGITS = 1e-5, 1e-4


# ------------------------------------------ agreement with transformers


@pytest.fixture(scope="module", params=[1, 2, 3], ids="gemma{}".format)
def fixture(request, tmp_path_factory):
  """Configuration, our parameters, and what transformers computed."""
  at = helpers.FIXTURES / f"gemma{request.param}"
  params, meta = helpers.convert(
    at, gemma.recipe, tmp_path_factory.mktemp("x") / "ours"
  )
  config = helpers.gemma_config(meta)  # as config.json says
  for key, value in helpers.OURS[request.param].items():
    assert getattr(config, key) == value, key
  return config, params["decoder"], dict(np.load(at / "expected.npz"))


def test_causal(fixture):
  config, params, want = fixture
  hidden, logits = helpers.run_gemma(config, params, want["tokens"])
  assert helpers.relative(hidden, want["causal/hidden"]) < HIDDEN
  assert helpers.absolute(logits, want["causal/logits"]) < LOGITS


def test_prefix_mask(fixture):
  config, params, want = fixture
  _, logits = helpers.run_gemma(
    config, params, want["tokens"], mask=want["prefix/mask"]
  )
  assert helpers.absolute(logits, want["prefix/logits"]) < LOGITS


def test_padding_on_the_left(fixture):
  config, params, want = fixture
  valid = want["padded/valid"]
  positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
  t = valid.shape[1]
  mask = np.tril(np.ones((t, t), bool)) & valid[:, None, :]
  _, logits = helpers.run_gemma(config, params, want["tokens"], positions, mask)
  got, theirs = np.asarray(logits)[valid], want["padded/logits"][valid]
  assert helpers.absolute(got, theirs) < LOGITS


def test_gradients(fixture):
  config, params, want = fixture

  def loss(params):
    _, logits = helpers.run_gemma(config, params, want["tokens"])
    return (logits * want["noise"]).sum()

  got = jax.grad(loss)(params)
  width, heads, size = config.width, config.heads, config.head_dim
  layer = "grad/model.layers"
  q = want[f"{layer}.0.self_attn.q_proj.weight"]
  o = want[f"{layer}.1.self_attn.o_proj.weight"]
  down = want[f"{layer}.2.mlp.down_proj.weight"]
  pairs = [
    (got["embedder"]["table"], want["grad/model.embed_tokens.weight"]),
    (got["layers"]["attn"]["q"][0], q.T.reshape(width, heads, size)),
    (got["layers"]["attn"]["o"][1], o.T.reshape(heads, size, width)),
    (got["layers"]["mlp"]["down"][2], down.T),
  ]
  for ours, theirs in pairs:
    assert helpers.relative(ours, theirs) < HIDDEN


# ------------------------------------------------------- the other formats


def tensors(generation):
  """Hugging Face's, of a fixture."""
  source = readers.open_source(str(helpers.FIXTURES / f"gemma{generation}"))
  return {name: source.read(name) for name in source.names()}


def ours_of(generation):
  """The tree that the fixture becomes, flat."""
  source = readers.open_source(str(helpers.FIXTURES / f"gemma{generation}"))
  return helpers.in_memory(source, gemma.recipe(source))


NORMS = {
  1: {"pre_attention_norm": "input", "pre_ffw_norm": "post_attention"},
  2: {
    "pre_attention_norm": "input", "post_attention_norm": "post_attention",
    "pre_ffw_norm": "pre_feedforward", "post_ffw_norm": "post_feedforward",
  },
}  # fmt: skip
NORMS[3] = NORMS[2]


def official_layer(theirs, i, generation, swapped=False, merged=False):
  """One layer of Hugging Face's as the released trees have it."""
  at = f"model.layers.{i}."

  def heads(name):  # [N * H, D] → [N, D, H]
    w = theirs[f"{at}self_attn.{name}_proj.weight"]
    return w.reshape(-1, 8, w.shape[1]).transpose(0, 2, 1)

  def matrix(name):
    return theirs[f"{at}mlp.{name}_proj.weight"].T

  gating = np.stack([matrix("gate"), matrix("up")])
  o = theirs[f"{at}self_attn.o_proj.weight"].T
  layer = {
    "attn/attn_vec_einsum/w": o.reshape(-1, 8, o.shape[1]),
    "mlp/gating_einsum/w": gating.swapaxes(1, 2) if swapped else gating,
    "mlp/linear/w": matrix("down"),
  }
  if merged:
    layer["attn/qkv_einsum/w"] = np.stack([heads(x) for x in "qkv"])
  else:
    layer["attn/q_einsum/w"] = heads("q")
    layer["attn/kv_einsum/w"] = np.stack([heads("k"), heads("v")])
  for name, theirs_name in NORMS[generation].items():
    norm = theirs[f"{at}{theirs_name}_layernorm.weight"]
    layer[f"{name}/scale"] = norm
  if generation == 3:
    for x in ("query", "key"):
      norm = theirs[f"{at}self_attn.{x[0]}_norm.weight"]
      layer[f"attn/_{x}_norm/scale"] = norm
  return layer


def official(theirs, generation, **options):
  """Path → array below "transformer"."""
  out = {
    "embedder/input_embedding": theirs["model.embed_tokens.weight"],
    "final_norm/scale": theirs["model.norm.weight"],
  }
  for i in range(3):
    layer = official_layer(theirs, i, generation, **options)
    out |= {f"layer_{i}/{name}": x for name, x in layer.items()}
  return out


def every_query_its_key(theirs):
  """The tensors with twice as many keys."""
  return {
    name: np.concatenate([x, 2 * x])
    if "k_proj" in name or "v_proj" in name else x
    for name, x in theirs.items()
  }  # fmt: skip


def beside(tmp_path, generation, **changes):
  """A path beside a fixture's config.json with other values."""
  content = json.loads(
    (helpers.FIXTURES / f"gemma{generation}/config.json").read_text()
  )
  (tmp_path / "config.json").write_text(json.dumps(content | changes))
  return str(tmp_path / "x")


def bare(path):
  """The mlp's arrays where they are no modules of their own."""
  return path.removesuffix("/w") if "mlp/" in path else path


def same(got, want):
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("swapped", [False, True])
def test_official_flat(tmp_path, generation, swapped):
  tree = {}
  for path, x in official(
    tensors(generation), generation, swapped=swapped
  ).items():
    module, leaf = f"transformer/{path}".rsplit("/", 1)
    tree.setdefault(module, {})[leaf] = x
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(tmp_path / "flat", tree)
  source = readers.open_source(str(tmp_path / "flat"))
  recipe = gemma.recipe(source)
  assert f"Gemma {generation} (unpublished size" in recipe.found
  assert "FLAT" in recipe.found
  same(helpers.in_memory(source, recipe), ours_of(generation))


@pytest.mark.parametrize("prefix", ["", "transformer/", "params/"])
def test_official_nested(tmp_path, prefix):
  arrays = official(tensors(2), 2)
  tree = nested({prefix + bare(path): x for path, x in arrays.items()})
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(tmp_path / "nested", tree)
  source = readers.open_source(str(tmp_path / "nested"))
  recipe = gemma.recipe(source)
  assert "NESTED" in recipe.found
  same(helpers.in_memory(source, recipe), ours_of(2))


def test_official_merged_projections(tmp_path):
  """Where every query has its key, as in Gemma 1 7B."""
  theirs = every_query_its_key(tensors(1))
  path = beside(tmp_path, 1, num_key_value_heads=4)
  source = helpers.Tensors(theirs, path)
  want = helpers.in_memory(source, gemma.recipe(source))
  merged = helpers.Tensors(official(theirs, 1, merged=True))
  same(helpers.in_memory(merged, gemma.recipe(merged)), want)


@pytest.mark.parametrize("prefix", ["params/llm/", "llm/", ""])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_big_vision_npz(tmp_path, prefix, dtype):
  theirs = {k: v.astype(dtype) for k, v in tensors(2).items()}
  layers = [official_layer(theirs, i, 2) for i in range(3)]
  arrays = {
    f"{prefix}layers/{bare(path)}": np.stack([layer[path] for layer in layers])
    for path in layers[0]
  }
  arrays |= {
    f"{prefix}embedder/input_embedding": theirs["model.embed_tokens.weight"],
    f"{prefix}final_norm/scale": theirs["model.norm.weight"],
  }
  if prefix:
    vision = prefix.replace("llm", "img")
    arrays[f"{vision}pos_embedding"] = np.zeros((1, 4, 8), dtype)
  np.savez(tmp_path / "x.npz", **arrays)
  source = readers.open_source(str(tmp_path / "x.npz"))
  got = helpers.in_memory(source, gemma.recipe(source))
  want = {k: v.astype(dtype) for k, v in ours_of(2).items()}
  assert got["decoder/embedder/table"].dtype == dtype
  same(got, want)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_big_vision_npz_of_merged_projections(tmp_path, dtype):
  """[L, 3, N, D, H] where every query has its key, as Gemma 1 7B."""
  theirs = every_query_its_key(tensors(1))
  theirs = {k: v.astype(dtype) for k, v in theirs.items()}
  layers = [official_layer(theirs, i, 1, merged=True) for i in range(3)]
  arrays = {
    f"layers/{bare(path)}": np.stack([layer[path] for layer in layers])
    for path in layers[0]
  }
  arrays["embedder/input_embedding"] = theirs["model.embed_tokens.weight"]
  arrays["final_norm/scale"] = theirs["model.norm.weight"]
  assert arrays["layers/attn/qkv_einsum/w"].shape == (3, 3, 4, 24, 8)
  np.savez(tmp_path / "x.npz", **arrays)
  source = readers.open_source(str(tmp_path / "x.npz"))
  got = helpers.in_memory(source, gemma.recipe(source))
  for i, name in enumerate("qkv"):  # q[l, d, n, h] = qkv[l, 0, n, d, h]
    want = arrays["layers/attn/qkv_einsum/w"][:, i].transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(got[f"decoder/layers/attn/{name}"], want)
    flat = want[1].transpose(1, 2, 0).reshape(32, 24)
    hf = theirs[f"model.layers.1.self_attn.{name}_proj.weight"]
    np.testing.assert_array_equal(flat, hf)


@pytest.mark.parametrize(
  "prefix", ["", "language_model.model.", "model.language_model."]
)
def test_hugging_face_prefixes(prefix):
  theirs = {
    prefix + name.removeprefix("model."): x for name, x in tensors(3).items()
  }
  if prefix:
    theirs["vision_tower.x"] = theirs["multi_modal_projector.y"] = np.zeros(2)
  theirs[f"{prefix}layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4)
  theirs["lm_head.weight"] = theirs[f"{prefix}embed_tokens.weight"]
  source = helpers.Tensors(theirs)
  same(helpers.in_memory(source, gemma.recipe(source)), ours_of(3))


def test_untied_output_is_refused():
  theirs = tensors(2)
  theirs["lm_head.weight"] = theirs["model.embed_tokens.weight"] + 1
  path = str(helpers.FIXTURES / "gemma2/model.safetensors")
  source = helpers.Tensors(theirs, path)
  with pytest.raises(WeightsError, match="lm_head.weight: expected a copy of"):
    engine.make_plan(source, gemma.recipe(source))


# ------------------------------------------------- sizes, vocabulary, errors


def hf_shapes(c, vocab):
  q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
  layer = {
    "self_attn.q_proj": (q, c.width), "self_attn.k_proj": (kv, c.width),
    "self_attn.v_proj": (kv, c.width), "self_attn.o_proj": (c.width, q),
    "mlp.gate_proj": (c.mlp, c.width), "mlp.up_proj": (c.mlp, c.width),
    "mlp.down_proj": (c.width, c.mlp), "input_layernorm": (c.width,),
    "post_attention_layernorm": (c.width,),
  }  # fmt: skip
  if c.post_norms:
    layer |= dict.fromkeys(
      ("pre_feedforward_layernorm", "post_feedforward_layernorm"), (c.width,)
    )
  if c.qk_norm:
    names = ("self_attn.q_norm", "self_attn.k_norm")
    layer |= dict.fromkeys(names, (c.head_dim,))
  out = {"embed_tokens": (vocab, c.width), "norm": (c.width,)}
  for i in range(c.depth):
    out |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
  return {f"model.{name}.weight": shape for name, shape in out.items()}


@pytest.mark.parametrize("name", GEMMA)
def test_published_sizes_are_recognised(name):
  config = GEMMA[name]
  source = helpers.Shapes(hf_shapes(config, config.vocab))
  recipe = gemma.recipe(source)
  assert name in recipe.found
  assert recipe.meta["preset"] == name
  assert f"Gemma {name[5]}" in recipe.found
  plan = engine.make_plan(source, recipe)
  assert plan.leaves["decoder/layers/attn/q"].shape == (
    config.depth, config.width, config.heads, config.head_dim,
  )  # fmt: skip
  assert not plan.dropped and not plan.cut


@pytest.mark.parametrize(
  "rows, kept",
  [(256_128, 256_000), (256_000, 256_000), (257_152, 257_152),
   (257_216, 257_152), (262_208, 262_144)],
)  # fmt: skip
def test_rows_beyond_the_vocabulary(rows, kept):
  source = helpers.Shapes(hf_shapes(GEMMA["gemma2_2b"], rows))
  plan = engine.make_plan(source, gemma.recipe(source))
  assert plan.leaves["decoder/embedder/table"].shape == (kept, 2304)
  cut = [name for name, _ in plan.cut]
  expected = [f"model.embed_tokens.weight[{kept}:{rows}]"]
  assert cut == (expected if rows > kept else [])


def test_wrong_kind_is_told():
  source = readers.open_source(str(helpers.FIXTURES / "siglip"))
  with pytest.raises(WeightsError, match="holds no Gemma.*found .*correct"):
    gemma.recipe(source)


def test_unpublished_size_needs_its_configuration(tmp_path):
  theirs = tensors(2)
  layout = {k: (v.shape, v.dtype) for k, v in theirs.items()}
  path = str(tmp_path / "x.safetensors")
  safetensors_file.write(path, layout, theirs.items())
  with pytest.raises(WeightsError, match="expected config.json beside it"):
    gemma.recipe(readers.open_source(path))
  (tmp_path / "config.json").write_text('{"head_dim": 5}')
  with pytest.raises(WeightsError, match="no multiple of the head size 5"):
    gemma.recipe(readers.open_source(path))


@pytest.mark.parametrize(
  "name, shape, message",
  [
    ("layers.1.mlp.up_proj", (33, 24), r"expected \(32, 24\).*\(33, 24\)"),
    ("layers.0.self_attn.k_proj", None, "expected a tensor .*k_proj.weight"),
    ("layers.2.self_attn.v_proj", None, "layers.2.*v_proj.weight: missing"),
    ("layers.1.self_attn.q_proj", (16, 24), r"found \(16, 24\)"),
    ("layers.0.input_layernorm", (24, 1), r"expected \(24,\)"),
    ("embed_tokens", (40, 24, 1), "expected 2 axes"),
  ],
)
def test_wrong_tensors_are_named(name, shape, message):
  theirs = tensors(2)
  del theirs[f"model.{name}.weight"]
  if shape:
    theirs[f"model.{name}.weight"] = np.zeros(shape)
  path = str(helpers.FIXTURES / "gemma2/model.safetensors")
  source = helpers.Tensors(theirs, path)
  with pytest.raises(WeightsError, match=message) as error:
    engine.make_plan(source, gemma.recipe(source))
  assert path in str(error.value) and "\n" not in str(error.value)


# -------------------------------------------------------------- the way back


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_round_trip_is_bit_exact(tmp_path, generation):
  theirs = {k: v.astype(BF16) for k, v in tensors(generation).items()}
  path = str(helpers.FIXTURES / f"gemma{generation}/x")
  source = helpers.Tensors(theirs, path)
  plan = engine.make_plan(source, gemma.recipe(source))
  orbax_files.write(str(tmp_path / "ours"), plan.leaves, {}, {})
  ours = to_hf.Params(readers.open_source(str(tmp_path / "ours")))
  count = to_hf.write(
    str(tmp_path / "back"), "model", ours, gemma.hf_recipe(ours)
  )
  back = readers.open_source(str(tmp_path / "back"))
  assert count == len(theirs)
  assert sorted(back.names()) == sorted(theirs)
  for name, want in theirs.items():
    assert back.dtype(name) == BF16
    assert back.read(name).tobytes() == want.tobytes(), name


def test_the_way_back_needs_a_checkpoint_of_ours():
  source = readers.open_source(str(helpers.FIXTURES / "gemma1"))
  with pytest.raises(WeightsError, match="no checkpoint of this project"):
    to_hf.Params(source)
  only_eyes = helpers.Tensors({"params/vit/x": np.zeros(2)})
  with pytest.raises(WeightsError, match="holds no decoder"):
    gemma.hf_recipe(to_hf.Params(only_eyes))
