"""From the files of a workdir to what its page shows."""

import json
import types

import numpy as np
import pytest
from etils import epath

from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.report import (
  attribution,
  page,
  run_facts,
  samples,
  scales,
)
from unifluid_jax.evals.report import data as report_data

START = {
  "step": 0, "work": "training", "time": 0.0, "commit": "abc-dirty",
  "command": "python -m unifluid_jax.main --config=configs/x.py",
  "config": "configs/x.py", "hardware": "2 cores", "versions": {"jax": "1"},
}  # fmt: skip


def row(step, metric, value, floor=None, **more):
  return {"step": step, "metric": metric, "value": value, "floor": floor,
          "settings": {"images": 3}} | more  # fmt: skip


def drawn(prompt, seed, task="t", value=0, correct=None):
  image = np.full((4, 4, 3), value, np.uint8)
  return Shown("generated", image, prompt, correct=correct, task=task,
               seed=seed)  # fmt: skip


@pytest.fixture(name="run")
def _run(tmp_path, monkeypatch):
  """A workdir, and what `write` makes of it."""
  pages = []
  monkeypatch.setattr(
    report_data.report, "write_report", lambda path, data: pages.append(data)
  )

  def results(*rows):
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "metrics_eval.jsonl").write_text(text)

  def page():
    report_data.write(
      epath.Path(tmp_path / "x.html"), str(tmp_path), "tiny",
      {"decoder": "2 layers"}, {"loss_text": "L_text"},
    )  # fmt: skip
    return pages[-1]

  return types.SimpleNamespace(path=str(tmp_path), results=results, page=page)


def pixels(grid):
  return [
    [None if d is None else int(d.image[0, 0, 0]) for d in line.drawn]
    for line in grid
  ]


def test_only_the_same_prompt_and_seed_share_a_row(run):
  run.results(row(10, "geneval/overall", 0.5), row(20, "geneval/overall", 0.6))
  samples.write(run.path, 10, [
    drawn("a", 0, value=1), drawn("b", 5, value=2), drawn("c", 2, value=3),
  ])  # fmt: skip
  samples.write(run.path, 15, [drawn("a", 0, value=7)])
  samples.write(run.path, 20, [
    drawn("a", 0, value=4, correct=True), drawn("b", 1, value=5),
    drawn("c", 2, "two_object", value=6), drawn("d", 3, value=9),
  ])  # fmt: skip
  page = run.page()
  assert page.sample_steps == (10, 15, 20)
  assert [line.prompt for line in page.samples] == ["a", "c"]
  assert pixels(page.samples) == [[1, 7, 4], [3, None, 6]]
  assert page.samples[0].drawn[2].correct is True
  # The gallery is the newest step's alone.
  assert [g.prompt for g in page.generations] == ["a", "b", "c", "d"]
  assert page.generations[2].task == "two object"


def test_a_few_prompts_of_all_tasks_at_a_few_steps(run):
  steps = [3 * i for i in range(1, 21)]
  shown = [drawn(f"{t}{i}", i, t) for t in "uvwx" for i in range(4)]
  for step in steps:
    samples.write(run.path, step, shown)
  run.results(row(60, "m", 1.0))
  page = run.page()
  assert [line.prompt for line in page.samples] == [
    "u0", "v0", "w0", "x0", "u1", "v1"
  ]  # fmt: skip
  columns = page.sample_steps
  assert len(columns) == 8 and columns[0] == 3 and columns[-1] == 60
  assert list(columns) == sorted(set(columns) & set(steps))
  gaps = np.diff(columns)
  assert gaps.max() - gaps.min() <= 3  # evenly spread, to one step


def test_one_step_has_no_grid(run):
  run.results(row(10, "m", 1.0))
  samples.write(run.path, 10, [drawn("a", 0)])
  page = run.page()
  assert page.samples == () and page.sample_steps == ()
  assert len(page.generations) == 1


def test_scores_of_files_stand_beside_the_others(run):
  run.results(
    row(10, "fid/generated", 9.0),
    row(10, "fid/real", 6.0),
    row(10, "coco_fid/distance", 30.0, by="coco_fid"),
    row(20, "fid/generated", 8.0),
    row(20, "fid/real", 6.0),
    row(20, "geneval_raw/colors", 0.75, by="geneval"),
    row(20, "geneval_raw/overall", 0.5, by="geneval"),
    row(20, "geneval_raw/correct_images", 0.625, by="geneval"),
    row(20, "geneval/overall", 0.25, 0.125),
  )
  page = run.page()
  found = {(s.group, s.name): s for s in page.scores}
  coco = found["coco fid", "COCO FID"]
  assert coco.values == (30.0, None) and coco.lower_is_better
  own = found["geneval raw", "GenEval"]
  assert own.values == (None, 0.5) and not own.lower_is_better
  assert found["fid", "Fréchet distance, generated"].lower_is_better
  assert found["fid", "Fréchet distance, real"].constant
  # COCO FID is of another step than the page's, and by another command.
  tiles = [(t.name, t.value, t.floor) for t in page.tiles]
  assert tiles == [
    ("GenEval", 0.25, 0.125), ("GenEval, own prompts", 0.5, None)
  ]  # fmt: skip
  bars = [(b.group, b.name, b.score, b.overall) for b in page.geneval]
  assert bars == [
    ("", "overall", 0.25, True),
    ("The benchmark's own prompts", "overall", 0.5, True),
    ("The benchmark's own prompts", "colors", 0.75, False),
  ]
  charts = {c.title: c for c in page.progress}
  distance = charts["Fréchet distance"]
  assert distance.curves[0].values == (9.0, 8.0)
  assert (distance.floor, distance.floor_name) == (6.0, "real images")
  assert charts["GenEval overall"].floor == 0.125


def test_the_last_result_of_a_step_counts_and_failures_are_told(run):
  first = row(10, "vqa/all", 0.1, settings={"questions": 5})
  last = row(10, "vqa/all", 0.2, 0.05, settings={"questions": 9})
  failed = {"step": 10, "metric": "fid", "error": "ValueError('no')"}
  run.results(first, failed, last)
  page = run.page()
  (score,) = page.scores
  assert score.values == (0.2,) and score.floor == 0.05
  assert page.notes == (
    "vqa: questions: 9", "fid failed at step 10: ValueError('no')"
  )  # fmt: skip
  assert page.step == 10


def test_metrics_of_a_group_tell_what_is_their_own(run):
  whole = {"images": 9, "network": "n", "warning": "", "seed": 0}
  few = whole | {"images": 5, "warning": "biased"}
  run.results(
    row(10, "mjhq_fid/distance", 1.0, settings=whole),
    row(10, "mjhq_fid/food", 2.0, settings=few),
    row(10, "mjhq_fid/people", 2.0, settings=whole),
    row(10, "vqa/all", 0.5, settings={}),
    row(10, "vqa/count", 0.5, settings={}),
  )
  assert run.page().notes == (
    "mjhq_fid: images: 9, network: n",
    "mjhq_fid/food: images: 5, warning: biased",
    "vqa",
  )


def test_what_the_caller_says_of_the_run_is_shown(run):
  (epath.Path(run.path) / "metrics.jsonl").write_text(
    '{"step": 1, "loss_text": 3.0, "loss_other": 2.0}\n'
  )
  run.results(row(10, "m", 1.0))
  page = run.page()
  assert (page.name, page.config) == ("tiny", {"decoder": "2 layers"})
  assert [(c.title, c.values) for c in page.curves] == [("L_text", (3.0,))]


def test_rewards_have_curves_of_their_own(run):
  rows = [{"step": s, "reward": 0.1 * s, "loss_text": 1.0} for s in (1, 2)]
  (epath.Path(run.path) / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  run.results(row(10, "m", 1.0))
  rewards, others = run.page().rewards
  assert rewards.values == (0.1, 0.2) and others.values == ()
  text = page.render_report(run.page())
  assert text.count("<h3>Rewards</h3>") == text.count("<h3>Losses</h3>") == 1
  assert rewards.title in text and others.title not in text


def test_samples_of_an_older_step_say_so(run):
  samples.write(run.path, 10, [drawn("a", 0)])
  run.results(row(10, "m", 1.0), row(20, "coco_fid/distance", 3.0, by="x"))
  page = run.page()
  assert page.step == 20 and len(page.generations) == 1
  assert page.notes[-1] == "the newest samples are of step 10"


def test_captions_and_answers_reach_the_page(run):
  image = np.zeros((4, 4, 3), np.uint8)
  samples.write(run.path, 10, [
    Shown("caption", image, "caption en", "a cat", "", False,
          references=("a dog", "an animal"), score=2.5, task="held_out"),
    Shown("answer", image, "how many?", "2", "3", False, task="count"),
  ])  # fmt: skip
  run.results(row(10, "m", 1.0))
  page = run.page()
  (caption,), (answer,) = page.captions, page.answers
  assert (caption.text, caption.references, caption.score, caption.correct,
          caption.group) == ("a cat", ("a dog", "an animal"), 2.5, False,
                             "held out")  # fmt: skip
  assert (answer.question, answer.answer, answer.truth, answer.correct,
          answer.task) == ("how many?", "2", "3", False, "count")  # fmt: skip


def test_tiles_are_in_printed_units_with_targets(run):
  run.results(
    row(10, "vqa/all", 0.75, 0.5),
    row(20, "geneval/overall", 0.5),
    row(20, "fid/ratio", 1.5),
    row(20, "captions/cider_d", float("nan")),
    row(20, "edits/success", 0.25, by="x"),
  )
  starts = epath.Path(run.path) / "starts.jsonl"
  targets = {"vqa/all": [">=", 0.8], "fid/ratio": ["<=", 3.0]}
  rows = [
    START | {"targets": {"vqa/all": [">=", 0.1]}},
    START | {"targets": targets, "step": 5},
    START | {"work": "evaluation", "targets": {}},
  ]
  starts.write_text("".join(json.dumps(r) + "\n" for r in rows))
  page = run.page()
  tiles = {t.name: t for t in page.tiles}
  assert list(tiles) == ["GenEval", "Fréchet distance", "VQA", "Edits done"]
  vqa = tiles["VQA"]
  assert (vqa.value, vqa.unit, vqa.end, vqa.floor) == (75.0, "%", 100.0, 50.0)
  assert vqa.bar == pytest.approx(80.0)  # of the last training
  assert vqa.remark == "at step 10"
  ratio = tiles["Fréchet distance"]
  assert (ratio.value, ratio.bar, ratio.lower_is_better) == (1.5, 3.0, True)
  assert tiles["GenEval"].bar is None and tiles["GenEval"].remark == ""
  bars = {s.name: s.bar for s in page.scores}
  assert bars["VQA"] == 0.8 and bars["GenEval overall"] is None
  assert [s.when for s in page.starts] == [
    "training from step 0 · 1970-01-01 00:00 UTC",
    "training from step 5 · 1970-01-01 00:00 UTC",
    "evaluation from step 0 · 1970-01-01 00:00 UTC",
  ]
  assert page.starts[0].command == START["command"]
  assert page.starts[0].facts == {
    "commit": "abc-dirty", "hardware": "2 cores", "versions": "jax 1"
  }  # fmt: skip


def test_times_come_from_what_the_run_logged():
  train = [
    {"step": 1, "goodput": 0.0, "step_seconds": 0.0},
    {"step": 9, "goodput": 0.8, "step_seconds": 480.0,
     "seconds_per_step": 0.25, "tokens_per_second": 5000.4},
  ]  # fmt: skip
  scored = [{"step": 9, "metric": "vqa", "seconds": 100.0},
            {"step": 9, "metric": "vqa", "seconds": 60.0},
            {"step": 9, "metric": "fid", "seconds": 5.0},
            row(9, "vqa/all", 1.0)]  # fmt: skip
  assert run_facts.times(train, scored) == {
    "training time": "10:00, 80 % of it in steps",
    "speed": "0.25 s per step, 5,000 tokens/s",
    "evaluation time": "1:05 for one checkpoint",
  }
  assert run_facts.times([{"step": 1}], []) == {}


@pytest.mark.parametrize(
  "name, lower, constant",
  [
    ("geneval/overall", False, False),
    ("fid/ratio", True, False),
    ("coco_fid/distance", True, False),
    ("fid/real", True, True),
    ("emoji_fid_held_out/real", True, True),
    ("detector/truth", False, True),
    ("emoji_drawn_held_out/top1", False, False),
    ("emoji_drawn_nearest_held_out/top1", False, True),
    ("tokenizer/psnr", False, True),
    ("validation_loss/t2i/loss", True, False),
    ("validation_loss_held_out/t2i/text_accuracy", False, False),
    ("edits/kept", False, False),
  ],
)
def test_ways_of_metrics(name, lower, constant):
  assert scales.lower_is_better(name) == lower
  assert scales.is_constant(name, run=True) == constant
  # Another run may have another tokenizer.
  frozen = name.startswith("tokenizer")
  assert scales.is_constant(name) == (constant and not frozen)


def test_attribution_is_read_beside_the_data(tmp_path):
  assert attribution.read("") == attribution.read(str(tmp_path)) == ""
  (tmp_path / "ATTRIBUTION").write_text("plain")
  assert attribution.read(str(tmp_path)) == "plain"
  (tmp_path / "ATTRIBUTION.md").write_text("first")
  assert attribution.read(str(tmp_path)) == "first"


def test_attribution_is_escaped_markdown_with_links():
  text = """# Sets
By <b>A</b>
and B.

- one, [CC & co](https://x.org/a?b=1&c=2)
  goes on
* two: https://y.org/z.
[no](javascript:alert)"""
  assert attribution.as_html(text) == (
    "<h3>Sets</h3><p>By &lt;b&gt;A&lt;/b&gt; and B.</p>"
    '<ul><li>one, <a href="https://x.org/a?b=1&amp;c=2" rel="noreferrer">'
    "CC &amp; co</a> goes on</li>"
    '<li>two: <a href="https://y.org/z" rel="noreferrer">https://y.org/z</a>. '
    "[no](javascript:alert)</li></ul>"
  )
