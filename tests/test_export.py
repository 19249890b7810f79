"""Exported models: the same numbers from one folder that can be shared."""

import dataclasses
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unifluid_jax
from tests.systems import test_contract
from tests.weights import helpers
from unifluid_jax import (
  api,
  boxed,
  exported,
  exporting,
  hub,
  loading,
  systems,
)
from unifluid_jax.apps import runs
from unifluid_jax.codecs import copies
from unifluid_jax.core import checkpoint, parallel
from unifluid_jax.data import text
from unifluid_jax.evals.report import run_results
from unifluid_jax.weights import (
  gemma,
  hf_parts,
  readers,
  safetensors_file,
  siglip,
)
from unifluid_jax.weights.rows import WeightsError

REPO = Path(__file__).parent.parent
SYSTEMS = ("unifluid", "liquid", "unitoken", "vargpt", "var")
STEP, CAPTIONS = 0, ("aa", "ab", "ba", "bb")


def thawed(node):
  """A configuration as JSON holds it."""
  if dataclasses.is_dataclass(node):
    node = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
  if isinstance(node, Mapping):
    return {key: thawed(value) for key, value in node.items()}
  return [thawed(x) for x in node] if isinstance(node, tuple | list) else node


def random(shapes, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.float32(0.1 * rng.normal(size=x.shape)), shapes
  )


class Run:
  """A run of random weights and averages, as `main` leaves one."""

  def __init__(self, name, root):
    config = test_contract.config_of(name)
    self.folder = root / "runs" / name
    self.folder.mkdir(parents=True)
    config = dataclasses.replace(
      config,
      data=dataclasses.replace(config.data, root=str(root / "data")),
      optim=dataclasses.replace(config.optim, ema=0.9),
    )
    system = systems.build(config)
    shapes = systems.init_shapes(system)
    self.params, self.ema = random(shapes, 1), random(shapes, 2)
    frozen = random(system.codec.shapes(), 3)
    if "latent_mean" in frozen:  # of files, times config.loss.latent_std
      frozen |= {"latent_mean": np.float32(0.1), "latent_scale": np.float32(1)}
    self.codec = frozen
    note = {"weights": copies.digest(next(iter(system.codec.saved(frozen)[0]
                                               .values())))}  # fmt: skip
    if "latent_mean" in frozen:
      note |= {"mean": 0.1, "scale": 1.0}
    copies.copy(system.codec, frozen, note, str(self.folder))
    if (root / "tokenizer.model").exists():
      shutil.copy(root / "tokenizer.model", self.folder)
    meta = {
      "config": thawed(config), "jax": "0", "identity": {"codec": note, "data":
      {"shapes": {"digest": "d" * 64, "path": "shapes", "files": 1}}},
    }  # fmt: skip
    state = {"params": self.params, "ema": self.ema}
    checkpoint.write_once(str(self.folder), state, meta)
    self.path = str(self.folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  place = tmp_path_factory.mktemp("export")
  text.train(CAPTIONS * 3, place / "tokenizer.model", 16)
  return place


@pytest.fixture(scope="module")
def run(root):
  return Run("unifluid", root)


@pytest.fixture(scope="module")
def folder(run, root):
  """The run with bfloat16 weights and two licences of its data."""
  data = root / "data"
  (data / "shapes" / "pack").mkdir(parents=True)
  (data / "LICENSE.txt").write_text("all of it")
  (data / "shapes" / "pack" / "ATTRIBUTION.md").write_text("by somebody")
  (data / "shapes" / "license_plates.png").write_text("no licence")
  (data / "shapes" / "LICENCES").mkdir()
  (data / "shapes" / "LICENCES" / "pictures.CC-BY-4.0.txt").write_text("by")
  (data / "shapes" / "LICENCES" / "names.LICENSE").write_text("keep this")
  run_results.append(run.path, [
    {"step": STEP, "metric": "captions/exact", "value": 0.25, "floor": 0.1},
    {"step": STEP, "metric": "captions/exact", "value": 0.75, "floor": 0.1},
    {"step": 7, "metric": "later/score", "value": 3.0},
    {"step": STEP, "metric": "captions", "seconds": 3.0},
  ])  # fmt: skip
  to = root / "shared"
  said = []
  exporting.export(run.path, str(to), dtype="bfloat16", say=said.append)
  assert said[-1].startswith(f"wrote {to}: ")
  return to


def same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)

  def equal(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)

  jax.tree.map(equal, got, want)


def rounded(tree):
  """Networks in bfloat16, scalars as they are."""
  return jax.tree.map(
    lambda x: jnp.float32(jnp.asarray(x, jnp.bfloat16)) if x.ndim else x, tree
  )


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_exported_model_has_the_numbers_of_its_run(
  name, root, run, tmp_path
):
  """In float32 bit for bit; of another run no file is needed."""
  trained = run if name == "unifluid" else Run(name, tmp_path)
  if name not in ("unifluid", "var"):
    shutil.copy(root / "tokenizer.model", trained.folder)
  want = loading.read(trained.path)
  exporting.export(trained.path, str(tmp_path / "a" / "full"))
  exporting.export(trained.path, str(tmp_path / "half"), dtype="bfloat16")
  elsewhere = tmp_path / "b"
  (tmp_path / "a").rename(elsewhere)
  got = loading.read(str(elsewhere / "full"))
  same(got.params, trained.ema)
  same(got.params, want.params)
  same(got.frozen, want.frozen)
  assert got.config.model == systems.with_codec(
    want.config, systems.codec_path(got.config)
  ).model  # fmt: skip
  assert got.config.sampling == want.config.sampling
  assert (got.tokenizer is None) == (name == "var")
  half = loading.read(str(tmp_path / "half"))
  same(half.params, rounded(trained.ema))
  exact = want.system.frozen["codec"].exact
  assert exact == (name != "unifluid")
  same(half.frozen, want.frozen if exact else rounded(want.frozen))


def test_both_forms_draw_alike(run, tmp_path):
  """A run and its exported folder through the API."""
  exporting.export(run.path, str(tmp_path / "full"))
  models = api.load(run.path), api.load(str(tmp_path / "full"))
  a, b = (np.asarray(m.generate("ab", seed=3)) for m in models)
  np.testing.assert_array_equal(a, b)
  assert np.ptp(a) > 0


def test_raw_weights_are_those_that_were_trained(run, tmp_path):
  exporting.export(run.path, str(tmp_path / "raw"), raw=True)
  same(loading.read(str(tmp_path / "raw")).params, run.params)
  card = (tmp_path / "raw" / "README.md").read_text()
  assert "| weights | not averaged |" in card


def test_the_folder_tells_what_it_is(folder, run):
  settings = json.loads((folder / "config.json").read_text())
  assert settings["system"] == "unifluid" and settings["step"] == STEP
  assert settings["dtype"] == "bfloat16" and settings["averaged"] is True
  count = sum(x.size for x in jax.tree.leaves(run.params))
  assert settings["parameters"] == count
  names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
  assert names == {
    "config.json", "model.safetensors", "codec.safetensors", "tokenizer.model",
    "digests.json", "README.md", "licenses/LICENSE.txt",
    "licenses/ATTRIBUTION.md", "licenses/pictures.CC-BY-4.0.txt",
    "licenses/names.LICENSE",
  }  # fmt: skip
  source = readers.open_source(str(folder / "model.safetensors"))
  assert {source.dtype(n).name for n in source.names()} == {"bfloat16"}
  codec = readers.open_source(str(folder / "codec.safetensors"))
  assert codec.dtype("latent_scale") == np.float32
  assert codec.dtype("vae/encoder/conv_in/kernel").name == "bfloat16"


def test_the_card_is_filled_from_the_run(folder):
  card = (folder / "README.md").read_text()
  _, head, body = card.split("---\n", 2)
  assert "library_name: unifluid_jax\nlicense: other\n" in head
  assert "pipeline_tag: text-to-image\n" in head
  for words in (
    "# shared\n", "`captions/exact` | 0.75 | 0.1 |", "not stated by",
    "| shapes | array_record | shapes | `dddddddddddd` |",
    "[LICENSE.txt](licenses/LICENSE.txt)", "draws images from prompts",
    "Measured at step 0 with averaged weights, in bfloat16.",
  ):  # fmt: skip
    assert words in body, words
  assert "later/score" not in body and "0.25" not in body


def test_a_card_says_when_other_weights_were_scored(folder, run, tmp_path):
  exporting.export(run.path, str(tmp_path / "raw"), raw=True, license="mit")
  card = (tmp_path / "raw" / "README.md").read_text()
  assert (
    "averaged weights, in bfloat16; those that are exported are oth" in card
  )
  assert "license: mit\n" in card and "Of the weights: `mit`." in card


def test_paths_do_not_name_who_made_it(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  tree = {"a": ["/home/me/runs", "/home/me", "/home/mean"], "b": {"c": 1}}
  want = {"a": ["~/runs", "~", "/home/mean"], "b": {"c": 1}}
  assert exported.without_home(tree) == want


# ------------------------------------------------------------------- refusals


def test_damage_is_named(folder, tmp_path):
  place = tmp_path / "x"
  shutil.copytree(folder, place)
  data = bytearray((place / "codec.safetensors").read_bytes())
  data[-1] ^= 1
  (place / "codec.safetensors").write_bytes(data)
  (place / "README.md").write_text("a card may be rewritten")
  with pytest.raises(checkpoint.CheckpointError, match="codec.safetensors has"):
    loading.read(str(place))
  (place / "codec.safetensors").unlink()
  with pytest.raises(checkpoint.CheckpointError, match="is missing"):
    loading.read(str(place))
  (place / "digests.json").unlink()
  with pytest.raises(checkpoint.CheckpointError, match="is missing"):
    loading.read(str(place))


def rewrite(place, folder, change):
  """A copy without digests whose config.json was changed."""
  shutil.copytree(folder, place)
  (place / "digests.json").unlink()
  settings = json.loads((place / "config.json").read_text())
  (place / "config.json").write_text(json.dumps(change(settings)))
  return str(place)


@pytest.mark.parametrize("change, words", [
  (lambda s: s | {"format": 2, "version": "9.9"}, "install version 9.9"),
  (lambda s: s | {"library": "diffusers"}, "is of no model of unifluid_jax"),
  (lambda s: s | {"config": None}, "holds no configuration"),
  (lambda s: [], "is of no model"),
])  # fmt: skip
def test_another_config_json_is_refused(folder, tmp_path, change, words):
  with pytest.raises(checkpoint.CheckpointError, match=words):
    loading.read(rewrite(tmp_path / "x", folder, change))


def test_weights_of_another_shape_are_refused(folder, tmp_path):
  def wider(settings):
    settings["config"]["model"]["decoder"]["mlp"] = 64
    return settings

  place = rewrite(tmp_path / "x", folder, wider)
  with pytest.raises(checkpoint.CheckpointError) as error:
    loading.read(place)
  assert "decoder/layers/mlp/down is (2, 48, 32), expected (2, 64" in str(
    error.value
  )


def test_options_of_runs_are_refused_for_exported_models(folder):
  for given in ({"step": 0}, {"ema": False}, {"codec_path": "x"}):
    with pytest.raises(ValueError, match=f"leave out {next(iter(given))}"):
      loading.read(str(folder), **given)


def test_what_cannot_be_exported_is_refused_before_it_begins(
  folder, run, tmp_path
):
  with pytest.raises(WeightsError, match="exists: choose another --to"):
    exporting.export(run.path, str(folder))
  with pytest.raises(ValueError, match="is exported already"):
    exporting.export(str(folder), str(tmp_path / "x"))
  with pytest.raises(checkpoint.CheckpointError, match="no complete checkpoi"):
    exporting.export(str(tmp_path / "none"), str(tmp_path / "x"))
  assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------- shards


def test_large_models_are_written_in_shards(tmp_path):
  tensors = {
    "a": np.arange(6, dtype=np.float32), "b": np.ones((4, 2), np.float32),
    "c": np.array(3.0, np.float32), "d": np.zeros(2, np.int32),
  }  # fmt: skip
  names = safetensors_file.write_shards(tmp_path, "model", tensors, 30)
  assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert index["metadata"]["total_size"] == 24 + 32 + 4 + 8
  assert index["weight_map"] == dict(
    zip("abcd", [*names, names[2]], strict=True)
  )
  source = exported._open(str(tmp_path), "model")
  for name, x in tensors.items():
    np.testing.assert_array_equal(source.read(name), x)
  single = safetensors_file.write_shards(tmp_path, "one", tensors, 68)
  assert single == ["one.safetensors"]


def test_a_sharded_model_is_read(folder, run, tmp_path):
  model = loading.read(run.path)
  parts = exported.stored_parts(
    model.system, model.params, model.frozen, "float32"
  )
  settings = json.loads((folder / "config.json").read_text())
  exported.write(tmp_path, settings, parts, None, shard=40_000)
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
  params, frozen = exported.read_weights(str(tmp_path), model.system)
  same(params, model.params)
  # A repository of the Hub keeps what was there before, e.g. in shards.
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  with pytest.raises(checkpoint.CheckpointError, match="holds both model"):
    exported.read_weights(str(tmp_path), model.system)
  same(frozen, model.frozen)


# ---------------------------------------------------------- the package's own


@pytest.fixture
def box(folder, tmp_path, monkeypatch):
  """The package with one model in it, and a directory to stand in."""
  monkeypatch.setattr(boxed, "FOLDER", tmp_path / "box")
  shutil.copytree(folder, tmp_path / "box" / "tiny-one")
  (tmp_path / "box" / "__pycache__").mkdir()
  (tmp_path / "cwd").mkdir()
  monkeypatch.chdir(tmp_path / "cwd")
  return tmp_path / "box"


def test_a_shipped_model_is_loaded_by_its_name(box, run):
  assert boxed.names() == ["tiny-one"]
  same(loading.read("tiny-one").params, rounded(run.ema))
  assert api.spec_of("tiny-one") is systems.spec("unifluid")
  words = "models that ship with the package: tiny-one"
  for call in (api.load, api.spec_of):
    with pytest.raises(checkpoint.CheckpointError, match=words):
      call("tiny-two")


def test_the_app_serves_what_ships_and_what_is_exported(box, folder):
  said = []
  found = runs.load([boxed.default(), str(folder)], said.append)
  assert [run.name for run in found] == ["tiny-one", folder.name]
  assert [line.split(", loaded")[0] for line in said] == [
    "tiny-one: exported model", f"{folder.name}: exported model",
  ]  # fmt: skip
  assert all(run.draws for run in found)


def test_a_folder_of_that_name_comes_first(box, run):
  shutil.copytree(run.path, "tiny-one")
  same(loading.read("tiny-one").params, run.ema)


DRIVER = """
import contextlib, io, json, runpy, sys
from pathlib import Path
from absl import flags
from unifluid_jax import boxed
from unifluid_jax.core import cli

boxed.FOLDER = Path(sys.argv[1])
results, shared = [], set(flags.FLAGS)
for module, *args in json.load(sys.stdin):
  sys.argv, said = [module, *args], io.StringIO()
  with contextlib.redirect_stdout(said):
    try:
      runpy.run_module(f"unifluid_jax.{module}", None, "__main__", True)
    except SystemExit as leave:
      if isinstance(leave.code, str):
        said.write(leave.code)
  results.append(said.getvalue())
  for name in set(flags.FLAGS) - shared:
    delattr(flags.FLAGS, name)
json.dump(results, sys.stdout)
"""


def test_commands_export_and_draw_with_what_ships(run, tmp_path):
  """Before anything ships, then with what the command itself has written."""
  (tmp_path / "box").mkdir()
  draw = ["generate", "--prompt=ab", "--steps=2", "--out=a.png"]
  calls = [draw, ["export", run.path, "--to=box/one", "--dtype=bfloat16"], draw]
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, str(tmp_path / "box")],
    input=json.dumps(calls), cwd=tmp_path, text=True, check=True,
    env=dict(os.environ, PYTHONPATH=str(REPO)), capture_output=True,
  )  # fmt: skip
  none, wrote, drew = json.loads(done.stdout)
  assert none.startswith("error: --workdir is missing: name a run or an expo")
  assert wrote.startswith("wrote box/one: ")
  assert drew.splitlines() == [
    "model: one, which ships with the package", "wrote a.png"
  ]  # fmt: skip
  assert (tmp_path / "a.png").exists()


# ------------------------------------------- parts for transformers, diffusers


def test_parts_that_others_load_are_read_back(run, tmp_path):
  said = []
  exporting.export(run.path, str(tmp_path / "x"), hf=True, say=said.append)
  assert any(
    line.startswith("left out of hf/: vae: ") and "stem=1" in line
    for line in said
  )
  for name, recipe in (("decoder", gemma.recipe), ("vit", siglip.recipe)):
    place = tmp_path / "x" / "hf" / name
    source = readers.open_source(str(place))
    got = helpers.in_memory(source, recipe(source))
    want = jax.tree_util.tree_leaves_with_path({name: run.ema[name]})
    assert len(got) == len(want)
    for path, x in want:
      np.testing.assert_array_equal(got[parallel.path_str(path)], x)
    assert (place / "config.json").exists()
  card = (tmp_path / "x" / "README.md").read_text()
  assert "`hf/vit` alone: `transformers.SiglipVisionModel" in card
  # Its checksums are of what is loaded; the parts are another's to check.
  loading.read(str(tmp_path / "x"))


def test_no_part_is_no_folder():
  codec = {"vq": {"codebook": np.zeros(2)}}
  with pytest.raises(WeightsError, match="written: vq has no class there"):
    hf_parts.plan(None, {}, codec, "run", "run/codec")


# -------------------------------------------------------------------- the Hub


class FakeHub:
  """What of huggingface_hub is called."""

  def __init__(self):
    self.calls, self.known = [], True

  def HfApi(self):
    return self

  def whoami(self):
    if not self.known:
      raise OSError("Token is required\nbut was not found")
    return {"name": "me"}

  def create_repo(self, name, **options):
    self.calls.append((name, options))
    return f"https://hub/{name}"

  def upload_folder(self, **options):
    if "fail" in options["repo_id"]:
      raise OSError("no connection")
    self.calls.append(options)


@pytest.fixture
def there(monkeypatch):
  fake = FakeHub()
  monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
  return fake


def test_a_folder_is_uploaded(there, folder):
  hub.check("me/shapes")
  assert hub.push(str(folder), "me/shapes", True) == "https://hub/me/shapes"
  made, sent = there.calls
  assert made == ("me/shapes", {"private": True, "exist_ok": True})
  assert sent["folder_path"] == str(folder) and sent["repo_id"] == "me/shapes"
  shard = "model-00001-of-00002.safetensors"
  old = (shard, "model.safetensors.index.json", "hf/vae/config.json")
  gone = sent["delete_patterns"]
  assert all(any(fnmatch.fnmatch(x, p) for p in gone) for x in old)


def test_an_upload_that_cannot_be_is_refused_in_one_line(there, monkeypatch):
  for name in ("shapes", "/shapes", "me/", "a/b/c"):
    with pytest.raises(ValueError, match="give OWNER/NAME"):
      hub.check(name)
  there.known = False
  with pytest.raises(ValueError, match="log in with") as error:
    hub.check("me/shapes")
  assert "\n" not in str(error.value) and "Token is required" in str(
    error.value
  )
  with pytest.raises(ValueError, match="hf upload me/fail out") as error:
    hub.push("out", "me/fail")
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match="needs the package huggingface_hub"):
    hub.check("me/shapes")


def test_the_model_in_the_box_is_small_free_and_draws():
  (name,) = boxed.names()
  folder = Path(boxed.located(name))
  content = [p for p in folder.rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in content) <= 16e6
  model = unifluid_jax.load(name)
  world = model.config.data.world
  assert list(world["sets"]) == ["twemoji", "noto", "fluent", "emojione"]
  authors = (folder / "licenses" / "ATTRIBUTION.md").read_text()
  assert all(f"/{style}" in authors for style in ("twemoji", "noto"))
  assert "openmoji" not in authors  # share-alike
  red, green = (
    np.asarray(model.generate(f"{x} apple, noto style", steps=5)).astype(int)
    for x in ("red", "green")
  )
  assert red.shape == (64, 64, 3)
  middle = (slice(24, 40), slice(24, 40))
  assert (red[middle][..., 0] - red[middle][..., 1]).mean() > 60
  assert (green[middle][..., 1] - green[middle][..., 0]).mean() > 20
  assert model.caption(red.astype(np.uint8)) == "red apple, noto style"
