"""What a run was made with: kept in it, compared, refused by name."""

import contextlib
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import debug
from configs.base import source
from tests import test_config
from unifluid_jax import api, identity, systems
from unifluid_jax.codecs import cache, copies
from unifluid_jax.core import checkpoint, config, digests, files
from unifluid_jax.data import corpus, text
from unifluid_jax.data.sources import source as sources
from unifluid_jax.models.kl_vae import KlVae
from unifluid_jax.weights import kl_vae as saved_vae

CAPTIONS = ("a red sky", "a green field", "a blue lake")
STATS = {"mean": 0.25, "scale": 2.0}


def nothing(line):
  raise AssertionError(f"said {line}")


def photos(root, first=0):
  """A folder of images with captions; `first` seeds what they show."""
  root.mkdir(parents=True)
  lines = []
  for i, caption in enumerate(CAPTIONS):
    rng = np.random.default_rng(first + i)
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(root / f"{i}.bmp")
    lines.append(json.dumps({"image": f"{i}.bmp", "suffix": caption}) + "\n")
  (root / "captions.jsonl").write_text("".join(lines))
  return root


@functools.cache
def weights(seed):
  """Random ones of the debug configuration's autoencoder."""
  vae = KlVae(systems.resolve(debug.get_config()).model.vae)
  shapes = jax.eval_shape(
    lambda: vae.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  )["params"]
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )


def codec_of(**changes):
  """The codec that a configuration names."""
  return systems.build(systems.resolve(tree_of(**changes))).codec


def digest(codec):
  """Of the weights that lie where it says."""
  return codec.digest(codec.weights())


def data_of(c):
  """Digest of the images of a configuration."""
  return identity.of_run(c, systems.build(c), {}, None)["data"]["images"][
    "digest"
  ]


def write_vae(folder, params, **stats):
  shutil.rmtree(folder, ignore_errors=True)
  checkpoint.write_once(str(folder), {"params": {"vae": params}}, {})
  files.write(folder / copies.STATS, json.dumps(STATS | stats))


def tree_of(**changes):
  """A configuration whose paths are relative to where one stands."""
  system = changes.pop("system", "unifluid")
  c = debug.get_config("vae" if system == "vae" else "")
  c.data.root = "photos"
  c.data.world = {}
  c.data.train = dict(images=source("captions.jsonl", format="jsonl"))
  c.data.eval = {}
  c.text.tokenizer = "tokenizer.model"
  if system == "unifluid":
    c.model.vae_path = "vae"
  flat = {k.replace("__", "."): v for k, v in changes.items()}
  c.update_from_flattened_dict(flat)
  return c.to_dict()


def start(tree, workdir, say=nothing):
  """What main does before training, and what the checkpoint then says."""
  c = identity.at_hand(systems.resolve(tree), str(workdir))
  system = systems.build(c)
  meta = identity.describe(c, system, tree, str(workdir), say)
  return c, system, meta


def begin(tree, workdir):
  """A run with one checkpoint, which holds no more than is asked here."""
  c, system, meta = start(tree, workdir)
  frozen = systems.load_frozen(system)
  identity.keeper(c, system, meta, str(workdir))(frozen)
  state = {"params": {"x": np.zeros(1)}}
  checkpoint.write_once(str(workdir), state, json.loads(json.dumps(meta)))
  return workdir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Data, tokenizer and VAE, and a run that was begun with them."""
  root = tmp_path_factory.mktemp("prepared")
  with contextlib.chdir(root):
    photos(root / "photos")
    text.train(CAPTIONS * 3, root / "tokenizer.model", 40)
    write_vae(root / "vae", weights(0))
    begin(tree_of(), "run")
  return root


@pytest.fixture
def root(prepared, tmp_path, monkeypatch):
  """Data, tokenizer and VAE in a folder of one's own, in which one stands."""
  ignore = shutil.ignore_patterns("run")
  shutil.copytree(prepared, tmp_path, dirs_exist_ok=True, ignore=ignore)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture
def run(prepared, root):
  """The workdir of the run that was begun with them."""
  return shutil.copytree(prepared / "run", root / "run")


def rewrite(folder, change):
  """Changes the JSON of a checkpoint, as if it had been saved so."""
  step = folder / "checkpoints" / "0"
  path = step / "meta" / "metadata"
  meta = json.loads(path.read_text())
  change(meta)
  path.write_text(json.dumps(meta))
  digests.write(step)


def content(folder):
  """Every file and its bytes."""
  return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------- Resuming


def test_the_same_command_says_nothing(root, run):
  _, _, meta = start(tree_of(), run)
  assert meta["identity"]["codec"]["weights"]
  assert list(meta["identity"]["data"]) == ["images"]
  saved = checkpoint.read_meta(str(run), 0)
  assert saved == json.loads(json.dumps(meta))


def test_what_may_change_is_printed_old_to_new(root, run):
  shutil.move(root / "photos", root / "moved")
  photos(root / "more", 50)
  tree = tree_of(steps=30, optim__lr=0.5, model__dtype="bfloat16")
  tree["data"]["root"] = str(root / "moved")
  tree["data"]["train"]["more"] = source("../more/captions.jsonl",
                                         format="jsonl")  # fmt: skip
  said = []
  _, _, meta = start(tree, run, said.append)
  (lines,) = said
  for line in (
    "config.steps: 20 → 30", "config.optim.lr: 0.007 → 0.5",
    "config.model.dtype: 'float32' → 'bfloat16'",
    f"config.data.root: 'photos' → '{root}/moved'",
    "config.data.train.more.path: not set → '../more/captions.jsonl'",
  ):  # fmt: skip
    assert line in lines.splitlines(), line
  assert sorted(meta["identity"]["data"]) == ["images", "more"]


def other_tokenizer(root):
  """Of the same size."""
  before = text.Tokenizer.load(root / "tokenizer.model").vocab_size
  words = [caption[::-1] for caption in CAPTIONS]
  after = text.train(words * 3, root / "tokenizer.model", 40)
  assert after.vocab_size == before


def other_weights(root):
  write_vae(root / "vae", weights(1))


def other_stats(root):
  files.write(root / "vae" / copies.STATS, json.dumps(STATS | {"mean": 0}))


def other_image(root):
  shutil.rmtree(root / "photos")
  photos(root / "photos", 1)


@pytest.mark.parametrize(
  "change, settings, words",
  [
    (other_tokenizer, {}, r"with tokenizer \w{8}, config.text.tokenizer="
     r"tokenizer.model is \w{8}: go on with --config.text.tokenizer=\S*"
     r"/run/tokenizer.model"),
    (other_weights, {}, r"a codec with weights \w{8}, config.model.vae_path="
     r"vae has weights \w{8}: go on with --config.model.vae_path=\S*/codec"),
    (other_stats, {}, "a codec with mean 0.25, .* has mean 0: go on"),
    (other_image, {}, "other records of data.train.images: .*--workdir, which "
     r"--config.init.all=\S*/run starts"),
    (None, {"model__decoder__width": 64},
     "a run with config.model.decoder.width=32, not 64: use that run's"),
    (None, {"model__vae__groups": 16}, "config.model.vae.groups=32, not 16"),
    (None, {"model__latent_std": 1.0}, "config.model.latent_std=0.4, not 1.0"),
    (None, {"system": "vae"}, "a run of config.system='unifluid'"),
  ],
)  # fmt: skip
def test_another_run_is_refused_and_nothing_is_changed(
  root, run, change, settings, words
):
  if change is not None:
    change(root)
  before = content(run)
  with pytest.raises(config.ConfigError, match=words):
    start(tree_of(**settings), run)
  assert content(run) == before


def test_the_way_out_of_the_message_works(root, run):
  other_tokenizer(root)
  other_weights(root)
  said = []
  tree = tree_of(text__tokenizer=f"{run}/tokenizer.model",
                 model__vae_path=f"{run}/codec")  # fmt: skip
  start(tree, run, said.append)
  assert "config.model.vae_path" in said[0]


def test_an_autoencoder_is_not_trained_on_with_other_data(root):
  tree = tree_of(system="vae")
  workdir = begin(tree, root / "vae_run")
  start(tree, workdir)
  start(tree_of(system="vae", model__dtype="bfloat16"), workdir, lambda _: 0)
  other_image(root)
  with pytest.raises(config.ConfigError, match="other records"):
    start(tree, workdir)


def test_a_checkpoint_of_an_older_version_is_compared_as_far_as_it_says(
  root, run
):
  rewrite(run, lambda meta: meta.pop("identity"))
  other_image(root)
  other_weights(root)
  start(tree_of(), run)
  with pytest.raises(config.ConfigError, match="decoder.width=32, not 64"):
    start(tree_of(model__decoder__width=64), run)
  other_tokenizer(root)
  with pytest.raises(config.ConfigError, match="with tokenizer"):
    start(tree_of(), run)


def test_a_checkpoint_of_an_older_spelling_is_resumed_in_silence(root, run):
  def respelt(meta):
    tree = ml_collections.ConfigDict(meta["config"])
    meta["config"] = test_config.resaved(test_config.older(tree))

  rewrite(run, respelt)
  start(tree_of(), run)
  said = []
  start(tree_of(loss__random_until=9), run, said.append)
  assert said[0].splitlines()[1:] == ["config.loss.random_until: 8 → 9"]


def test_what_is_left_out_for_a_while_is_not_forgotten(root, run):
  meta = checkpoint.read_meta(str(run), 0)
  less = {"codec": {}, "data": {"more": {"digest": "x"}}, "system": "unifluid"}
  both = identity.merged(meta, less)
  assert both["codec"] == meta["identity"]["codec"]
  assert sorted(both["data"]) == ["images", "more"]


# ------------------------------------------------------ A run is one folder


def test_a_run_is_loaded_from_its_own_folder_anywhere(
  root, run, tmp_path, monkeypatch
):
  trained = digest(codec_of())
  moved = tmp_path / "elsewhere" / "copy"
  shutil.copytree(run, moved)
  for name in ("run", "vae", "photos"):
    shutil.rmtree(root / name)
  (root / "tokenizer.model").unlink()
  monkeypatch.chdir(tmp_path / "elsewhere")
  for place in ("copy", moved):
    meta = checkpoint.read_meta(str(place), 0)
    c = identity.with_own_codec(systems.resolve(meta["config"]), str(place))
    system = systems.build(c)
    frozen = systems.load_frozen(system)
    api.check_frozen(system, str(place), 0, frozen)
    codec = frozen["codec"]
    assert copies.digest(codec["vae"]) == trained
    assert codec["latent_mean"] == 0.25
    np.testing.assert_allclose(codec["latent_scale"], 2.0 * 0.4)
  c = identity.at_hand(systems.resolve(tree_of()), "copy")
  assert c.text.tokenizer == "copy/tokenizer.model"
  assert c.model.vae_path == "copy/codec"


def test_a_run_without_a_copy_finds_its_vae_beside_it(root, run, monkeypatch):
  """As older runs were laid out, with paths relative to where they began."""
  shutil.rmtree(run / "codec")
  monkeypatch.chdir("/")
  assert copies.located("vae", str(run)) == str(root / "vae")
  other_weights(root)
  found = systems.resolve(tree_of(model__vae_path=str(root / "vae")))
  system = systems.build(found)
  frozen = systems.load_frozen(system)
  words = "trained on a codec with weights .*: name that codec by config"
  with pytest.raises(config.ConfigError, match=words):
    api.check_frozen(system, str(run), 0, frozen)


def test_a_copy_without_its_statistics_is_not_whole(root, run):
  (run / "codec" / copies.STATS).unlink()
  assert copies.located("vae", str(run)) == "vae"


def test_a_copy_is_read_by_whatever_reads_autoencoders(root, run):
  found = saved_vae._saved_config(str(run / "codec"))
  vae = systems.resolve(tree_of()).model.vae
  stats = {"latent_mean": STATS["mean"], "latent_scale": STATS["scale"]}
  assert found == dataclasses.replace(vae, **stats)


def test_a_damaged_copy_is_told(root, run):
  c = identity.with_own_codec(systems.resolve(tree_of()), str(run))
  assert c.model.vae_path == str(run / "codec")
  rewrite(run / "codec", lambda meta: meta.update(weights_sha256="0" * 64))
  with pytest.raises(checkpoint.CheckpointError, match="codec.*is damaged"):
    systems.load_frozen(systems.build(c))


def test_the_copy_is_written_once_and_again_for_another_start(root):
  """One of an attempt that ended before its first checkpoint is replaced."""
  run, tree = root / "run", tree_of()

  def keep():
    c, system, meta = start(tree, run)
    identity.keeper(c, system, meta, str(run))(systems.load_frozen(system))
    return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}

  first = keep()
  assert keep() == first
  other_weights(root)
  other_tokenizer(root)
  keep()
  own = codec_of(model__vae_path=copies.located("vae", str(run)))
  assert own.path == str(run / "codec")
  assert digest(own) == digest(codec_of())
  ours = (run / identity.TOKENIZER).read_bytes()
  assert ours == (root / "tokenizer.model").read_bytes()


# ------------------------------------------------------------------- Caches


def cached(root):
  """A new run's configuration, with moments as `encode` leaves them."""
  tree = tree_of()
  tree["data"]["train"]["images"]["moments"] = "m"
  c = systems.resolve(tree)
  codec, images = systems.build(c).codec, c.data.train["images"]
  note = cache.note_of(codec, images, digest(codec), data_of(c))
  path = cache.path_of(c, images)
  arrays = [np.zeros((8, 8, 8), np.float16)] * 3
  return tree, path, note, lambda: cache.write(path, note, 3, lambda _: arrays)


def test_fresh_moments_are_kept_and_accepted(root):
  tree, path, _, make = cached(root)
  assert make() == "written"
  before = (root / "photos" / "m").stat().st_mtime_ns
  assert make() == "kept"
  assert (root / "photos" / "m").stat().st_mtime_ns == before
  start(tree, root / "run")
  assert len(sources.CachedReader(path)) == 3


@pytest.mark.parametrize(
  "change, word",
  [(other_image, "data"), (other_weights, "weights")],
)
def test_moments_of_other_data_or_weights(root, change, word):
  tree, _, _, make = cached(root)
  make()
  change(root)
  if change is other_image:  # which made the folder anew
    make()
  words = f"data.train.images.moments=.* other {word} than .*encode"
  with pytest.raises(config.ConfigError, match=words):
    start(tree, root / "run")
  assert not (root / "run").exists()
  _, _, _, again = cached(root)
  assert again() == f"made anew, as {word} changed"
  start(tree, root / "run")


def test_moments_of_another_size_or_unknown_origin(root):
  tree, path, note, make = cached(root)
  make()
  files.write(path + ".json", json.dumps(note | {"size": 64}))
  with pytest.raises(config.ConfigError, match="other size than"):
    start(tree, root / "run")
  files.write(path + ".json", json.dumps({"vae": "runs/vae step 20 size 32"}))
  with pytest.raises(config.ConfigError, match="weights and data and size"):
    start(tree, root / "run")
  assert "made anew" in make()


def test_an_interrupted_encode_leaves_the_old_moments_whole(root):
  _, path, note, make = cached(root)
  make()

  def breaks(_):
    yield np.ones((8, 8, 8))
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cache.write(path, note | {"data": "new"}, 3, breaks)
  assert not np.any(sources.CachedReader(path)[0])
  _, _, _, again = cached(root)
  assert again() == "kept"


def test_statistics_follow_weights_and_data(root):
  vae = str(root / "vae")
  made = {"weights": "w", "data": "d"}

  def measure(**changes):
    found = {"mean": 0.0, "scale": 1.0, "values": 9}
    return cache.write_stats(vae, made | changes, lambda: found)

  assert "mean 0.2500, scale 2.0000 (kept)" in measure()  # they came with it
  (root / "vae" / copies.STATS).unlink()
  assert "mean 0.0000, scale 1.0000 (measured)" in measure()
  assert "(kept)" in measure()
  for changed in ({"weights": "v"}, {"data": "e"}):
    assert "(measured)" in measure(**changed)


def test_statistics_of_other_weights_or_data_are_refused(root):
  tree = tree_of()
  ours = {"weights": digest(codec_of()), "values": 9}
  ours["data"] = data_of(systems.resolve(tree))
  path = root / "vae" / copies.STATS
  files.write(path, json.dumps(STATS | ours))
  start(tree, root / "run")
  files.write(path, json.dumps(STATS | ours | {"weights": "0" * 64}))
  with pytest.raises(config.ConfigError, match="weights 00000000, .*encode"):
    start(tree, root / "run")
  files.write(path, json.dumps(STATS | ours | {"data": "1" * 64}))
  with pytest.raises(config.ConfigError, match="other data .11111111.*encode"):
    start(tree, root / "run")
  tree["model"]["vae"].update(latent_mean=0.0, latent_scale=1.0)
  start(tree, root / "run")  # which needs no statistics


# ------------------------------------------------------------------ Tokenizer


def test_a_second_folder_gets_a_tokenizer_of_its_own(root):
  """With the first one's path, as configs/folder.py has it."""
  path = root / "t.model"
  tree = tree_of(text__tokenizer=str(path), text__train_vocab=40)

  def done(tree=tree):
    return corpus.make_tokenizer(systems.resolve(tree), 320)

  assert done().startswith("trained the tokenizer")
  first = path.read_bytes()
  assert done().startswith("kept the tokenizer")
  second = shutil.copytree(root / "photos", root / "second")
  lines = (root / "photos" / "captions.jsonl").read_text()
  (second / "captions.jsonl").write_text(lines.replace("red", "violet"))
  tree["data"]["root"] = str(second)
  assert done().startswith("trained anew, as data changed")
  assert path.read_bytes() != first
  tree["text"]["train_vocab"] = 41
  assert "as vocab changed" in done()


def test_a_tokenizer_that_prepare_did_not_train_is_kept(root):
  tree = tree_of(text__train_vocab=40)
  before = (root / "tokenizer.model").read_bytes()
  said = corpus.make_tokenizer(systems.resolve(tree), 320)
  assert said.startswith("kept, not knowing its data")
  (root / "tokenizer.model.json").write_text(json.dumps({"model": "another"}))
  corpus.make_tokenizer(systems.resolve(tree), 320)
  assert (root / "tokenizer.model").read_bytes() == before


def test_the_decoder_has_a_row_for_every_id(root):
  config = systems.resolve(tree_of())
  pieces = text.Tokenizer.load(config.text.tokenizer).vocab_size
  corpus.make_tokenizer(config, pieces)
  with pytest.raises(
    ValueError, match=rf"{pieces} pieces, .* {pieces - 1} rows .*decoder.vocab"
  ):
    corpus.make_tokenizer(config, pieces - 1)
  extra = {"boi": 4096}
  systems.resolve(tree_of(text__special=extra, model__decoder__vocab=4097))
  with pytest.raises(ValueError, match=r"boi=4096 .*vocab=4096"):
    systems.resolve(tree_of(text__special=extra, model__decoder__vocab=4096))


@pytest.mark.parametrize("path", ["/dev/null", "."])
def test_a_tokenizer_is_a_regular_file(root, path):
  """Of another device, as /dev/zero, reading would never end."""
  tree = tree_of(text__train_vocab=40, text__tokenizer=path)
  with pytest.raises(ValueError, match="is no regular file"):
    corpus.make_tokenizer(systems.resolve(tree), 320)


# ---------------------------------------------------------------- Digest


def test_weights_have_one_digest_wherever_they_are(root):
  params = weights(0)
  ours = copies.digest(params)
  assert len(ours) == 64
  placed = jax.device_put(params)
  backwards = dict(reversed(list(params.items())))
  assert copies.digest(placed) == copies.digest(backwards) == ours
  leaves, tree = jax.tree.flatten(params)
  leaves[3] = leaves[3].copy()
  leaves[3].flat[0] = np.nextafter(leaves[3].flat[0], 9)
  assert copies.digest(jax.tree.unflatten(tree, leaves)) != ours
  assert digest(codec_of()) == ours
