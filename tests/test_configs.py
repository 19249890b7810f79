"""Every experiment is imported, resolved and shape-evaluated at full size."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import liquid_2b
from tests.systems.conftest import whole_loss
from unifluid_jax import systems, train
from unifluid_jax.core import config_files, optim, parallel, presets
from unifluid_jax.core.config import MeshConfig
from unifluid_jax.data import fields
from unifluid_jax.data.transfers import tasks
from unifluid_jax.systems import unifluid_sampling

# Of the scaling experiments; those whose decoder has a preset.
SIZES = tuple(size for size in liquid_2b.SIZES if size in presets.DECODER)
CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = config_files.shipped_names()
ARGS = {
  "vae": ("", "shapes", "folder", "emoji", "emoji_full"),
  "tokenizer": (
    "",
    "shapes",
    "shapes_aligned",
    "folder",
    "vq8",
    "chameleon",
    "taming",
    "multiscale_shapes",
    "var16",
    "emoji",
    "multiscale_emoji_full",
  ),
  "emoji": (
    "",
    "full",
    "longer",
    "full,edits",
    "liquid",
    "unitoken",
    "vargpt",
    "full,vargpt",
    "small,t2i_only",
  ),
  "debug": ("", "vae", "raster"),
  "distill": ("shapes",),
  "edit": ("", "shapes"),
  "reward": (
    "shapes",
    "liquid",
    "unitoken",
    "vargpt",
    "shapes,policy",
    "liquid,policy",
    "unitoken,policy",
    "vargpt,policy",
  ),
  "aesthetic": ("",),
  "liquid_2b": (
    *SIZES,
    "gemma2_9b,constant",
    "t2i_only",
    "text_only,apart",
    "resolutions",
  ),
  "liquid_7b": ("", "pretrain", "sft", "sft,apart"),
  "liquid_shapes": (
    "",
    "t2i_only",
    "i2t_only",
    "text_only",
    "apart",
    "in_context,apart",
    "longer",
    "questions",
    "dialogues",
  ),
  "liquid_smol": ("", "t2i_only", "apart"),
  "unitoken_7b": ("stage1", "stage2"),
  "unitoken_shapes": (
    "",
    "base",
    "discrete",
    "t2i_only",
    "i2t_only",
    "reading",
    "base,reading,i2t_only",
    "reading,discrete",
    "longer",
  ),
  "vargpt_7b": tuple(
    stage + variant
    for stage in ("stage1", "stage2", "stage3")
    for variant in ("", ",released")
  ),
  "vargpt_shapes": (
    "",
    "stage0",
    "stage1",
    "stage2",
    "stage3",
    "joint,causal",
    "stage3,noise",
  ),
  "var": ("", "d20", "d24", "d30", "d36", "shapes"),
  "transfer": tuple(row.name for row in tasks.ROWS),
}
ABLATIONS = ("", "t2i_only", "i2t_only", "raster", "lambda=0.1")


def load(name, arg=""):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg), module.__doc__


CASES = [(n, a) for n in NAMES for a in ARGS.get(n, ABLATIONS)]


@pytest.mark.parametrize("name, arg", CASES)
def test_config_resolves(name, arg):
  tree, doc = load(name, arg)
  resolved = systems.resolve(tree)
  assert resolved.name.startswith(name) and doc
  assert "python -m" in doc or "make" in doc or name.startswith("unified_")
  assert set(unnamed(tree, resolved)) <= {
    "text.dialogue", "text.special", "text.chat"
  }  # fmt: skip


def unnamed(tree, resolved, above=""):
  """Keys of a configuration that no flag can set, since its file lacks them."""
  for field in dataclasses.fields(resolved):
    value = getattr(resolved, field.name)
    if field.name not in tree:
      yield above + field.name
    elif dataclasses.is_dataclass(value) and hasattr(tree[field.name], "keys"):
      yield from unnamed(tree[field.name], value, f"{above}{field.name}.")


def test_transfer_takes_its_settings_from_the_row():
  def of(arg, **changes):
    tree, _ = load("transfer", arg)
    tree.update_from_flattened_dict(changes)
    return systems.resolve(tree)

  c = of("cococap")
  # 5 epochs of 113,287 images, 256 a step; a twentieth of it warms up.
  assert (c.steps, c.optim.warmup, c.batch["i2t"]) == (2212, 110, 256)
  assert (c.optim.lr, c.optim.weight_decay, c.optim.decay) == (
    1e-5, 1e-6, "paligemma"
  )  # fmt: skip
  assert (c.sampling.text, c.sampling.beams, c.text.suffix) == ("beam", 2, 32)
  c = of("screen2words")
  assert (c.model.decoder.dropout, c.loss.label_smoothing) == (0.3, 0.2)
  assert (c.sampling.text, c.loss.text_mean) == ("greedy", "answers")
  c = of("science_qa")
  assert (c.optim.rates["vit"], c.optim.rates["head"]) == (0, 0)
  assert of("gqa").optim.rates["vit"] == 1 and of("nlvr2").data.images == 2
  # 34,602 questions of train: those of val are for scoring.
  assert of("textvqa").steps == 5 * 34_602 // 256
  c = of("chartqa_aug")
  mixed = {s.split: s.weight for s in c.data.train.values()}
  assert mixed == {
    "train_human+val_human": 7398, "train_augmented+val_augmented": 20_901
  }  # fmt: skip
  assert set(c.data.eval) == {"chartqa_human", "chartqa_aug"}
  c = of("cococap", **{"batch.i2t": 64})
  assert (c.steps, c.optim.warmup) == (8850, 442)
  assert of("cococap", steps=40).optim.warmup == 2


@pytest.mark.parametrize("arg", ["", "longer", "full"])
def test_longer_runs_of_emoji_still_draw_any_cell(arg):
  """As they are sampled: at --config.steps they end in random order too."""
  tree, _ = load("emoji", arg)
  tree.steps = 3 * tree.steps
  c = systems.resolve(tree)
  assert c.loss.random_until == c.loss.raster_from == c.steps
  assert c.sampling.order == "random" and unifluid_sampling.draws_any_cell(c)


def test_shorter_runs_of_shapes_end_in_raster_order_too():
  tree, _ = load("shapes", "")
  c = systems.resolve(tree)
  assert (c.loss.random_until, c.loss.raster_from) == (250, 700)
  tree.steps = 480
  c = systems.resolve(tree)
  assert (c.loss.random_until, c.loss.raster_from) == (50, 140)


def test_runs_in_raster_order_are_sampled_in_it():
  c = systems.resolve(load("emoji", "raster")[0])
  assert not unifluid_sampling.draws_any_cell(c)
  assert c.sampling.order == "raster"


def test_transfer_starts_from_the_base_it_is_told():
  c = systems.resolve(load("transfer", "gqa,debug")[0])
  assert (c.model.decoder.width, c.init["all"]) == (32, "runs/debug")
  for arg, message in (
    ("gqq", "no transfer task 'gqq': use one of cococap, textcaps"),
    ("", "no transfer task ''"),
    ("gqa,vae", "no base 'vae': use one of unified_2b,"),
  ):
    with pytest.raises(ValueError, match=message):
      load("transfer", arg)


def batch_of(c):
  """Shapes of one global batch."""

  def spec(rows, shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((rows, *shape), dtype)

  if c.system in ("liquid", "vargpt"):
    inputs = systems.build(c).inputs
    return {
      task: {
        name: spec(rows, *shape)
        for name, shape in fields.shapes(inputs[task]).items()
      }
      for task, rows in c.batch.items()
      if rows
    }
  m, t, n = c.model, c.text, c.batch
  drawn = (m.image_size, m.image_size, 3)
  if c.system in ("vae", "vq"):
    return {"image": {"image": spec(n["image"], drawn)}}
  seen = (m.vit.image_size, m.vit.image_size, 3)
  batch = {}
  if rows := n.get("t2i"):
    batch["t2i"] = {
      "prompt": spec(rows, (t.prompt,), jnp.int32),
      "image.pixels": spec(rows, drawn),
    }
  if rows := n.get("i2t"):
    batch["i2t"] = {
      "seen": spec(rows, seen),
      "prefix": spec(rows, (t.prefix,), jnp.int32),
      "suffix": spec(rows, (t.suffix,), jnp.int32),
    }
  if rows := n.get("edit"):
    batch["edit"] = {
      "seen": spec(rows, seen),
      "prompt": spec(rows, (t.prompt,), jnp.int32),
      "image.pixels": spec(rows, drawn),
      "source.pixels": spec(rows, drawn),
    }
  return batch


def frozen_of(c):
  from unifluid_jax.models.kl_vae import KlVae

  size = c.model.image_size
  params = jax.eval_shape(
    lambda: KlVae(c.model.vae).init(
      jax.random.key(0), jnp.zeros((1, size, size, 3))
    )
  )["params"]
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  return {
    "codec": {"vae": params, "latent_mean": scalar, "latent_scale": scalar}
  }


@pytest.mark.parametrize(
  "name",
  [
    "unified_2b",
    "unified_2b_gemma1",
    "unified_700m",
    "vae",
    "tokenizer",
    "folder",
    "edit",
    "liquid_2b",
    "liquid_7b",
    "vargpt_7b",
    "emoji:full,edits",
    "emoji:vargpt",
  ],
)
def test_full_size_loss_has_a_shape(name):
  c = systems.resolve(load(*name.split(":"))[0])
  system = systems.build(c)
  params = jax.eval_shape(system.init, jax.random.key(0))
  if c.system == "unifluid":
    frozen = frozen_of(c)
  else:
    frozen = systems.frozen_shapes(system)
  step = jax.ShapeDtypeStruct((), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  loss, metrics = jax.eval_shape(
    whole_loss(system), params, frozen, batch_of(c), key, step
  )
  assert loss.shape == () and all(x.shape == () for x in metrics.values())


def count(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "name, decoder, tolerance",
  [
    ("unified_2b", 2_614_341_888, 0),
    ("unified_2b_gemma1", 2_506_172_416, 0),
    ("unified_700m", 698e6 + 256_000 * 1152, 1e6),
  ],
)
def test_full_size_parameters(name, decoder, tolerance):
  """The decoder as published; SigLIP without its pooling head; MAR-B's head
  on 2304 conditions 37.3M."""
  c = systems.resolve(load(name)[0])
  params = jax.eval_shape(systems.build(c).init, jax.random.key(0))
  assert abs(count(params["decoder"]) - decoder) <= tolerance
  assert count(params["vit"]) == 412_442_352
  if name == "unified_2b":
    assert abs(count(params["head"]) - 37.3e6) < 0.05e6


def test_vargpt_is_llava_with_var():
  """Published sizes but for the classes of VAR, of which two rows are left.

  Its projectors: 1920 → 1920 → 4096 and 4096 → 4096 → 1920.
  """
  c = systems.resolve(load("vargpt_7b", "stage1")[0])
  params = systems.init_shapes(systems.build(c))
  sizes = {name: count(part) for name, part in params.items()}
  w, d = c.model.visual_decoder.width, c.model.decoder.width
  assert sizes == {
    "decoder": 6_738_415_616 + 2 * 64 * d,
    "encoder": 290_909_184,
    "projector": 1024 * d + d * d + 2 * d,
    "in_projector": w * w + w * d + w + d,
    "out_projector": d * d + d * w + d + w,
    "visual_decoder": 2_010_020_356 - 999 * w,
  }
  gen = {"in_projector", "out_projector"}
  trained = {
    "stage1": gen,
    "stage2": {"decoder", "projector"},
    "stage3": {*gen, "visual_decoder"},
  }
  for stage, names in trained.items():
    rates = systems.resolve(load("vargpt_7b", stage)[0]).optim.rates
    assert {name for name, rate in rates.items() if rate} == names
  released = systems.resolve(load("vargpt_7b", "stage2,released")[0])
  assert {k for k, v in released.optim.rates.items() if v} == {"decoder"}
  assert (released.model.slots, released.model.null) == ("causal", "noise")


@pytest.mark.parametrize("name, arg, published", [
  ("liquid_7b", "pretrain", 8_537_680_896),
  ("liquid_7b", "sft", 8_537_680_896),
  ("liquid_2b", "gemma2_2b", 2_614_341_888),
  ("liquid_2b", "gemma2_9b", 9_241_705_984),
  ("liquid_2b", "llama3_1b", 1_235_814_400),
  ("liquid_2b", "qwen2_5_0_5b", 494_032_768),
])  # fmt: skip
def test_liquid_is_a_published_decoder_and_8192_rows(name, arg, published):
  """Whose output layers are all tied. Rows of all tasks have 2048 tokens."""
  c = systems.resolve(load(name, arg)[0])
  params = jax.eval_shape(systems.build(c).init, jax.random.key(0))
  assert count(params) == published + 8192 * c.model.decoder.width
  if name == "liquid_7b":
    assert count(params) == 8_562_846_720
    assert (c.optim.clip, c.loss.max_z) == (0.5, 5e-5)
  n, text, seen = c.model.image_tokens, c.text, 2 + len(c.model.user)
  assert (n, sum(c.batch.values())) == (1024, 1024)
  assert text.prompt + n + 2 == seen + n + text.prefix + text.suffix == 2048
  assert text.prefix + c.model.text_suffix == 2048
  assert c.text.special["boi"] < c.model.code_offset


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_unitoken_has_the_published_parts_and_trains_what_it_says(stage):
  """Chameleon 7B; SigLIP with 27 x 27 positions; an adapter of two layers."""
  c = systems.resolve(load("unitoken_7b", stage)[0])
  system = systems.build(c)
  params = systems.init_shapes(system)
  assert {name: count(x) for name, x in params.items()} == {
    "decoder": 7_013_666_816, "vit": 412_987_248, "projector": 21_504_000
  }  # fmt: skip
  batch = {
    task: {
      name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype)
      for name, x in fields.shapes(system.inputs[task]).items()
    }
    for task, rows in c.batch.items() if rows
  }  # fmt: skip
  assert batch["i2t"]["seen.views"].shape[1:] == (5, 384, 384, 3)
  assert batch["i2t"]["seen.index"].shape[1:] == (3699,)
  key = jax.eval_shape(lambda: jax.random.key(0))
  loss, metrics = jax.eval_shape(
    whole_loss(system), params, systems.frozen_shapes(system), batch, key,
    jax.ShapeDtypeStruct((), jnp.int32),
  )  # fmt: skip
  assert loss.shape == () and "loss_text" in metrics

  def rate(path):
    return c.optim.lr * optim.rate_of(c.optim.rates, path)

  assert rate("vit/position") == rate("vit/patch/kernel") == 0
  effective = {
    "stage1": (0.0, 1e-5, 1e-3), "stage2": (1e-5, 1e-5, 1e-5)
  }[stage]  # fmt: skip
  found = ("decoder/lm_head/table", "vit/norm/scale", "projector/in/kernel")
  np.testing.assert_allclose([rate(path) for path in found], effective)


def test_2b_state_is_sharded_everywhere():
  """On data 2 x fsdp 4: what one device holds is a quarter, not a copy."""
  tree, _ = load("unified_2b")
  tree.mesh = dict(data=2, fsdp=4, tensor=1)
  tree.model.attention = "plain"
  c = systems.resolve(tree)
  job = train.make_job(c, systems.build(c))
  whole = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(job.shapes)
  )
  held = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(job.shapes)
  )
  assert held < whole / 4 * 1.02


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 2, 4)])
@pytest.mark.parametrize(
  "name", ["unified_2b", "unified_2b_gemma1", "shapes", "liquid_7b"]
)
def test_every_parameter_has_one_rule_on_many_meshes(name, sizes):
  c = systems.resolve(load(name)[0])
  system = systems.build(c)
  params = jax.eval_shape(system.init, jax.random.key(0))
  mesh = parallel.make_mesh(MeshConfig(*sizes))
  places = parallel.shardings(params, params, system.parts, mesh)
  large = [
    np.prod(p.shard_shape(x.shape)) * mesh.shape["fsdp"] <= np.prod(x.shape)
    for x, p in zip(jax.tree.leaves(params), jax.tree.leaves(places),
                    strict=True)
    if np.prod(x.shape) > parallel.SMALL
  ]  # fmt: skip
  assert all(large)


def test_unknown_argument_is_refused():
  with pytest.raises(ValueError, match="unknown config argument 'lamda=1'"):
    load("shapes", "lamda=1")


@pytest.mark.parametrize(
  "name, last", [("liquid_shapes", "questions"), ("liquid_2b", "qwen2_5_32b")]
)
def test_an_error_names_what_this_file_knows(name, last):
  with pytest.raises(ValueError, match=f"'question'; known: .*, {last}$"):
    load(name, "question")
