"""Samples of prompts, and the distances of what is drawn from them."""

import json

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.published import (
  image_sets,
  published,
  published_prompts,
)
from unifluid_jax.evals.published.drawn_images import seed_of

BY = {"run": "debug", "step": 3}
# Ranked by 32 bits of SHA-256 of "0/<id>", caption by "0/<id>/caption".
GOLDEN = ["caption 2 of 16", "caption 1 of 10", "caption 0 of 4"]


def write_coco(path, ids=range(20), captions=3):
  """Image k has `captions` captions; image 5 has none."""
  rng = np.random.default_rng(0)
  (path / "train").mkdir(parents=True)
  content = {"images": [], "annotations": []}
  for k in ids:
    name = f"{k:012d}.jpg"
    content["images"].append({"id": k, "file_name": name})
    Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).save(
      path / "train" / name, format="PNG"
    )
    content["annotations"] += [
      {"image_id": k, "caption": f"caption {c} of {k}"}
      for c in range(captions if k != 5 else 0)
    ]
  (path / "captions.json").write_text(json.dumps(content))
  return f"{path}/captions.json:train"


def test_coco_takes_one_caption_of_distinct_images(tmp_path):
  found = published_prompts.coco(write_coco(tmp_path), 19)
  of = [int(d.prompt.split()[-1]) for d in found.drawings]
  assert sorted(of) == [k for k in range(20) if k != 5]
  assert of != sorted(of)
  assert {d.prompt.split()[1] for d in found.drawings} == {"0", "1", "2"}
  files = [d.file for d in found.drawings]
  assert files == [f"{i:05d}.png" for i in range(19)]
  assert [int(n[-16:-4]) for n in found.real.names] == of
  assert [d.seed for d in found.drawings] == [
    seed_of(0, k, "noise") for k in of
  ]
  ranks = [seed_of(0, k) for k in of]
  assert ranks == sorted(ranks)


def test_coco_samples_are_stable(tmp_path):
  path = write_coco(tmp_path / "a")
  found = published_prompts.coco(path, 12)
  assert published_prompts.coco(path, 5).drawings == found.drawings[:5]
  # Golden: a change here makes published numbers incomparable.
  assert [d.prompt for d in found.drawings[:3]] == GOLDEN
  shuffled = write_coco(tmp_path / "b", ids=range(19, -1, -1))
  assert published_prompts.coco(shuffled, 12).drawings == found.drawings
  other = published_prompts.coco(path, 12, seed=1)
  assert set(other.real.names) != set(found.real.names)
  seeds = {d.seed for d in (*other.drawings, *found.drawings)}
  assert len(seeds) == 24


def test_coco_without_enough_captions_is_refused(tmp_path):
  path = write_coco(tmp_path)
  for count in (20, 0):
    with pytest.raises(ValueError, match=f"19 of them, {count} asked for"):
      published_prompts.coco(path, count)


def write_mjhq(path):
  content, rng = {}, np.random.default_rng(1)
  for i in range(11):
    category = ("animals", "food")[i % 2]
    content[f"id{i}"] = {"category": category, "prompt": f"prompt {i}"}
    folder = path / "real" / category
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(
      folder / f"id{i}.jpg", format="PNG"
    )
  (path / "meta_data.json").write_text(json.dumps(content))
  return str(path / "meta_data.json"), str(path / "real")


def test_mjhq_prompts_keep_their_categories(tmp_path):
  meta, images = write_mjhq(tmp_path)
  found = published_prompts.mjhq(meta, images, 0)
  assert len(found.drawings) == 11
  for drawing, name, group in zip(
    found.drawings, found.real.names, found.groups, strict=True
  ):
    i = int(drawing.prompt.split()[1])
    assert group == ("animals", "food")[i % 2]
    assert drawing.file == f"{group}/id{i}.png"
    assert name == f"{images}/{group}/id{i}.jpg"
  few = published_prompts.mjhq(meta, images, 4)
  assert list(few.drawings) == list(found.drawings[:4])
  with pytest.raises(ValueError, match="11 of them, 12 asked for"):
    published_prompts.mjhq(meta, images, 12)


def test_other_files_are_no_mjhq(tmp_path):
  path = tmp_path / "x.json"
  with pytest.raises(FileNotFoundError, match="no MJHQ-30K prompts"):
    published_prompts.mjhq(str(path), "", 0)
  path.write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"no folder of .*ref\.npz"):
    published_prompts.mjhq(str(path), str(tmp_path / "ref.npz"), 0)
  for content in ([1], {"a": {"prompt": "p"}}, {"a": 3}):
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no meta_data\.json"):
      published_prompts.mjhq(str(path), str(tmp_path), 0)


class MeanColour:
  """Features: the mean of each channel. Counts the images it has seen."""

  convention, weights, digest, width, rows = "clean-fid", "w", "d1", 3, 4

  def __init__(self):
    self.seen = 0

  def features(self, images):
    self.seen += len(images)
    return np.stack([image.mean((0, 1)) for image in images])


class Painter:
  """Noise of the seed."""

  def images(self, prompts, seeds):
    return np.stack([
      np.random.default_rng(s).integers(0, 256, (8, 8, 3), np.uint8)
      for s in seeds
    ])  # fmt: skip


def painted(drawings):
  return Painter().images(None, [d.seed for d in drawings]).mean((1, 2))


def real(images, indices, crop):
  return np.stack([
    image_sets.decode(images, i, crop).mean((0, 1)) for i in indices
  ])  # fmt: skip


def distance(x, y):
  return fid.distance(fid.statistics(x), fid.statistics(y)).value


def quiet(_):
  pass


def test_coco_fid_against_the_captions_own_images(tmp_path):
  prompts = published_prompts.coco(write_coco(tmp_path), 9)
  run = published.Run(Painter(), str(tmp_path / "drawn"), 4, BY)
  said = []
  result = published.coco_fid(
    MeanColour(), run, prompts, published.Against(crop=6), said.append
  )
  drawn = [
    np.asarray(Image.open(tmp_path / "drawn" / d.file))
    for d in prompts.drawings
  ]
  np.testing.assert_array_equal(
    drawn, Painter().images(None, [d.seed for d in prompts.drawings])
  )
  files = image_sets.files_set(
    "", [str(tmp_path / "drawn" / d.file) for d in prompts.drawings]
  )
  want = distance(real(prompts.real, range(9), 6), real(files, range(9), 6))
  np.testing.assert_allclose(result["fid"], want, rtol=1e-9)
  assert result["reference"]["kind"] == "images of the drawn captions"
  assert result["reference"]["count"] == result["generated"]["count"] == 9
  assert result["made_by"] == BY
  assert "crop 6" in said[-1] and "of the drawn captions" in said[-1]
  json.dumps(result)
  # A larger folder than the sample: only the sample counts.
  fewer = published_prompts.coco(f"{tmp_path}/captions.json:train", 5)
  again = published.coco_fid(
    MeanColour(), run, fewer, published.Against(), quiet
  )
  assert again["generated"]["count"] == 5
  want = distance(real(fewer.real, range(5), 0), painted(fewer.drawings))
  np.testing.assert_allclose(again["fid"], want, rtol=1e-9)


def test_coco_fid_against_another_set(tmp_path):
  path = write_coco(tmp_path)
  prompts = published_prompts.coco(path, 6)
  run = published.Run(Painter(), str(tmp_path / "drawn"), 4, BY)
  result = published.coco_fid(
    MeanColour(), run, prompts, published.Against(path=path), quiet
  )
  assert result["reference"]["count"] == 20  # all, captioned or not
  assert result["reference"]["kind"] == "all images"
  x = real(image_sets.open_set(path), range(20), 0)
  want = distance(x, painted(prompts.drawings))
  np.testing.assert_allclose(result["fid"], want, rtol=1e-9)


def test_mjhq_fid_of_all_and_of_each_category(tmp_path):
  meta, images = write_mjhq(tmp_path)
  prompts = published_prompts.mjhq(meta, images, 0)
  run = published.Run(Painter(), str(tmp_path / "drawn"), 4, BY)
  result = published.mjhq_fid(
    MeanColour(), run, prompts, published.Against(), quiet
  )
  drawn = painted(prompts.drawings)
  x = real(prompts.real, range(11), 0)
  np.testing.assert_allclose(result["fid"], distance(x, drawn), rtol=1e-9)
  assert list(result["by_category"]) == ["animals", "food"]
  for group, found in result["by_category"].items():
    rows = [i for i, g in enumerate(prompts.groups) if g == group]
    want = distance(x[rows], drawn[rows])
    np.testing.assert_allclose(found["fid"], want, rtol=1e-9)
    assert found["generated"]["count"] == len(rows)
    assert group in found["reference"]["kind"]
  assert result["generated"]["count"] == 11
  json.dumps(result)


def test_mjhq_references_are_measured_once(tmp_path):
  meta, images = write_mjhq(tmp_path)
  prompts = published_prompts.mjhq(meta, images, 0)
  against = published.Against(save=f"{tmp_path}/ref.npz", crop=5)

  def score(prompts, folder="drawn"):
    net = MeanColour()
    run = published.Run(Painter(), str(tmp_path / folder), 4, BY)
    return net, published.mjhq_fid(net, run, prompts, against, quiet)

  net, first = score(prompts)
  assert net.seen == 22
  kept = sorted(path.name for path in tmp_path.glob("*.npz"))
  assert kept == ["ref_animals.npz", "ref_food.npz"]
  net, again = score(prompts)
  assert net.seen == 11 and again == first
  # The same images in another order.
  net, other = score(published_prompts.mjhq(meta, images, 0, seed=1), "other")
  assert net.seen == 11 and other["reference"] == first["reference"]
  with pytest.raises(ValueError, match=r"ref_animals\.npz holds another set"):
    score(published_prompts.mjhq(meta, images, 6), "never")
  assert not (tmp_path / "never").exists()  # said before hours of drawing
  # Killed between two categories: only the second is measured.
  (tmp_path / "ref_food.npz").unlink()
  net, again = score(prompts)
  assert net.seen == 11 + 5 and again == first
  # A category's file is a reference of its own.
  stored = published.Against(path=f"{tmp_path}/ref_food.npz", crop=5)
  found = published.folder_fid(
    MeanColour(), str(tmp_path / "drawn/food"), stored, quiet
  )
  np.testing.assert_allclose(
    found["fid"], first["by_category"]["food"]["fid"], rtol=1e-9
  )
  next((tmp_path / "drawn/food").glob("*.png")).unlink()
  with pytest.raises(ValueError, match="1 of 11 images are not drawn"):
    published.folder_fid(MeanColour(), str(tmp_path / "drawn"), stored, quiet)


def test_a_coco_reference_is_measured_once(tmp_path):
  path = write_coco(tmp_path)
  prompts = published_prompts.coco(path, 9)
  run = published.Run(Painter(), str(tmp_path / "drawn"), 4, BY)
  against, seen = published.Against(save=f"{tmp_path}/ref.npz"), []
  for _ in range(2):
    net = MeanColour()
    published.coco_fid(net, run, prompts, against, quiet)
    seen.append(net.seen)
  assert seen == [18, 9]
  with pytest.raises(ValueError, match=r"count 9, now 8"):
    published.coco_fid(
      MeanColour(), run, published_prompts.coco(path, 8), against, quiet
    )
  stored = published.Against(path=against.save, save=against.save)
  with pytest.raises(ValueError, match="leave out --save_reference"):
    published.coco_fid(MeanColour(), run, prompts, stored, quiet)


def test_mjhq_categories_of_one_image_have_no_distance(tmp_path):
  meta, images = write_mjhq(tmp_path)
  prompts = published_prompts.mjhq(meta, images, 0)
  one = [i for i, g in enumerate(prompts.groups) if g == "food"][:1]
  keep = [i for i, g in enumerate(prompts.groups) if g == "animals"] + one
  cut = published_prompts.PromptSet(
    [prompts.drawings[i] for i in keep],
    image_sets.files_set(images, [prompts.real.names[i] for i in keep]),
    [prompts.groups[i] for i in keep],
  )
  run = published.Run(Painter(), str(tmp_path / "drawn"), 4, BY)
  result = published.mjhq_fid(
    MeanColour(), run, cut, published.Against(), quiet
  )
  assert list(result["by_category"]) == ["animals"]
  assert result["generated"]["count"] == len(keep)
