"""GenEval's detector behind fakes: masks to boxes, crops to colours."""

import json

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.evals.metrics import geneval
from unifluid_jax.evals.metrics.geneval import Detection
from unifluid_jax.evals.published import (
  geneval_detections,
  geneval_detector,
  geneval_files,
)
from unifluid_jax.evals.published.geneval_detections import COLOURS

NAMES = ("cow", "cup", "bench")


def logit(p):
  return np.log(p / (1 - p))


def softmax_logits(*probabilities):
  """Rows of class probabilities, "no object" filled in."""
  rows = [[*row, 1 - sum(row)] for row in probabilities]
  return np.log(np.maximum(rows, 1e-9))


def masks(*boxes, side=10, inside=0.9):
  out = np.full((len(boxes), side, side), logit(0.1))
  for mask, (x0, y0, x1, y1) in zip(out, boxes, strict=True):
    mask[y0:y1, x0:x1] = logit(inside)
  return out


def test_names_are_cocos_with_three_of_genevals():
  assert len(geneval_detector.NAMES) == len(set(geneval_detector.NAMES)) == 80
  at = {0: "person", 13: "bench", 39: "bottle", 56: "chair", 63: "laptop",
        64: "computer mouse", 65: "tv remote", 66: "computer keyboard",
        67: "cell phone", 79: "toothbrush"}  # fmt: skip
  assert {i: geneval_detector.NAMES[i] for i in at} == at


def test_scores_are_class_times_mask_and_boxes_the_masks():
  classes = softmax_logits((0.8, 0.1, 0.05), (0.0, 0.5, 0.45))
  pixels = masks((1, 2, 4, 9), (0, 0, 10, 1))
  pixels[0, 2, 1] = logit(0.5 + 1e-9)  # one pixel of the mask is unsure
  found = geneval_detector.instances(classes, pixels, NAMES)
  got = [f.detection for f in found]
  assert [d.name for d in got] == ["cow", "cup", "bench"]
  np.testing.assert_allclose(
    [d.score for d in got],
    [0.8 * (0.9 * 20 + 0.5) / 21, 0.5 * 0.9, 0.45 * 0.9], rtol=1e-6,
  )  # fmt: skip
  assert [d.box for d in got] == [(1, 2, 4, 9), (0, 0, 10, 1), (0, 0, 10, 1)]
  assert found[0].mask.sum() == 21 and found[0].mask[2, 1]
  assert all(d.colour is None for d in got)


@pytest.mark.filterwarnings("error")
def test_thresholds_leave_out_unsure_and_empty_masks():
  classes = softmax_logits((0.33, 0, 0), (0.34, 0, 0), (0.9, 0, 0), (0.3, 0, 0))
  pixels = masks((0, 0, 2, 2), (0, 0, 2, 2), (0, 0, 0, 0), (0, 0, 2, 2))
  (found,) = geneval_detector.instances(classes, pixels, NAMES)
  np.testing.assert_allclose(found.detection.score, 0.34 * 0.9, rtol=1e-6)


def test_overlapping_copies_stay_and_sixteen_are_kept():
  """NMS is off: twenty queries on one place are twenty objects."""
  chances = np.linspace(0.5, 0.99, 20)
  classes = softmax_logits(*[(p, 0, 0) for p in chances])
  found = geneval_detector.instances(
    classes, masks(*[(0, 0, 5, 5)] * 20, inside=1 - 1e-12), NAMES
  )
  assert len(found) == 20
  kept = geneval.confident([f.detection for f in found], 0.3)["cow"]
  np.testing.assert_allclose(
    [d.score for d in kept], chances[::-1][:16], rtol=1e-6
  )


def test_at_most_a_hundred_of_all_queries_and_classes():
  """60 queries sure of two classes each: the best hundred of 120."""
  rng = np.random.default_rng(0)
  a = rng.uniform(0.4, 0.5, 60)
  classes = softmax_logits(*[(p, p - 0.05, 0) for p in a])
  found = geneval_detector.instances(
    classes, masks(*[(0, 0, 5, 5)] * 60, inside=1 - 1e-12), NAMES
  )
  want = sorted([*a, *(a - 0.05)], reverse=True)[:100]
  np.testing.assert_allclose(
    [f.detection.score for f in found], want, rtol=1e-6
  )


def test_other_classes_are_refused():
  with pytest.raises(ValueError, match="knows 3 classes, expected COCO's 80"):
    geneval_detector.instances(np.zeros((2, 4)), np.zeros((2, 3, 3)))


def test_objects_are_cut_out_onto_grey():
  image = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
  mask = np.zeros((10, 12), bool)
  mask[3:7, 2:9] = True
  mask[4, 5] = False
  found = geneval_detector.Instance(
    Detection("cow", 1.0, geneval.box_of(mask)), mask
  )
  want = Image.composite(
    Image.fromarray(image), Image.new("RGB", (12, 10), "#999"),
    Image.fromarray(mask),
  ).crop((2, 3, 9, 7))  # fmt: skip
  got = geneval_detector.cut_out(image, found)
  np.testing.assert_array_equal(got, np.asarray(want))
  assert got[1, 3].tolist() == [153, 153, 153]


class FakeClip:
  """Texts of a colour lie near its axis; crops near that of their value."""

  name = "fake CLIP"

  def __init__(self):
    self.asked = []

  def texts(self, texts):
    self.asked += texts
    out = np.zeros((len(texts), 12))
    for row, text in zip(out, texts, strict=True):
      row[[f" {c}" in text for c in COLOURS].index(True)] = 2.0
      row[10 if "object" in text else 11] = 1.0
    return out

  def images(self, images):
    out = np.full((len(images), 12), 0.1)
    for row, image in zip(out, images, strict=True):
      row[int(image[0, 0, 0])] = 5.0
    return out


def test_colours_are_asked_for_by_three_templates():
  clip = FakeClip()
  namer = geneval_detector.ColourNamer(clip)
  crops = [np.full((2, 2, 3), i, np.uint8) for i in (0, 4, 9)]
  assert namer.name("hot dog", crops) == ["red", "blue", "white"]
  assert len(clip.asked) == 30 and clip.asked[:4] == [
    "a photo of a red hot dog",
    "a photo of a red-colored hot dog",
    "a photo of a red object",
    "a photo of a orange hot dog",
  ]
  assert clip.asked[-1] == "a photo of a white object"
  assert namer.name("hot dog", []) == []
  namer.name("hot dog", crops)
  assert len(clip.asked) == 30  # embedded once a class


def test_templates_count_alike_whatever_their_length():
  """Each is normalised before the mean, and the mean after it."""

  class Skewed(FakeClip):
    def texts(self, texts):
      out = np.zeros((len(texts), 2))
      for k, row in enumerate(out):
        row[:] = [[100.0, 0], [0, 1], [0, 1]][k % 3]
      return out

  got = geneval_detector.ColourNamer(Skewed())._embed("cow")
  want = np.array([1, 2]) / np.sqrt(5)
  np.testing.assert_allclose(got, np.tile(want, (10, 1)))


class FakeSegmenter:
  """Two cows and a cup; the better cow lies on the right."""

  name = "fake detector"

  def logits(self, image):
    classes = softmax_logits((0.7, 0, 0), (0.95, 0, 0), (0, 0.96, 0))
    return classes, masks(
      (0, 0, 3, 10), (5, 0, 8, 10), (8, 0, 10, 10), inside=1 - 1e-12
    )


COLOURED = {
  "tag": "colors",
  "prompt": "a photo of a pink cow",
  "include": [{"class": "cow", "count": 1, "color": "pink"}],
}


def scene():
  """Left cow blue, right cow pink."""
  image = np.zeros((10, 10, 3), np.uint8)
  image[:, :3], image[:, 5:8] = COLOURS.index("blue"), COLOURS.index("pink")
  return image


def test_only_the_best_objects_that_are_asked_for_get_colours():
  found = geneval_detector.detect(
    scene(), COLOURED, FakeSegmenter(),
    geneval_detector.ColourNamer(FakeClip()), NAMES,
  )  # fmt: skip
  assert {(d.name, round(d.score, 2), d.colour) for d in found} == {
    ("cow", 0.7, None), ("cow", 0.95, "pink"), ("cup", 0.96, None),
  }  # fmt: skip
  clip = FakeClip()
  plain = {"tag": "counting", "prompt": "", "include": [
    {"class": "cow", "count": 2}]}  # fmt: skip
  found = geneval_detector.detect(
    scene(), plain, FakeSegmenter(), geneval_detector.ColourNamer(clip), NAMES
  )
  assert not clip.asked and all(d.colour is None for d in found)


def test_prompts_without_include_name_no_colours():
  asked = {"tag": "counting", "prompt": "", "exclude": [
    {"class": "cow", "count": 3}]}  # fmt: skip
  found = geneval_detector.detect(
    scene(), asked, FakeSegmenter(),
    geneval_detector.ColourNamer(FakeClip()), NAMES,
  )  # fmt: skip
  assert found and all(d.colour is None for d in found)


def folder_of(root, colours):
  """A pink cow's image a colour; whether it is right is the prompt's."""
  for i, colour in enumerate(colours):
    where = root / f"{i:05d}/samples"
    where.mkdir(parents=True)
    Image.fromarray(scene()).save(where / "00000.png")
    clause = {"class": "cow", "count": 1, "color": colour}
    (where.parent / "metadata.jsonl").write_text(
      json.dumps(COLOURED | {"include": [clause]})
    )
  return str(root)


def detect(folder, path, segmenter=None, clip=None, names=NAMES):
  said = []
  geneval_detector.detect_folder(
    folder, str(path), segmenter or FakeSegmenter(), clip or FakeClip(),
    said.append, names,
  )  # fmt: skip
  return said


def test_a_folder_is_detected_and_scored(tmp_path):
  folder = folder_of(tmp_path / "images", ["pink", "blue"])
  path = tmp_path / "found.jsonl"
  said = detect(folder, path)
  assert "0 of 2 images" in said[0] and "2/2 (100 %)" in said[-1]
  found = geneval_detections.read(str(path))
  assert found.made_by == {
    "detector": "fake detector; colours by fake CLIP", "min_score": 0.3,
    "min_score_counting": 0.9, "max_per_class": 16, "max_instances": 100,
  }  # fmt: skip
  result = geneval_files.score(folder, found, said.append)
  assert result["scores"]["colors"] == 0.5
  assert result["detector"] == "fake detector; colours by fake CLIP"
  assert result["made_by"] == {}  # images that something else drew


def test_other_classes_images_and_folders_are_named(tmp_path):
  folder = folder_of(tmp_path / "images", ["pink"])
  path = tmp_path / "found.jsonl"
  with pytest.raises(ValueError, match="'cow', which is none of the detector"):
    detect(folder, path, names=("cup",))
  with pytest.raises(ValueError, match="holds no images in GenEval's layout"):
    detect(str(tmp_path), path)
  assert not path.exists()
  (tmp_path / "images/00000/samples/00000.png").write_bytes(b"half")
  with pytest.raises(ValueError, match=r"00000/samples/00000\.png: .*again"):
    detect(folder, path)


class Dying(FakeSegmenter):
  """Is killed at an image; counts those before it."""

  def __init__(self, at=99):
    self.at, self.seen = at, 0

  def logits(self, image):
    if self.seen == self.at:
      raise KeyboardInterrupt
    self.seen += 1
    return super().logits(image)


def test_a_killed_detector_goes_on_where_it_was(tmp_path):
  colours = ["pink", "blue", "red", "pink", "black"]
  folder, path = folder_of(tmp_path / "images", colours), tmp_path / "d.jsonl"
  whole = tmp_path / "whole.jsonl"
  detect(folder, whole)
  with pytest.raises(KeyboardInterrupt):
    detect(folder, path, Dying(at=2))
  lines = whole.read_text().splitlines(keepends=True)
  assert path.read_text() == "".join(lines[:3])
  with pytest.raises(ValueError, match=r"no detections of 00002.* and 2 more"):
    found = geneval_detections.read(str(path))
    geneval_files.score(folder, found, lambda _: None)
  path.write_text(path.read_text() + lines[3][:-9])  # torn as it was written
  segmenter = Dying()
  said = detect(folder, path, segmenter)
  assert segmenter.seen == 3 and "2 of 5 images are detected" in said[0]
  assert path.read_bytes() == whole.read_bytes()
  segmenter = Dying()
  said = detect(folder, path, segmenter)
  assert segmenter.seen == 0 and "5 of 5 images are detected" in said[-1]


def test_processes_divide_the_images_and_one_gathers_them(
  tmp_path, monkeypatch
):
  colours = ["pink", "blue", "red", "pink", "black"]
  folder, path = folder_of(tmp_path / "images", colours), tmp_path / "d.jsonl"
  detect(folder, tmp_path / "whole.jsonl")
  want = geneval_detections.read(str(tmp_path / "whole.jsonl"))
  geneval_detections.begin(str(path), want.made_by)
  with monkeypatch.context() as m:  # the second of two, then all are stopped
    m.setattr(geneval_detector.shards, "wait", lambda name: None)
    m.setattr(geneval_detector.jax, "process_index", lambda: 1)
    m.setattr(geneval_detector.jax, "process_count", lambda: 2)
    detect(folder, path)
  assert not geneval_detections.read(str(path)).images
  part = geneval_detections.read(f"{path}.part1").images
  assert sorted(part) == [f"0000{i}/samples/00000.png" for i in (1, 3)]
  segmenter = Dying()
  said = detect(folder, path, segmenter)
  assert "2 of 5 images" in said[0] and segmenter.seen == 3
  assert geneval_detections.read(str(path)) == want
  assert not list(tmp_path.glob("*.part*"))
  geneval_detections.begin(f"{path}.part0", {"detector": "another"})
  with pytest.raises(ValueError, match="part0 was made otherwise"):
    detect(folder, path)


def test_more_images_add_to_fewer(tmp_path):
  path = tmp_path / "d.jsonl"
  folder = folder_of(tmp_path / "images", ["pink"])
  detect(folder, path)
  more = tmp_path / "images/00000/samples/00001.png"
  Image.fromarray(scene()[:, ::-1]).save(more)
  segmenter = Dying()
  detect(folder, path, segmenter)
  assert segmenter.seen == 1
  names = [f"00000/samples/{k:05d}.png" for k in range(2)]
  assert list(geneval_detections.read(str(path)).images) == names


def test_detections_of_something_else_are_never_added_to(tmp_path, monkeypatch):
  folder = folder_of(tmp_path / "images", ["pink", "blue"])
  path = tmp_path / "d.jsonl"
  detect(folder, path)
  before, clip = path.read_bytes(), FakeClip()
  clip.name = "another CLIP"
  with pytest.raises(
    ValueError,
    match="detector 'fake detector; colours by fake CLIP', now 'fake "
    "detector; colours by another CLIP'. Choose another --detections",
  ):
    detect(folder, path, clip=clip)
  with monkeypatch.context() as patch:
    patch.setattr(geneval_detector.geneval, "MIN_SCORE", 0.2)
    with pytest.raises(ValueError, match=r"min_score 0\.3, now 0\.2"):
      detect(folder, path)
  fewer = folder_of(tmp_path / "fewer", ["pink"])
  with pytest.raises(ValueError, match="without image: 00001/samples/00000"):
    detect(fewer, path)
  assert path.read_bytes() == before


@pytest.mark.parametrize("change", ["image", "prompt"])
def test_an_image_that_was_drawn_anew_is_noticed(tmp_path, change):
  folder = folder_of(tmp_path / "images", ["pink", "blue"])
  path = tmp_path / "d.jsonl"
  detect(folder, path)
  if change == "image":
    where = tmp_path / "images/00001/samples/00000.png"
    Image.fromarray(scene()[::-1, ::-1]).save(where)
  else:
    where = tmp_path / "images/00001/metadata.jsonl"
    where.write_text(where.read_text().replace("blue", "green"))
  found = geneval_detections.read(str(path))
  message = r"00001/samples/00000\.png is not the image that was detected"
  with pytest.raises(ValueError, match=message):
    geneval_files.score(folder, found, lambda _: None)
  with pytest.raises(ValueError, match=message):
    detect(folder, path)
