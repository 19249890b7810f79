"""Autoencoders of diffusers and CompVis files, run against diffusers."""

import dataclasses
import functools
import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import unified_2b
from tests.weights import helpers
from unifluid_jax import systems
from unifluid_jax.codecs import copies
from unifluid_jax.codecs import kl_vae as kl_codec
from unifluid_jax.core import presets
from unifluid_jax.core.config import ConfigError
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.weights import (
  autoencoder,
  convert,
  engine,
  kl_vae,
  readers,
)
from unifluid_jax.weights.rows import WeightsError, regex

FIXTURES = Path(__file__).with_name("fixtures")
TINY = presets.VaeConfig(
  4, (1, 2), 1, 3, encoder_attention=True, groups=2,
  latent_mean=0.0, latent_scale=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def source():
  """diffusers' file, in memory."""
  file = readers.open_source(str(FIXTURES / "tiny_vae"))
  out = helpers.Tensors({name: file.read(name) for name in file.names()})
  out.path = file.path
  return out


@pytest.fixture(scope="module")
def params(source):
  """Our arrays by path."""
  return helpers.in_memory(source, kl_vae.recipe(source))


def renamed(source, rules):
  def name(text):
    for a, b in rules.items():
      text = text.replace(a, b)
    return text

  tensors = {name(k): v for k, v in source.tensors.items()}
  return helpers.Tensors(tensors, source.path)


def same(got, want):
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_numbers_are_those_of_diffusers(tmp_path):
  """Moments and images, by the command's way: file → Orbax → our modules."""
  want = np.load(FIXTURES / "vision.npz")
  tree, meta = helpers.convert(
    FIXTURES / "tiny_vae", kl_vae.recipe, tmp_path / "vae"
  )
  variables = {"params": tree["vae"]}

  def run(method, x):
    apply = functools.partial(KlVae(TINY).apply, method=method)
    with jax.default_matmul_precision("highest"):
      return jax.jit(apply)(variables, jnp.asarray(x))

  moments = run("encode", want["vae_images"])
  images = run("decode", want["vae_mean"])
  mean, log_variance = np.split(np.asarray(moments), 2, axis=-1)
  np.testing.assert_allclose(mean, want["vae_mean"], atol=5e-5)
  np.testing.assert_allclose(log_variance, want["vae_logvar"], atol=5e-5)
  np.testing.assert_allclose(images, want["vae_decoded"], atol=5e-5)
  assert np.std(want["vae_mean"]) > 0.1 < np.std(want["vae_decoded"])
  stats = json.loads((tmp_path / "vae" / copies.STATS).read_text())
  assert stats == {"mean": 0.0, "scale": 0.5}


def codec_of(path, vae, **changes):
  """Of the shipped system with another autoencoder."""
  config = systems.resolve(unified_2b.get_config())
  model = dataclasses.replace(
    config.model, vae_path=str(path), vae=vae, **changes
  )
  return systems.build(dataclasses.replace(config, model=model)).codec


def test_a_system_finds_what_was_imported(tmp_path):
  """Its codec reads weights and statistics where the engine put them."""
  helpers.convert(FIXTURES / "tiny_vae", kl_vae.recipe, tmp_path / "vae")
  unknown = dataclasses.replace(TINY, latent_mean=None, latent_scale=None)
  frozen = codec_of(tmp_path / "vae", unknown).load()
  assert (frozen["latent_mean"], frozen["latent_scale"]) == (0.0, 0.5)
  level = frozen["vae"]["encoder"]["down_1"]
  assert level["attention_0"]["q"]["kernel"].shape == (8, 8)
  half = codec_of(tmp_path / "vae", unknown, latent_std=0.5)
  assert half.load()["latent_scale"] == 0.25


def test_older_attention_names(source, params):
  old = renamed(
    source,
    {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.",
     ".to_out.0.": ".proj_attn."},
  )  # fmt: skip
  recipe = kl_vae.recipe(old)
  assert "older diffusers names" in recipe.found
  same(helpers.in_memory(old, recipe), params)
  # Some files keep these as 1 x 1 convolutions.
  points = ("query.weight", "key.weight", "value.weight", "proj_attn.weight")
  conv = helpers.Tensors(
    {
      k: v[..., None, None] if k.endswith(points) else v
      for k, v in old.tensors.items()
    },
    source.path,
  )
  same(helpers.in_memory(conv, kl_vae.recipe(conv)), params)


def test_compvis_checkpoint(tmp_path, params):
  """Reversed decoder levels, 1 x 1 attention, weights below state_dict."""
  shutil.copy(FIXTURES / "tiny_vae.ckpt", tmp_path)
  shutil.copy(FIXTURES / "tiny_vae" / "config.json", tmp_path)
  file = readers.open_source(str(tmp_path / "tiny_vae.ckpt"))
  recipe = kl_vae.recipe(file)
  assert "CompVis names" in recipe.found
  assert recipe.meta["vae"]["groups"] == 2
  same(helpers.in_memory(file, recipe), params)


def test_whole_diffusion_model(tmp_path, params):
  shutil.copy(FIXTURES / "tiny_vae" / "config.json", tmp_path)
  file = readers.open_source(str(FIXTURES / "tiny_vae.ckpt"))
  tensors = {f"first_stage_model.{k}": file.read(k) for k in file.names()}
  one = np.zeros(1, np.float32)
  other = (
    "model.diffusion_model.out.weight", "model_ema.decay", "betas",
    "first_stage_model.loss.logvar", "cond_stage_model.transformer.w",
    "alphas_cumprod", "loss.discriminator.main.0.weight",
  )  # fmt: skip
  whole = helpers.Tensors(
    {**tensors, **dict.fromkeys(other, one)}, str(tmp_path / "sd.ckpt")
  )
  recipe = kl_vae.recipe(whole)
  same(helpers.in_memory(whole, recipe), params)
  plan = engine.make_plan(whole, recipe)
  assert {name for name, _ in plan.dropped} == set(other)


def test_back_to_diffusers_bit_by_bit(tmp_path, source):
  """The command's two ways, one after the other."""
  spec = f"kl_vae:{FIXTURES / 'tiny_vae'}"
  convert.to_checkpoint(spec, str(tmp_path / "ours"), lambda _: None)
  convert.to_hugging_face(
    f"kl_vae:{tmp_path / 'ours'}", str(tmp_path / "hf"), lambda _: None
  )
  back = readers.open_source(str(tmp_path / "hf"))
  assert set(back.names()) == set(source.names())
  for name in source.names():
    np.testing.assert_array_equal(back.read(name), source.read(name), name)
  # config.json says what diffusers' own says.
  written = json.loads((tmp_path / "hf" / "config.json").read_text())
  theirs = json.loads((FIXTURES / "tiny_vae" / "config.json").read_text())
  assert written == {key: theirs.get(key) for key in written}
  assert kl_vae.recipe(back).meta == kl_vae.recipe(source).meta


def test_settings_of_a_trained_run_and_its_measured_scale(tmp_path, params):
  ours = helpers.Tensors(params, str(tmp_path))
  assert kl_vae.hf_recipe(ours).files == {}
  step = tmp_path / "checkpoints" / "7"
  (step / "meta").mkdir(parents=True)
  (step / "_CHECKPOINT_METADATA").write_text("{}")
  config = unified_2b.get_config()
  config.model.vae = dict(
    preset="", base=4, multipliers=(1, 2), blocks=1, latent=3, attention=True,
    groups=2, stem=1, latent_mean=None, latent_scale=None,
  )  # fmt: skip
  config = json.loads(json.dumps(config.to_dict()))
  (step / "meta" / "metadata").write_text(json.dumps({"config": config}))
  written = kl_vae.hf_recipe(ours).files["config.json"]
  assert written["scaling_factor"] is None
  stats = {"mean": 0.25, "scale": 1.5}
  (tmp_path / "latents.json").write_text(json.dumps(stats))
  written = kl_vae.hf_recipe(ours).files["config.json"]
  assert (written["shift_factor"], written["scaling_factor"]) == (0.25, 1.5)
  assert written["norm_num_groups"] == 2


def test_a_folded_stem_has_no_diffusers_form(params):
  kernel = params["vae/encoder/conv_in/kernel"]
  wide = {**params, "vae/encoder/conv_in/kernel": np.tile(kernel, (1, 1, 4, 1))}
  with pytest.raises(WeightsError, match="reads 12 channels.*stem=1"):
    kl_vae.hf_recipe(helpers.Tensors(wide))


def published(name, format_):
  """The tensors of a published size under a format's names, without memory."""
  config = presets.VAE[name]
  out = {}
  layout = autoencoder.DENSE if format_ == 0 else autoencoder.POINT
  rows = autoencoder.rows(format_, "vae", len(config.multipliers), layout)
  for path, shape in kl_vae._like(config).items():
    (row, numbers) = next(
      (r, m.groupdict()) for r in rows if (m := regex(r.target).fullmatch(path))
    )
    if len(shape) == 4:
      shape = (shape[3], shape[2], *shape[:2])
    elif len(shape) == 2:
      shape = shape[::-1] + (1, 1) * (format_ == 2)
    zero = np.zeros((), np.float32)
    out[row.source.format(**numbers)] = np.broadcast_to(zero, shape)
  return helpers.Tensors(out)


def test_published_sizes_are_recognised():
  sd = published("sd_f8", 0)
  assert len(sd.tensors) == 248
  assert sum(x.size for x in sd.tensors.values()) == 83_653_863
  recipe = kl_vae.recipe(sd)
  assert recipe.meta["preset"] == "sd_f8"
  assert recipe.files["latents.json"] == {"mean": 0.0, "scale": 0.18215}
  mar = published("mar_kl16", 2)
  # MAR models/vae.py: attention after both blocks of the last level down.
  assert mar.shape("encoder.down.4.attn.1.q.weight") == (512, 512, 1, 1)
  assert mar.shape("decoder.up.0.block.2.conv2.weight") == (128, 128, 3, 3)
  assert mar.shape("decoder.up.4.block.0.conv1.weight") == (512, 512, 3, 3)
  recipe = kl_vae.recipe(mar)
  assert recipe.meta["preset"] == "mar_kl16"
  assert recipe.files["latents.json"] == {"mean": 0.0, "scale": 0.2325}
  engine.make_plan(mar, recipe)


def test_another_scale_is_kept_apart_from_the_preset(tmp_path):
  sd = published("sd_f8", 0)
  sd.path = str(tmp_path / "vae.safetensors")
  settings = {"latent_channels": 4, "scaling_factor": 0.13025}
  (tmp_path / "config.json").write_text(json.dumps(settings))
  recipe = kl_vae.recipe(sd)
  assert recipe.meta["preset"] == ""
  assert recipe.files["latents.json"] == {"mean": 0.0, "scale": 0.13025}


def test_another_activation_is_refused(tmp_path):
  shutil.copytree(FIXTURES / "tiny_vae", tmp_path / "vae")
  file = tmp_path / "vae" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"act_fn": "relu"}))
  with pytest.raises(WeightsError, match="act_fn: expected silu, found relu"):
    kl_vae.recipe(readers.open_source(str(tmp_path / "vae")))


def test_a_codec_computes_what_its_weights_were_trained_as(
  tmp_path, monkeypatch
):
  """Groups show in no shape; a scale beside the weights is told, if unused."""
  path = str(tmp_path / "vae")
  convert.to_checkpoint(f"kl_vae:{FIXTURES / 'tiny_vae'}", path, lambda _: None)
  told = []
  log = types.SimpleNamespace(WARNING=1, log_first_n=lambda *a: told.append(a))
  monkeypatch.setattr(kl_codec, "logging", log)
  codec_of(path, TINY).load()
  assert not told
  frozen = codec_of(path, dataclasses.replace(TINY, latent_scale=0.2)).load()
  assert frozen["latent_scale"] == np.float32(0.2)
  assert told[0][3] == (0.0, 0.2) and told[0][5] == (0.0, 0.5)
  others = codec_of(path, dataclasses.replace(TINY, groups=4))
  with pytest.raises(ConfigError, match=r"model\.vae\.groups=4 .there 2"):
    others.load()


def test_unknown_scale_has_to_be_measured(source, tmp_path):
  alone = helpers.Tensors(
    {k: np.tile(v, (8,) * v.ndim) if v.ndim == 1 else v
     for k, v in source.tensors.items()},
    str(tmp_path / "x.safetensors"),
  )  # fmt: skip
  assert kl_vae.recipe(alone).files == {}
  wide = presets.VaeConfig(32, (1, 2), 1, 24)
  with pytest.raises(ConfigError, match="measure the latents"):
    codec_of(tmp_path, wide).statistics({})


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: {"a": t["quant_conv.bias"]}, "is no KL autoencoder.*found a"),
    (lambda t: t.pop("decoder.conv_out.bias"), "decoder/conv_out/bias.*missi"),
    (lambda t: t.pop("encoder.conv_in.bias"), "expected encoder.conv_in.bias"),
    (
      lambda t: t.update({"extra.weight": t["quant_conv.bias"]}),
      "extra.weight.*unknown tensor",
    ),
    (
      lambda t: t.update({"encoder.conv_in.weight": np.zeros((4, 3, 5, 5))}),
      r"encoder.conv_in.weight.*expected.*\(4, 3, 3, 3\).*found \(4, 3, 5, 5",
    ),
  ],
)
def test_wrong_files_are_named(source, change, message):
  tensors = dict(source.tensors)
  kept = change(tensors)
  tensors = kept if isinstance(kept, dict) else tensors
  wrong = helpers.Tensors(tensors, source.path)
  with pytest.raises(WeightsError, match=message) as e:
    engine.make_plan(wrong, kl_vae.recipe(wrong))
  assert "\n" not in str(e.value)


def test_groups_that_do_not_divide(source, tmp_path):
  alone = helpers.Tensors(source.tensors, str(tmp_path / "x.safetensors"))
  with pytest.raises(WeightsError, match="no multiple.*32 groups.*config.json"):
    kl_vae.recipe(alone)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(WeightsError, match="config.json: expected.*no JSON"):
    kl_vae.recipe(alone)
