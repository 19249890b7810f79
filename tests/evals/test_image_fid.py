"""Distances of image files, with a network simple enough for closed forms."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.evals import tiny_inception
from unifluid_jax.core import checkpoint
from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.published import (
  file_results,
  image_fid,
  image_sets,
  inception_features,
  inception_net,
  published,
)
from unifluid_jax.models import inception

REPO = Path(__file__).parent.parent.parent


class MeanColour:
  """Features: the mean of each channel. Counts the images it has seen."""

  convention, weights, digest, width, rows = "clean-fid", "w", "d1", 3, 4

  def __init__(self):
    self.seen = 0

  def features(self, images):
    assert 0 < len(images) <= self.rows
    self.seen += len(images)
    return np.stack([image.mean((0, 1)) for image in images])


def folder(path, count, seed=0, size=8):
  path.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  for i in range(count):
    image = rng.integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(image).save(path / f"{i:03d}.png")
  return str(path)


def colours(path):
  return np.stack([
    np.asarray(Image.open(f), np.float64).mean((0, 1))
    for f in sorted(Path(path).glob("*.png"))
  ])  # fmt: skip


def quiet(_):
  pass


def test_moments_are_those_of_all_images(tmp_path):
  where = folder(tmp_path / "a", 11)
  net, said = MeanColour(), []
  got = image_fid.measure(net, image_sets.open_set(where), 0, said.append)
  x = colours(where)
  assert net.seen == got.statistics.count == got.record.count == 11
  np.testing.assert_allclose(got.statistics.mean, x.mean(0))
  np.testing.assert_allclose(fid.covariance(got.statistics), np.cov(x.T))
  assert "11/11 (100 %)" in said[-1] and "ETA" in said[-1]
  digest = image_sets.fingerprint(image_sets.open_set(where))
  assert got.record == image_fid.Record(
    where, "all images", 11, digest, "clean-fid", 0, "none", "w", "d1"
  )


@pytest.mark.parametrize("total, count", [(11, 3), (2, 3), (8, 2), (5, 1)])
def test_processes_share_every_image_and_merge_to_the_whole(total, count):
  shares = [image_fid.share(total, k, count) for k in range(count)]
  assert sorted(i for s in shares for i in s) == list(range(total))
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
  x = np.random.default_rng(total).normal(5, 2, (total, 4))
  parts = [
    fid.statistics(x[list(s)]) if s else fid.empty(4)
    for s in shares
  ]  # fmt: skip
  sent = [image_fid.unpack(image_fid.pack(p)) for p in parts]
  whole = image_fid.merge_all(sent)
  assert whole.count == total
  np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-12)
  np.testing.assert_allclose(fid.covariance(whole), np.cov(x.T), rtol=1e-12)


@pytest.mark.parametrize("width", [1, 3, 2048])
def test_exchanged_moments_lose_no_bit(width):
  rng = np.random.default_rng(width)
  s = fid.Statistics(
    40_504, rng.normal(size=width), rng.normal(size=(width, width))
  )
  words = image_fid.pack(s)
  assert words.dtype == np.uint32  # what JAX keeps as it is
  got = image_fid.unpack(words)
  assert got.count == s.count
  np.testing.assert_array_equal(got.mean, s.mean)
  np.testing.assert_array_equal(got.scatter, s.scatter)


def test_distance_in_closed_form_with_everything_said(tmp_path):
  a, b = folder(tmp_path / "a", 9), folder(tmp_path / "b", 7, seed=1)
  said = []
  against = published.Against(path=b, save=str(tmp_path / "ref.npz"))
  result = published.folder_fid(MeanColour(), a, against, said.append)
  x, y = colours(a), colours(b)
  values = np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T)).real
  want = (
    np.sum((x.mean(0) - y.mean(0)) ** 2)
    + np.trace(np.cov(x.T) + np.cov(y.T))
    - 2 * np.sqrt(values).sum()
  )
  np.testing.assert_allclose(result["fid"], want, rtol=1e-9)
  assert result["warning"] == ""
  for words in (f"fid {want:.4f}", "clean-fid", "whole images", a, b,
                "9 generated", "7 reference"):  # fmt: skip
    assert words in said[-1], words
  json.dumps(result)

  again = MeanColour()
  stored = published.Against(path=against.save)
  second = published.folder_fid(again, a, stored, quiet)
  assert again.seen == 9  # the reference was not read again
  assert second["fid"] == result["fid"]
  assert second["reference"] == result["reference"]


def keep(net, where, path, crop=0, kind="all images"):
  said = []
  images = image_sets.open_set(where)
  got = image_fid.kept(net, images, crop, str(path), said.append, kind)
  return got, said


def test_what_is_kept_is_measured_once(tmp_path):
  where, path = folder(tmp_path / "a", 7), tmp_path / "sub/ref.npz"
  net = MeanColour()
  first, said = keep(net, where, path)
  assert net.seen == 7 and said[-1] == f"reference statistics: {path}"
  (tmp_path / "a").rename(tmp_path / "moved")  # wherever the set lies
  again, said = keep(net, str(tmp_path / "moved"), path)
  assert net.seen == 7 and said == [f"{said[0][:-17]}, measured before"]
  assert again.record == first.record
  for mine, theirs in zip(again.statistics, first.statistics, strict=True):
    np.testing.assert_array_equal(mine, theirs)
  keep(net, str(tmp_path / "moved"), "")
  keep(net, str(tmp_path / "moved"), "")
  assert net.seen == 21


def test_unreadable_images_are_left_out_and_counted(tmp_path):
  where, path = folder(tmp_path / "a", 7), tmp_path / "ref.npz"
  (tmp_path / "a/003.png").write_bytes(b"junk")
  got, said = keep(MeanColour(), where, path)
  (tmp_path / "a/003.png").rename(tmp_path / "junk")
  want = image_fid.measure(MeanColour(), image_sets.open_set(where), 0, quiet)
  for mine, theirs in zip(got.statistics, want.statistics, strict=True):
    np.testing.assert_allclose(mine, theirs)
  assert (got.record.count, got.record.skipped) == (6, 1)
  assert f"{where}: 1 of 7 left out" in said
  result = image_fid.compare(want, got)
  assert "1 unreadable images left out" in image_fid.line("fid", result)
  (value,) = file_results.rows({"metric": "fid", **result}, {"step": 3})
  assert value["settings"]["skipped"] == 1
  assert "reference_skipped" not in value["settings"]
  (tmp_path / "junk").rename(tmp_path / "a/003.png")
  again, said = keep(MeanColour(), where, path)  # the same set as before
  assert again.record == got.record and "measured before" in said[-1]
  for file in (tmp_path / "a").iterdir():
    file.write_bytes(b"junk")
  with pytest.raises(ValueError, match=r"none of 7 images can be read: .*png"):
    image_fid.measure(MeanColour(), image_sets.open_set(where), 0, quiet)


@pytest.mark.parametrize(
  "change, words",
  [("more", "count 7, now 8"), ("name", "images '"), ("pixels", "images '"),
   ("kind", "kind 'all images', now 'some'"), ("crop", "crop 0, now 4")],
)  # fmt: skip
def test_another_set_under_the_same_name_is_refused(tmp_path, change, words):
  where, path = folder(tmp_path / "a", 7), tmp_path / "ref.npz"
  keep(MeanColour(), where, path)
  options, first = {}, tmp_path / "a/000.png"
  if change == "more":
    folder(tmp_path / "b", 1)
    (tmp_path / "b/000.png").rename(tmp_path / "a/more.png")
  elif change == "name":
    first.rename(first.with_name("0000.png"))
  elif change == "pixels":
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(first)
  else:
    options = {"kind": {"kind": "some"}, "crop": {"crop": 4}}[change]
  net, before = MeanColour(), path.read_bytes()
  with pytest.raises(ValueError, match=rf"ref\.npz .*{words}.*_reference"):
    keep(net, where, path, **options)
  assert net.seen == 0 and path.read_bytes() == before


def test_a_killed_process_leaves_no_half_of_a_file(tmp_path, monkeypatch):
  where, path = folder(tmp_path / "a", 3), tmp_path / "ref.npz"

  def stop(file, **_):
    file.write(b"PK")
    raise KeyboardInterrupt

  monkeypatch.setattr(np, "savez", stop)
  with pytest.raises(KeyboardInterrupt):
    keep(MeanColour(), where, path)
  assert not path.exists()
  monkeypatch.undo()
  keep(MeanColour(), where, path)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match="no statistics with a record"):
    keep(MeanColour(), where, path)


def test_a_reference_made_otherwise_is_refused(tmp_path):
  where, path = folder(tmp_path / "a", 5), str(tmp_path / "ref.npz")
  net = MeanColour()
  images = image_sets.open_set(where)
  image_fid.save(path, image_fid.measure(net, images, 4, quiet))
  assert image_fid.load(path, net, 4).record.crop == 4
  assert "ADM" in image_fid.load(path, net, 4).record.crop_rule
  with pytest.raises(ValueError, match="crop 4, now 0"):
    image_fid.load(path, net, 0)
  net.convention = "tf1"
  with pytest.raises(ValueError, match="convention 'clean-fid', now 'tf1'"):
    image_fid.load(path, net, 4)
  net.convention, net.digest = "clean-fid", "d2"
  with pytest.raises(ValueError, match="digest 'd1', now 'd2'.*again with"):
    image_fid.load(path, net, 4)
  np.savez(path, **fid.empty(3)._asdict())
  with pytest.raises(ValueError, match="no statistics with a record"):
    image_fid.load(path, net, 4)
  with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
    image_fid.load(str(tmp_path / "gone.npz"), net, 4)


def test_small_sets_are_warned_of(tmp_path):
  a, b = folder(tmp_path / "a", 3), folder(tmp_path / "b", 9, seed=1)
  result = published.folder_fid(
    MeanColour(), a, published.Against(path=b), quiet
  )
  assert "3 generated images for 3 features" in result["warning"]
  with pytest.raises(ValueError, match="--reference is missing"):
    published.folder_fid(MeanColour(), a, published.Against(), quiet)


# The real network's class, layers and directory, but few of them.


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  with tiny_inception.small():
    directory = tmp_path_factory.mktemp("inception") / "ours"
    tiny_inception.write(directory)
    yield str(directory)


def by_hand(weights, path, convention):
  """Features of a folder's images, one after another, on one device."""
  params = inception_net.load(weights)
  apply = inception.Inception().apply
  rows = []
  for file in sorted(Path(path).glob("*.png")):
    image = jnp.asarray(np.asarray(Image.open(file))[None])
    inputs = inception_features.CONVENTIONS[convention](image)
    rows.append(np.asarray(apply({"params": params}, inputs).features)[0])
  return np.stack(rows)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 9, 6)])
def test_network_on_eight_devices(weights, tmp_path, sizes):
  """One size or several; 8 rows of which 3 are filled."""
  assert jax.local_device_count() == 8
  (tmp_path / "a").mkdir()
  images = [np.random.default_rng(k).integers(0, 256, (s, s, 3), np.uint8)
            for k, s in enumerate(sizes)]  # fmt: skip
  for i, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / f"a/{i}.png")
  net = inception_net.InceptionNet(
    inception_net.load(weights), "pytorch-fid", weights, rows=1
  )
  got = net.features(images)
  want = by_hand(weights, tmp_path / "a", "pytorch-fid")
  assert got.shape == (3, 5) and net.rows == 8 and want.std() > 0.1
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_command_scores_folders_with_converted_weights(weights, tmp_path):
  a, b = folder(tmp_path / "a", 9), folder(tmp_path / "b", 8, 1, size=9)
  Image.fromarray(np.full((5, 7, 3), 99, np.uint8)).save(f"{a}/x.png")
  out, stored = tmp_path / "out.json", tmp_path / "ref.npz"
  args = ["--metrics=fid", f"--images={a}", f"--weights={weights}",
          "--convention=tf1", "--batch=1", f"--out={out}"]  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-m", "tests.evals.tiny_inception", "evaluate", *args,
     f"--reference={b}", f"--save_reference={stored}"],
    cwd=REPO, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  result = json.loads(out.read_text())
  x, y = (fid.statistics(by_hand(weights, p, "tf1")) for p in (a, b))
  want = fid.distance(y, x).value
  assert want > 1e-3
  np.testing.assert_allclose(result["fid"], want, rtol=1e-3)
  assert result["generated"]["count"] == 10 and not result["warning"]
  assert result["reference"]["count"] == 8
  digest = inception_net.digest(inception_net.load(weights))
  assert result["reference"]["digest"] == digest
  assert f"fid {result['fid']:.4f}  (tf1, whole images" in done.stdout
  with np.load(stored) as data:
    np.testing.assert_allclose(data["mean"], y.mean, rtol=1e-4, atol=1e-6)


def test_commands_say_what_is_missing():
  done = subprocess.run(
    [sys.executable, "-m", "unifluid_jax.evaluate", "--metrics=fid"],
    cwd=REPO, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "--images is missing for --metrics=fid" in done.stderr


def test_digest_depends_on_every_value():
  tree = {"a": {"kernel": np.ones(3)}, "b": np.zeros(2)}
  first = inception_net.digest(tree)
  assert len(first) == 16 and first == inception_net.digest(tree)
  assert first == inception_net.digest(jax.tree.map(jnp.asarray, tree))
  for change in (
    {"a": {"kernel": np.ones(3) * 2}, "b": np.zeros(2)},
    {"a": {"kernal": np.ones(3)}, "b": np.zeros(2)},
  ):
    assert inception_net.digest(change) != first


def test_wrong_weights_say_what_to_do(tmp_path):
  with pytest.raises(
    checkpoint.CheckpointError, match="--from=inception:FILE --to="
  ):
    inception_net.load(str(tmp_path))
  with pytest.raises(ValueError, match="convention 'fid' is unknown; known"):
    inception_net.InceptionNet({}, "fid")


def test_records_are_plain_json(tmp_path):
  where = folder(tmp_path / "a", 2)
  got = image_fid.measure(MeanColour(), image_sets.open_set(where), 0, quiet)
  text = json.dumps(dataclasses.asdict(got.record))
  assert image_fid.Record(**json.loads(text)) == got.record
