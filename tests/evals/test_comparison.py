"""Two runs: what is subtracted, what is paired, what is refused."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from tests.evals.test_report import _Page
from unifluid_jax.evals.bench import Shown
from unifluid_jax.evals.report import (
  comparison,
  comparison_page,
  images,
  intervals,
  run_groups,
  samples,
)
from unifluid_jax.evals.report.types import (
  ComparedRow,
  Comparison,
  RunGroup,
)

LOSSES = {"loss_text": "L_text"}


def row(metric, value, floor=None, step=10, **settings):
  return {"step": step, "metric": metric, "value": value, "floor": floor,
          "settings": settings}  # fmt: skip


def drawn(prompt, seed, value=0, task="single_object", correct=None):
  image = np.full((4, 4, 3), value, np.uint8)
  return Shown("generated", image, prompt, correct=correct, task=task,
               seed=seed)  # fmt: skip


def make(folder, rows, shown=(), losses=(), config=None, step=10):
  """A run's workdir."""
  folder.mkdir(parents=True)
  lines = "".join(json.dumps(r) + "\n" for r in rows)
  (folder / "metrics_eval.jsonl").write_text(lines)
  lines = [{"step": s, "loss_text": v} for s, v in losses]
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(r) + "\n" for r in lines)
  )
  if shown:
    samples.write(str(folder), step, shown)
  if config:
    meta = folder / "checkpoints" / str(step) / "meta"
    meta.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps({"config": config}))
    (meta.parent / "_CHECKPOINT_METADATA").write_text("{}")
  return str(folder)


def compared(*workdirs, step=None):
  runs = [comparison.read(workdir, step) for workdir in workdirs]
  return comparison.compare(runs, LOSSES, {"cfg"})


def pair(name, a, b, objection="", **more):
  return ComparedRow(name, ((a,), (b,)), objections=("", objection), **more)


def value(estimate):
  return None if estimate is None else estimate.value


def differences(found):
  return {
    f"{r.group}/{r.name}": value(comparison_page.difference(r, 1))
    for r in found.scores
  }


def test_differences_are_the_second_minus_the_first():
  def difference(a, b, **more):
    found = comparison_page.difference(pair("m", a, b, **more), 1)
    assert found is None or found.half is None  # of one seed each
    return value(found)

  assert difference(0.25, 0.75) == 0.5
  assert difference(0.75, 0.25, lower_is_better=True) == -0.5
  for missing in (None, math.nan, math.inf):
    assert difference(missing, 1.0) is None
    assert difference(1.0, missing) is None
  assert difference(0.25, 0.75, objection="other data") is None


def cells(html, name):
  """Of one metric's row: class and text of each cell."""
  line = html[html.index(f'<th scope="row">{name}<') :]
  line = line[: line.index("</tr>")]
  return [
    (kind, re.sub(r"<[^>]*>", "", text))
    for kind, text in re.findall(r'<td(?: class="([^"]*)")?>(.*?)</td>', line)
  ]


def test_colours_say_which_run_is_better():
  rows = (
    pair("up", 0.5, 0.75, floor=0.125),
    pair("down", 0.75, 0.5),
    pair("far", 9.0, 7.5, lower_is_better=True),
    pair("farther", 7.5, 9.0, lower_is_better=True),
    pair("same", 0.5, 0.5 - 1e-6),
    pair("gone", 0.5, None),
    pair("other", 0.5, 0.75, "images 3 against 4"),
    pair("fixed", 6.0, 7.0, constant=True),
  )
  groups = RunGroup("a", ("a",), 1), RunGroup("b", ("b",), 2)
  html = comparison_page.render(Comparison(groups, "now", scores=rows))
  assert cells(html, "up") == [
    ("", "0.500"), ("", "0.750"), ("delta good", "+0.250"), ("ref", "0.125")
  ]  # fmt: skip
  assert cells(html, "down")[2] == ("delta bad", "−0.250")
  assert cells(html, "far")[2] == ("delta good", "−1.500")
  assert cells(html, "farther")[2] == ("delta bad", "+1.500")
  assert cells(html, "same")[2] == ("delta", "0.000")
  assert cells(html, "gone") == [
    ("", "0.500"), ("", "–"), ("delta", "–"), ("ref", "–")
  ]  # fmt: skip
  assert cells(html, "other")[2] == ("delta", "≠")
  assert 'title="images 3 against 4"' in html
  assert cells(html, "fixed")[2] == ("delta", "+1.000")
  assert '<th scope="row">fixed</th>' in html


def test_metrics_of_one_run_are_missing_in_the_other(tmp_path):
  a = make(tmp_path / "a", [row("vqa/all", 0.5), row("edits/kept", 0.25)])
  b = make(tmp_path / "b", [row("vqa/all", 0.625),
                            row("fid/generated", 8.0)])  # fmt: skip
  found = compared(a, b)
  assert [(r.group, r.name, r.values) for r in found.scores] == [
    ("vqa", "VQA", ((0.5,), (0.625,))),
    ("edits", "kept", ((0.25,), (None,))),
    ("fid", "Fréchet distance, generated", ((None,), (8.0,))),
  ]
  assert list(differences(found).values()) == [0.125, None, None]


def test_what_was_not_measured_alike_is_not_subtracted(tmp_path):
  gqa = {"gqa": {"split": "testdev", "limit": 0}}
  a = make(tmp_path / "a", [
    row("geneval/overall", 0.5, 0.1, prompts_per_task=64, cfg=2.0),
    row("vqa/all", 0.5, 0.2, questions=512),
    row("captions/exact", 0.5, 0.3, tokenizer="x", decode="greedy"),
    row("transfer/gqa", 0.5, **gqa, okvqa={"split": "val"}),
    row("transfer/okvqa", 0.5, **gqa, okvqa={"split": "val"}),
  ])  # fmt: skip
  b = make(tmp_path / "b", [
    row("geneval/overall", 0.75, 0.1, prompts_per_task=16, cfg=3.0),
    row("vqa/all", 0.75, 0.25, questions=512),
    row("captions/exact", 0.75, 0.3, tokenizer="x", decode="beam"),
    row("transfer/gqa", 0.75, **gqa),
    row("transfer/okvqa", 0.75, okvqa={"split": "test"}),
  ])  # fmt: skip
  found = compared(a, b)
  assert differences(found) == {
    "geneval/GenEval overall": None,
    "vqa/VQA": None,
    "captions/exact": 0.25,  # decoding is the run's own affair
    "transfer/gqa": 0.25,  # other tasks of the run do not matter
    "transfer/okvqa": None,
  }
  assert [r.objections for r in found.scores[:2]] == [
    ("", "prompts_per_task 64 against 16"),
    ("", "other data, since the floors differ"),
  ]
  notes = " / ".join(found.notes)
  assert "geneval: not measured alike" in notes
  assert "geneval: cfg 2.0 against 3.0" in notes
  assert "captions: decode greedy against beam" in notes
  assert "transfer: not measured alike, so no difference: split val" in notes
  floors = {r.name: r.floor for r in found.scores}
  assert floors["exact"] == 0.3 and floors["VQA"] is None


def test_only_the_same_prompts_and_seeds_are_paired(tmp_path):
  a = make(tmp_path / "a", [row("m/x", 1.0)], [
    drawn("one", 0, 1, correct=True), drawn("two", 1, 2), drawn("three", 2, 3),
    Shown("answer", np.zeros((4, 4, 3), np.uint8), "one", seed=0),
  ])  # fmt: skip
  b = make(tmp_path / "b", [row("m/x", 1.0)], [
    drawn("one", 0, 11, correct=False), drawn("two", 7, 12),
    drawn("other", 2, 13), drawn("more", 3, 14),
  ])  # fmt: skip
  found = compared(a, b)
  (pair,) = found.samples
  assert pair.prompt == "one"
  assert [int(g.image[0, 0, 0]) for g in pair.drawn] == [1, 11]
  assert [g.correct for g in pair.drawn] == [True, False]
  assert found.unpaired == (
    "1 samples have the same prompt and seed in both runs; 2 and 3 have no "
    "counterpart and are not shown"
  )
  html = comparison_page.render(found)
  assert found.unpaired in html
  beside = images.pairs(["a", "b"], [0, 1], found.samples)
  assert "<h3>single object<small>1 of 1 against 0 of 1 correct" in beside


def test_runs_without_samples_say_so(tmp_path):
  a = make(tmp_path / "a", [row("m/x", 1.0)], [drawn("one", 0)])
  b = make(tmp_path / "b", [row("m/x", 1.0)])
  found = compared(a, b)
  assert found.samples == ()
  assert found.unpaired == f"{b} has no samples of step 10"
  assert found.unpaired in comparison_page.render(found)
  whole = compared(a, make(tmp_path / "c", [row("m/x", 1.0)],
                           [drawn("one", 0)]))  # fmt: skip
  assert len(whole.samples) == 1 and whole.unpaired == ""


def test_steps_are_the_newest_or_the_one_asked_for(tmp_path):
  rows = [row("m/x", 1.0), row("m/x", 2.0, step=20)]
  a = make(tmp_path / "a", rows)
  b = make(tmp_path / "b", [row("m/x", 5.0)])
  assert [g.step for g in compared(a, b).groups] == [20, 10]
  assert differences(compared(a, b)) == {"m/x": 3.0}
  assert differences(compared(a, b, step=10)) == {"m/x": 4.0}
  with pytest.raises(ValueError, match=r"b/.* has no results of step 20; .*10"):
    compared(a, b, step=20)
  failed = make(tmp_path / "c", [{"step": 1, "metric": "m", "error": "no"}])
  with pytest.raises(ValueError, match="every metric failed"):
    compared(a, failed)


def test_configurations_and_losses(tmp_path):
  shared = {"seed": 0, "optim": {"lr": 0.1, "name": "muon"}}
  a = make(tmp_path / "a", [row("m/x", 1.0)], losses=[(1, 4.0), (2, 2.0)],
           config=shared | {"loss": {"text_weight": 0.2}})  # fmt: skip
  b = make(
    tmp_path / "b",
    [row("m/x", 1.0)],
    losses=[(1, 3.0)],
    config=shared | {"loss": {"text_weight": 1}, "new": "<b>"},
  )
  found = compared(a, b)
  assert found.config == (
    ("loss.text_weight", "0.2", "1"), ("new", "", "<b>")
  )  # fmt: skip
  charts = {c.title: c for c in found.training}
  assert [c.values for c in charts["L_text"].curves] == [
    (4.0, 2.0), (3.0,)
  ]  # fmt: skip
  bare = compared(a, make(tmp_path / "c", [row("m/x", 1.0)]))
  assert bare.config == ()
  assert bare.notes == (
    "c: no checkpoint is left, so its configuration is not known",
  )


def test_names_are_what_differs_of_the_paths():
  assert run_groups.run_names(["x/a", "x/b/"]) == ["a", "b"]
  assert run_groups.run_names(["x/a", "y/a"]) == ["x/a", "y/a"]
  assert run_groups.group_names([["shapes_seed0", "shapes_seed1"], ["b"]]) == [
    "shapes", "b"
  ]  # fmt: skip
  alike = [["run1", "run2"], ["run3", "run4"]]
  assert run_groups.group_names(alike) == ["run1", "run3"]
  assert run_groups.group_names([["x", "y"]]) == ["x"]


def test_page_is_whole_escaped_and_alone(tmp_path):
  a = make(tmp_path / "<i>a", [row("vqa/<u>", 1.0), row("vqa/all", 0.5),
           row("vqa/all", 0.25, step=5)], [drawn("<script>x", 0)],
           [(1, 4.0), (2, 2.0)], {"k": "<b>"})  # fmt: skip
  b = make(
    tmp_path / "b",
    [row("vqa/<u>", 2.0), row("vqa/all", 0.75)],
    [drawn("<script>x", 0)],
    [(1, 3.0), (3, 2.5)],
    {"k": "2"},
  )
  out = tmp_path / "deep" / "compare.html"
  comparison.write(out, [a, b], None, LOSSES, ())
  html = out.read_text()
  page = _Page(html)
  for tag in ("i>a", "u>", "b>", "script"):
    assert f"<{tag}" not in html
  text = " ".join(page.text)
  for expected in ("<i>a", "<script>x", "<u>", "<b>", "VQA", "+0.250",
                   "L_text", "step 10"):  # fmt: skip
    assert expected in text, expected
  assert page.tags.count("img") == 2
  assert not {"script", "link", "iframe"} & set(page.tags)
  assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
  ids = page.values("section", "id")
  assert ids == ["curves", "scores", "configuration"]
  order = ['class="pairs"', 'class="tiles"', "<nav>", 'id="curves"']
  assert sorted(order, key=html.index) == order
  assert [h.removeprefix("#") for h in page.values("a", "href")] == ids
  # Losses of both; the score's curve has two points of one run, one of two.
  assert html.count('class="s0"><path class="raw"') == 1
  assert html.count('class="s1"><path class="raw"') == 1


def test_wrong_runs_are_refused(tmp_path):
  a = make(tmp_path / "a", [row("m/x", 1.0)])
  for runs, message in (
    ([a], "takes 2 to 6 workdirs, RUN_A,RUN_B,..., not 1"),
    ([a] * 7, "not 7"),
    ([a, a], "names .*/a twice"),
  ):
    with pytest.raises(ValueError, match=message):
      comparison.write(tmp_path / "x.html", runs, None, LOSSES, ())
  with pytest.raises(FileNotFoundError, match="evaluate this run first"):
    comparison.write(tmp_path / "x.html", [a, str(tmp_path)], None, LOSSES, ())
  assert not (tmp_path / "x.html").exists()


# -------------------------------------------------------------- several seeds


def test_intervals_are_students():
  # NIST/SEMATECH e-handbook, 1.3.6.7.2: t of .975 is 4.303 for 2 degrees of
  # freedom, 2.776 for 4.
  a = (1.0, 2.0, 3.0)
  found = intervals.mean(a)
  assert found.value == 2.0
  assert found.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
  # Equal variances and sizes: Welch's degrees of freedom are 2 (n - 1).
  found = intervals.difference(a, (11.0, 12.0, 13.0))
  assert found.value == 10.0
  assert found.half == pytest.approx(2.776 * math.sqrt(2 / 3), rel=1e-3)
  assert found.excludes_zero
  near = intervals.difference(a, (2.0, 3.0, 4.0))
  assert near.value == 1.0 and not near.excludes_zero
  # One seed on either side tells nothing of its spread.
  assert intervals.mean((1.0,)) == (1.0, None)
  for pair_ in ((a, (9.0,)), ((9.0,), a)):
    one = intervals.difference(*pair_)
    assert one.half is None and not one.excludes_zero
  assert intervals.difference((1.0, 1.0), (2.0, 2.0)) == (1.0, 0.0)


def test_unequal_variances_have_welchs_freedom():
  a, b = (0.0, 2.0), (0.0, 30.0, 60.0)
  va, vb = 1.0, 300.0  # of the means: 2 / 2, 900 / 3
  freedom = (va + vb) ** 2 / (va**2 / 1 + vb**2 / 2)
  half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
  found = intervals.difference(a, b)
  assert found.value == 29.0 and found.half == pytest.approx(half)
  theirs = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
  assert found.value + found.half == pytest.approx(theirs.high)


def seeds(folder, scores, config, start=0):
  return [
    make(folder.parent / f"{folder.name}_seed{i}", [row("vqa/all", value)],
         [drawn("one", 0, i)], [(1, 1.0), (2, 2.0 + i)],
         config | {"seed": i, "name": f"n{i}"})
    for i, value in enumerate(scores, start)
  ]  # fmt: skip


def test_runs_of_one_configuration_are_averaged(tmp_path):
  a = seeds(tmp_path / "a", (0.25, 0.5, 0.75), {"lr": 1})
  b = seeds(tmp_path / "b", (0.5, 0.5), {"lr": 2})
  found = compared(a[0], b[0], a[1], a[2], b[1])
  assert found.groups == (
    RunGroup("a", ("a_seed0", "a_seed1", "a_seed2"), 10),
    RunGroup("b", ("b_seed0", "b_seed1"), 10),
  )
  (score,) = found.scores
  assert score.values == ((0.25, 0.5, 0.75), (0.5, 0.5))
  assert found.config == (("lr", "1", "2"), ("seed", "0, 1, 2", "0, 1"))
  (chart,) = found.training
  assert [c.series for c in chart.curves] == [0, 0, 0, 1, 1]
  assert [c.values[-1] for c in chart.curves] == [2.0, 3.0, 4.0, 2.0, 3.0]
  html = comparison_page.render(found)
  half = 4.303 * 0.25 / math.sqrt(3)
  assert cells(html, "VQA") == [
    ("", f"0.500 ± {half:.3f}"), ("", "0.500 ± 0.000"),
    ("delta", f"0.000 ± {half:.3f}"),
  ]  # fmt: skip
  assert "n = 3" in html and "n = 2" in html
  each = html[html.index('id="each-run"') :]
  assert [text for _, text in cells(each, "VQA")] == [
    "0.250", "0.500", "0.750", "0.500", "0.500"
  ]  # fmt: skip
  assert '<i class="swatch"></i><span>3.0000</span>' in html  # mean of ends
  assert [int(d.image[0, 0, 0]) for d in found.samples[0].drawn] == [
    0, 1, 2, 0, 1
  ]  # fmt: skip


def test_what_is_no_other_seed_is_no_other_draw(tmp_path):
  a = seeds(tmp_path / "a", (0.25, 0.5), {"lr": 1})
  (again,) = seeds(tmp_path / "again", (0.5,), {"lr": 1})  # of seed 0
  (other,) = seeds(tmp_path / "other", (0.5,), {"lr": 2}, 1)
  bare = make(tmp_path / "bare", [row("vqa/all", 1.0)])
  found = compared(*a, again, other, bare)
  assert [g.runs for g in found.groups] == [
    ("a_seed0", "a_seed1"), ("again_seed0",), ("other_seed1",), ("bare",)
  ]  # fmt: skip
  html = comparison_page.render(found)
  assert cells(html, "VQA")[1] == ("", "0.500")  # one seed: no interval
  assert cells(html, "VQA")[2] == ("delta good", "+0.125")
  assert "Of one seed there is no interval" in html
  assert "Welch" not in html


def test_other_steps_are_no_other_seeds(tmp_path):
  a = make(tmp_path / "a", [row("vqa/all", 0.5)], config={"seed": 0})
  b = make(tmp_path / "b", [row("vqa/all", 0.5, step=20)], step=20,
           config={"seed": 1})  # fmt: skip
  assert [g.step for g in compared(a, b).groups] == [10, 20]


def test_only_intervals_without_zero_have_a_colour(tmp_path):
  a = seeds(tmp_path / "a", (0.25, 0.5), {"lr": 1})
  b = seeds(tmp_path / "b", (0.375, 0.5), {"lr": 2})
  c = seeds(tmp_path / "c", (8.0, 8.25), {"lr": 3})
  found = cells(comparison_page.render(compared(*a, *b, *c)), "VQA")
  assert [kind for kind, text in found if text[0] in "+−"] == [
    "delta", "delta good"
  ]  # fmt: skip


def test_a_seed_without_a_score_is_told(tmp_path):
  a = seeds(tmp_path / "a", (0.25, 0.75, math.nan), {"lr": 1})
  (b,) = seeds(tmp_path / "b", (0.5,), {"lr": 2})
  html = comparison_page.render(compared(*a, b))
  assert cells(html, "VQA")[0][1].endswith("(n = 2)")
  assert cells(html[html.index('id="each-run"') :], "VQA")[2] == ("", "–")


def test_a_run_without_samples_leaves_the_others_theirs(tmp_path):
  shown = [drawn("one", 0, 3)]
  a, c = (make(tmp_path / n, [row("m/x", 1.0)], shown) for n in "ac")
  b = make(tmp_path / "b", [row("m/x", 1.0)])
  found = compared(a, b, c)
  (line,) = found.samples
  assert [d is None for d in line.drawn] == [False, True, False]
  assert found.unpaired == f"{b} has no samples of step 10"
  html = comparison_page.render(found)
  grid = html[html.index('<table class="grid"') :]
  assert ["<img" in c for c in re.findall("<td>(.*?)</td>", grid)[:3]] == [
    True, False, True
  ]  # fmt: skip
