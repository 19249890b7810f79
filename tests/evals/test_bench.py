"""Evaluation data: what cannot be read is left out, named and counted."""

import dataclasses
import json
import types

import numpy as np
import pytest

from tests.data.test_bad_data import png
from tests.systems.conftest import tiny
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.evals.bench import Bench, sampling_options
from unifluid_jax.evals.report import samples
from unifluid_jax.evals.worlds import text_suite


def bench(root, count, bad):
  """Pairs of lines, a caption and a question, about each of some images."""
  lines = []
  for i in range(count):
    (root / f"{i}.png").write_bytes(b"junk" if i in bad else png(i))
    image = {"image": f"{i}.png"}
    lines += [image | {"suffix": f"a thing {i}"},
              image | {"prefix": "what?", "suffix": str(i)}]  # fmt: skip
  (root / "e.jsonl").write_text("\n".join(map(json.dumps, lines)))
  config = tiny()
  source = SourceConfig("jsonl", "e.jsonl")
  data = dataclasses.replace(
    config.data, root=str(root), eval={"v": source}, train={"v": source}
  )
  evaluation = dataclasses.replace(config.eval, split="v", examples=99)
  return Bench(dataclasses.replace(config, data=data, eval=evaluation), "")


class Parrot:
  """Says the same of every image; counts what it is asked."""

  def answers(self, images, questions):
    assert len(images) == len(questions)
    return ["a thing 0" if q == "caption en" else "0" for q in questions]

  def images(self, prompts, seeds):
    return np.zeros((len(prompts), 4, 4, 3), np.uint8)

  edits = reconstruct = look = images


def test_drawings_of_another_seed_are_others():
  of = [Bench(tiny(eval__seed=seed), "").seeds(3) for seed in (0, 1, 4000)]
  assert [list(x) for x in of] == [
    [0, 1, 2], [10**6, 10**6 + 1, 10**6 + 2],
    [4 * 10**9, 4 * 10**9 + 1, 4 * 10**9 + 2],
  ]  # fmt: skip
  assert np.asarray(of[2], np.uint32).tolist() == list(of[2])


def test_splits_of_weight_0_take_no_part(tmp_path):
  config = bench(tmp_path, 1, ()).config
  (split,) = config.data.eval.values()
  absent = dataclasses.replace(split, path="none.jsonl", weight=0.0)
  data = dataclasses.replace(config.data, eval={"a": absent, "v": split})
  made = Bench(dataclasses.replace(config, data=data), "")
  assert made.splits == ("v",)


def test_unreadable_images_are_left_out_and_counted(tmp_path, caplog):
  made = bench(tmp_path, 4, bad=(1,))
  with caplog.at_level("WARNING", logger="absl"):
    assert len(made.records("v")) == 6
  assert caplog.text.count("left out of the scores: data.eval.v[") == 2
  assert [b.partition(":")[0] for b in made.bad["v"]] == [
    "data.eval.v[2]", "data.eval.v[3]",
  ]  # fmt: skip
  said = text_suite.captions(Parrot(), made)
  assert (said.settings["images"], said.settings["skipped"]) == (3, 2)
  asked = text_suite.vqa(Parrot(), made)
  assert asked.settings == {
    "questions": 3, "decode": "greedy", "skipped": 2
  }  # fmt: skip
  assert asked.values["vqa/all"] == pytest.approx(1 / 3)
  assert made.pixels("v").shape[0] == 6


def test_whole_sets_say_nothing_of_skipping(tmp_path):
  made = bench(tmp_path, 2, bad=())
  outcome = text_suite.vqa(Parrot(), made)
  assert outcome.settings == {"questions": 2, "decode": "greedy"}
  assert len(samples.draw(Parrot(), made).shown) == 2


def test_a_set_without_a_readable_image_is_an_error(tmp_path):
  made = bench(tmp_path, 2, bad=(0, 1))
  with pytest.raises(
    ValueError, match=r"eval\.v has no record .*v\[0\]: image"
  ):
    text_suite.captions(Parrot(), made)


def test_the_limit_of_pixels_is_the_configurations(tmp_path):
  made = bench(tmp_path, 1, bad=())
  data = dataclasses.replace(made.config.data, max_pixels=15)
  made.config = dataclasses.replace(made.config, data=data)
  with pytest.raises(ValueError, match=r"4 x 4 pixels, .*data\.max_pixels=15"):
    made.records("v")


def test_results_name_the_options_that_entered_them(tmp_path):
  @dataclasses.dataclass
  class Options:
    codes: int = dataclasses.field(metadata={"of": "images"})
    beams: int = dataclasses.field(metadata={"of": "text"})
    seed: int
    mask: bool = dataclasses.field(default=True, metadata={"of": "images"})
    pull: float = dataclasses.field(default=1.0, metadata={"of": "edits"})

  def made(*values):
    found = Bench.__new__(Bench)
    found.config = types.SimpleNamespace(sampling=Options(*values))
    return found

  assert made(5, 2, 0).sampled("images", "edits") == {"codes": 5}
  other = made(5, 2, 0, False, 2.0)
  assert other.sampled("images") == {"codes": 5, "mask": False}
  assert other.sampled("images", "edits") == {
    "codes": 5, "mask": False, "pull": 2.0
  }  # fmt: skip
  greedy = types.SimpleNamespace(text="greedy", beams=3)
  found = made(5, 2, 0)
  found.config.sampling = greedy
  assert found.answered() == {"decode": "greedy"}
  greedy.text = "beam"
  assert found.answered() == {"decode": "beam 3"}
  own = sampling_options(tiny().sampling, "images")
  assert list(own) == [
    "steps", "cfg", "temperature", "order", "cfg_schedule", "clip",
    "solver", "last_steps", "passes",
  ]  # fmt: skip


def test_training_records_that_are_lost_are_passed_over(tmp_path):
  made = bench(tmp_path, 3, bad=())
  (tmp_path / "1.png").unlink()
  assert len(list(made.train_records(4096))) == 4


def test_training_records_are_those_of_the_data_that_are_judged(tmp_path):
  made = bench(tmp_path, 3, bad=())
  data = made.config.data
  other = SourceConfig("imagefolder", "drawn")
  data = dataclasses.replace(data, train={"a": other, **data.train})
  both = Bench(dataclasses.replace(made.config, data=data), "")
  assert both.trained_on.path == "e.jsonl"
  assert len(list(both.train_records(4096))) == 6
  data = dataclasses.replace(data, train={"a": other})
  alone = Bench(dataclasses.replace(made.config, data=data), "")
  assert alone.trained_on == other


def test_without_training_questions_nothing_is_guessed(tmp_path):
  made = bench(tmp_path, 2, bad=())
  made.train_records = lambda count: iter(())
  asked = text_suite.vqa(Parrot(), made)
  assert asked.floors["vqa/all"] == 0 and asked.values["vqa/all"] == 0.5
