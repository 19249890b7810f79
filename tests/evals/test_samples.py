"""Examples of a step: kept small, read back, replaced, drawn."""

import numpy as np
import pytest
from PIL import Image

from tests.systems.conftest import tiny
from unifluid_jax.data.records import Record
from unifluid_jax.evals.bench import Bench, Shown
from unifluid_jax.evals.report import samples


def noise(seed, height, width):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
  y, x = np.mgrid[:height, :width]
  return np.stack(
    [255 * y // height, 255 * x // width, np.full_like(x, 90)], -1
  ).astype(np.uint8)


SHOWN = [
  Shown("generated", noise(0, 32, 32), "a cross", "no", correct=False,
        task="colors", seed=7),
  Shown("caption", noise(1, 48, 64), "caption en", "two\nlines “so”",
        correct=True, references=("one", "two"), score=8.125, task="test"),
  Shown("answer", noise(2, 8, 8), "how many?", "2", "3", None, task="count"),
  Shown("edit", noise(3, 9, 9), "move", source=noise(4, 9, 9),
        target=noise(5, 9, 9)),
]  # fmt: skip


def same(a, b):
  for x, y in zip(a, b, strict=True):
    if isinstance(x, np.ndarray):
      np.testing.assert_array_equal(x, y)
    else:
      assert x == y and type(x) is type(y)


def test_small_examples_come_back_exactly(tmp_path):
  samples.write(str(tmp_path), 20, SHOWN)
  found = samples.read(str(tmp_path), 20)
  assert len(found) == len(SHOWN)
  for a, b in zip(found, SHOWN, strict=True):
    same(a, b)


def test_a_step_is_replaced_and_steps_are_in_order(tmp_path):
  run = str(tmp_path)
  assert samples.steps(run) == [] and samples.read(run, 3) == []
  for step in (1000, 20, 300):
    samples.write(run, step, SHOWN)
  samples.write(run, 20, SHOWN[:1])
  (tmp_path / "samples" / "notes.jsonl").write_text("no step")
  assert samples.steps(run) == [20, 300, 1000]
  assert [len(samples.read(run, s)) for s in (20, 300)] == [1, 4]
  assert len(list((tmp_path / "samples").iterdir())) == 4  # no torn files


def test_large_images_are_kept_small(tmp_path):
  photo = smooth(600, 800)
  samples.write(str(tmp_path), 1, [Shown("generated", photo, "p")])
  (found,) = samples.read(str(tmp_path), 1)
  assert found.image.shape == (192, 256, 3)
  want = np.asarray(Image.fromarray(photo).resize((256, 192)), int)
  assert np.abs(found.image - want).mean() < 2
  assert (tmp_path / "samples" / "1.jsonl").stat().st_size < 12_000
  # Not a photograph's worth of pixels: nothing is lost.
  exact = noise(6, 64, 64)
  assert samples.encoded(exact).startswith(b"\x89PNG")
  np.testing.assert_array_equal(samples.decoded(samples.encoded(exact)), exact)


def test_what_is_no_example_is_named(tmp_path):
  with pytest.raises(ValueError, match="uint8"):
    floats = Shown("generated", np.zeros((4, 4, 3)), "p")
    samples.write(str(tmp_path), 1, [floats])
  samples.write(str(tmp_path), 5, SHOWN)
  path = tmp_path / "samples" / "5.jsonl"
  whole = path.read_text()
  for torn in (whole[:-30], "{}\n", whole.replace('"seed"', '"sed"')):
    path.write_text(torn)
    with pytest.raises(ValueError, match=r"samples/5\.jsonl holds no examples"):
      samples.read(str(tmp_path), 5)


class Painter:
  def images(self, prompts, seeds):
    return np.stack([np.full((4, 4, 3), s, np.uint8) for s in seeds])

  def answers(self, *_):
    raise AssertionError("nothing is asked")

  edits = reconstruct = look = answers


def test_first_prompts_of_the_split_are_drawn():
  records = [Record("0", b"", captions=("a",)), Record("1", b"")]
  records += [Record(str(i), b"", (f"p{i}", "x"), ("c",)) for i in range(2, 20)]
  bench = Bench(tiny(), "")
  bench.splits, bench.records = ("v", "w"), {"v": records}.__getitem__
  out = samples.draw(Painter(), bench)
  assert out.values == {}
  assert [s.prompt for s in out.shown] == ["a", *(f"p{i}" for i in range(2, 9))]
  assert [s.seed for s in out.shown] == list(range(8))
  assert [int(s.image[0, 0, 0]) for s in out.shown] == list(range(8))
  bench.records = {"v": records[1:2]}.__getitem__
  with pytest.raises(ValueError, match=r"eval\.v has no texts to draw"):
    samples.draw(Painter(), bench)
