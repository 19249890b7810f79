"""Drawing into a folder: resume, provenance, seeds."""

import hashlib

import jax
import numpy as np
import pytest
from PIL import Image

from unifluid_jax.evals.published import drawn_images
from unifluid_jax.evals.published.drawn_images import Drawing

DRAWINGS = [Drawing(f"{i % 2}/{i:05d}.png", f"p{i}", 100 + i) for i in range(5)]
BY = {"run": "debug", "step": 3, "cfg": 2.0}


class Painter:
  """Draws its seed; notes what it was asked for."""

  def __init__(self, fail_after=99):
    self.asked, self.calls, self.fail_after = [], [], fail_after

  def images(self, prompts, seeds):
    if len(self.calls) == self.fail_after:
      raise RuntimeError("preempted")
    self.calls.append(len(prompts))
    self.asked += zip(prompts, seeds, strict=True)
    return np.stack([np.full((3, 4, 3), s, np.uint8) for s in seeds])


def draw(painter, folder, drawings=DRAWINGS, **by):
  said = []
  drawn_images.draw(painter, drawings, str(folder), 2, BY | by, said.append)
  return said


def files(folder):
  return sorted(str(f.relative_to(folder)) for f in folder.rglob("*.*"))


def test_one_lossless_file_a_prompt(tmp_path):
  painter = Painter()
  said = draw(painter, tmp_path)
  assert painter.asked == [(d.prompt, d.seed) for d in DRAWINGS]
  assert painter.calls == [2, 2, 1]
  for d in DRAWINGS:
    image = Image.open(tmp_path / d.file)
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), np.full((3, 4, 3), d.seed))
  assert files(tmp_path) == sorted([d.file for d in DRAWINGS] + ["drawn.json"])
  assert "0 of 5 images are there" in said[0] and "5/5 (100 %)" in said[-1]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
  with pytest.raises(RuntimeError, match="preempted"):
    draw(Painter(fail_after=1), tmp_path)
  assert len(list(tmp_path.rglob("*.png"))) == 2
  with pytest.raises(ValueError, match="3 of 5 .* not drawn, such as 0/00002"):
    drawn_images.check_complete(str(tmp_path))
  (tmp_path / "1/.00003.png.7.tmp").write_bytes(b"half")  # of a killed run
  painter = Painter()
  draw(painter, tmp_path)
  drawn_images.check_complete(str(tmp_path))
  assert [p for p, _ in painter.asked] == ["p2", "p3", "p4"]
  painter = Painter()
  said = draw(painter, tmp_path)
  assert painter.asked == [] and "5 of 5 images are there" in said[0]


def test_more_prompts_add_to_fewer(tmp_path):
  draw(Painter(), tmp_path, DRAWINGS[:2])
  painter = Painter()
  draw(painter, tmp_path)
  assert len(painter.asked) == 3
  noted = drawn_images.read_manifest(str(tmp_path))
  assert noted["by"] == BY
  assert noted["images"] == {d.file: [d.prompt, d.seed] for d in DRAWINGS}
  draw(Painter(), tmp_path, DRAWINGS[:1])
  assert len(drawn_images.read_manifest(str(tmp_path))["images"]) == 5
  draw(Painter(), tmp_path, [Drawing("other.png", "p", 1)])
  assert len(drawn_images.read_manifest(str(tmp_path))["images"]) == 6


def test_images_of_something_else_are_never_mixed(tmp_path):
  draw(Painter(), tmp_path)
  with pytest.raises(ValueError, match="step 3, now 4.*Choose another"):
    draw(Painter(), tmp_path, step=4)
  with pytest.raises(ValueError, match="ema None, now True"):
    draw(Painter(), tmp_path, ema=True)
  # Notes of older versions do not say which weights drew.
  draw(Painter(), tmp_path, state="a")
  draw(Painter(), tmp_path / "new", state="a")
  with pytest.raises(ValueError, match="state 'a', now 'b'"):
    draw(Painter(), tmp_path / "new", state="b")
  other = [DRAWINGS[0]._replace(prompt="q")]
  with pytest.raises(ValueError, match=r"0/00000.png from \['p0', 100\], now"):
    draw(Painter(), tmp_path, other)
  painter = Painter()
  draw(painter, tmp_path)
  assert painter.asked == []


def test_processes_draw_every_kth(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  waited = []
  monkeypatch.setattr(drawn_images.shards, "wait", waited.append)
  asked = []
  for index in (1, 0):
    monkeypatch.setattr(jax, "process_index", lambda index=index: index)
    painter = Painter()
    draw(painter, tmp_path)
    asked.append([p for p, _ in painter.asked])
    assert (tmp_path / "drawn.json").exists() == (index == 0)
  assert asked == [["p1", "p3"], ["p0", "p2", "p4"]]
  assert len(waited) == 2


def test_seeds_are_digests_of_names():
  text = b"0/42/noise"
  want = int(hashlib.sha256(text).hexdigest()[:8], 16)
  assert drawn_images.seed_of(0, 42, "noise") == want < 2**32
  many = {drawn_images.seed_of(0, i, "noise") for i in range(500)}
  assert len(many) == 500


def test_a_folder_without_manifest_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no drawn.json in"):
    drawn_images.read_manifest(str(tmp_path))
