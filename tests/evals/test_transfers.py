"""Scores of transfer tasks, and the table that gathers 24 of them."""

import json

import numpy as np
import pytest

from configs import transfer as transfer_config
from tests import task_sets
from unifluid_jax import systems
from unifluid_jax.data.fields import Example, Picture, Pixels
from unifluid_jax.data.transfers import tasks
from unifluid_jax.evals import transfers
from unifluid_jax.evals.bench import Bench

BY_NAME = {row.name: row for row in tasks.ROWS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return str(task_sets.make(tmp_path_factory.mktemp("sets")))


class Seer:
  """Answers what it was told, and remembers what it was shown."""

  def __init__(self, said):
    self.said, self.shown, self.prompts = list(said), [], []

  def answers(self, images, questions):
    self.shown += images
    self.prompts += questions
    start = len(self.prompts) - len(questions)
    return self.said[start : start + len(questions)]

  def look(self, record):
    frames = (record.image, *record.more)
    example = Example({}, {"seen": Picture(frames, record.marks)})
    return Pixels("seen", 32, "squash", len(frames)).view(example)

  def images(self, prompts, seeds):
    raise AssertionError("transfers draw nothing")

  edits = reconstruct = images


def bench(root, name, **changes):
  c = transfer_config.get_config(f"{name},debug")
  c.data.root = root
  c.data.threads = 2
  c.update_from_flattened_dict(changes)
  return Bench(systems.resolve(c), "")


def truth(root, rows):
  """A right answer to every example of the rows, keys sorted as evaluated."""
  said = []
  for row in sorted(rows, key=lambda r: r.name):
    examples = tasks.read(row, root, row.split)
    said += [tasks.targets(row, e)[0] for e in examples]
  return said


@pytest.mark.parametrize("run", dict.fromkeys(r.run for r in tasks.ROWS))
def test_right_answers_score_full_marks_and_wrong_ones_none(root, run):
  rows = tasks.rows(run)
  said = truth(root, rows)
  seer = Seer(said)
  right = transfers.transfer(seer, bench(root, run))
  wrong = transfers.transfer(Seer(["nothing"] * len(said)), bench(root, run))
  for row in rows:
    key = f"transfer/{row.name}"
    assert wrong.values[key] == 0
    if row.group == "caption":
      assert right.values[key] > 3  # one of two captions is met exactly
    else:
      assert right.values[key] == 1
    settings = right.settings[row.name]
    assert (settings["split"], settings["scored"]) == (row.split, 2)
  asked = [
    tasks.prompt(row, e)
    for row in sorted(rows, key=lambda r: r.name)
    for e in tasks.read(row, root, row.split)
  ]
  assert seer.prompts == asked
  shape = (2, 32, 32, 3) if run == "nlvr2" else (32, 32, 3)
  assert {image.shape for image in seer.shown} == {shape}
  assert len(right.shown) == len(said)
  group = {row.title: row.group for row in rows}
  for good, bad in zip(right.shown, wrong.shown, strict=True):
    assert good.image.shape == (32, 32, 3) and good.task in group
    if group[good.task] == "caption":
      assert good.kind == "caption" and good.references
      assert good.score > bad.score == 0 and good.correct is None
    else:
      assert (good.kind, good.correct, bad.correct) == ("answer", True, False)


def test_half_right_is_half_the_score(root):
  outcome = transfers.transfer(Seer(["red", "red"]), bench(root, "gqa"))
  assert outcome.values == {"transfer/gqa": 0.5}
  # Types weigh alike, and come along as parts.
  outcome = transfers.transfer(Seer(["YES", "yes"]), bench(root, "rsvqa_lr"))
  assert outcome.values == {
    "transfer/rsvqa_lr": 0.5, "transfer/rsvqa_lr/comp": 1.0,
    "transfer/rsvqa_lr/presence": 0.0, "transfer/rsvqa_lr/overall": 0.5,
  }  # fmt: skip


def test_images_come_as_training_shows_them_in_chunks(root, monkeypatch):
  monkeypatch.setattr(transfers, "_CHUNK", 1)
  seer, made, said = Seer(["red", "blue"]), bench(root, "gqa"), []
  made.say = said.append
  transfers.transfer(seer, made)
  assert [x.partition(" (")[0] for x in said] == ["gqa 1/2", "gqa 2/2"]
  for image, colour in zip(seer.shown, [(255, 0, 0), (0, 0, 255)],
                           strict=True):  # fmt: skip
    assert (image == np.array(colour)).all()


def test_a_source_of_weight_zero_is_left_out(root):
  changes = {f"data.eval.{n}.weight": 0.0
             for n in ("tallyqa_simple", "countbenchqa")}  # fmt: skip
  outcome = transfers.transfer(
    Seer(["3", "4"]), bench(root, "tallyqa", **changes)
  )
  assert set(outcome.settings) == {"tallyqa_complex"}
  with pytest.raises(ValueError, match="use configs/transfer.py"):
    transfers.transfer(
      Seer([]), bench(root, "gqa", **{"data.eval.gqa.weight": 0.0})
    )


def test_a_corrupt_image_is_left_out_named_and_counted(root, tmp_path, caplog):
  task_sets.write(tmp_path / "gqa", task_sets.SETS["gqa"]())
  first, second = (tmp_path / f"gqa/images/{i}.jpg" for i in range(2))
  first.write_bytes(b"junk")
  with caplog.at_level("WARNING", logger="absl"):
    outcome = transfers.transfer(Seer(["blue"]), bench(str(tmp_path), "gqa"))
  # The other image's answer, of two examples the second, is right.
  assert outcome.values["transfer/gqa"] == 1.0
  settings = outcome.settings["gqa"]
  assert (settings["skipped"], settings["scored"]) == (1, 1)
  assert "gqa[00]: image of 4 bytes" in caplog.text
  (shown,) = outcome.shown
  assert shown.correct and (shown.image == (0, 0, 255)).all()
  second.write_bytes(b"junk")
  with pytest.raises(ValueError, match="gqa: none of 2 images can be read"):
    transfers.transfer(Seer([]), bench(str(tmp_path), "gqa"))


def test_only_public_answers_are_scored():
  row = BY_NAME["docvqa"]
  known = [tasks.Example("1", (), "q", ("ab",)),
           tasks.Example("2", (), "q", ())]  # fmt: skip
  found = transfers.score(row, known, ["ab", "x"])
  assert (found.value, set(found.scores)) == (1.0, {"1"})
  with pytest.raises(ValueError, match="docvqa: no example has a public"):
    transfers.score(row, known[1:], ["x"])
  with pytest.raises(ValueError, match="1 answers to 2 examples"):
    transfers.score(row, known, ["x"])


# ---------------------------------------------------------------- the table


def settings(row, **changes):
  decode = f"beam {row.beam}" if row.beam > 1 else "greedy"
  return dict(split=row.split, decode=decode, unanswered=0, limit=0) | changes


def results(**changes):
  """PaliGemma 2 3B's published numbers at 224 pixels, as results."""
  published = """
    141.3 127.5 113.3 138.1 64.2 79.7 64.2 66.2 91.4 74.7 96.1 93.0 92.7 90.9
    42.0 74.4 76.4 81.8 70.3 81.0 59.6 39.9 25.2 61.9
  """
  out = {}
  for row, value in zip(tasks.ROWS, published.split(), strict=True):
    found = settings(row, **changes.get(row.name, {}))
    out[row.name] = transfers.Result(float(value) / 100, 9, "runs/x", found)
  return out


def test_averages_of_published_numbers():
  """(141.3 + 113.3 + 127.5 + 138.1) / 4, and the mean of 20."""
  table = transfers.table(results())
  np.testing.assert_allclose(table.cap_avg, 130.05)
  np.testing.assert_allclose(table.qa_avg, 71.28)
  assert table.missing == ()
  lines = table.text.splitlines()
  assert lines[-2] == "Cap Avg  130.05 (mean of 4)"
  assert lines[-1] == "QA Avg   71.28 (mean of 20)"
  assert lines[1].split()[:6] == [
    "COCOcap", "val", "beam", "2", "cider_d", "141.30"
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    (dict(split="test"), "is of split testdev_balanced"),
    (dict(limit=64), "the first 64 examples"),
    (dict(skipped=2), "2 unreadable images left out"),
    (dict(decode="sample"), "decoded by greedy"),
  ],
)
def test_what_is_not_the_papers_number_does_not_count(changes, reason):
  table = transfers.table(results(gqa=changes))
  assert table.qa_avg is None and table.missing == ("gqa",)
  assert table.cap_avg is not None
  assert reason in table.text and "19 of 20 rows count; missing: GQA" in (
    table.text
  )


def test_the_captions_tokenizer_is_named():
  assert "tokenizer" not in transfers.table(results()).text
  table = transfers.table(results(textcaps=dict(tokenizer="mine")))
  assert table.text.endswith("CIDEr-D tokenizer: mine")


def test_missing_rows_are_named():
  found = results()
  del found["cococap"], found["countbenchqa"]
  table = transfers.table(found)
  assert (table.cap_avg, table.qa_avg) == (None, None)
  assert table.missing == ("cococap", "countbenchqa")
  assert "Cap Avg  - (3 of 4 rows count; missing: COCOcap)" in table.text
  assert "missing: CountBenchQA)" in table.text


def write_results(folder, rows):
  folder.mkdir(parents=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "metrics_eval.jsonl").write_text(text)


def line(name, step, value, **more):
  row = BY_NAME[name]
  return {"step": step, "metric": f"transfer/{name}", "value": value,
          "settings": {name: settings(row)}} | more  # fmt: skip


def test_results_are_gathered_from_workdirs(tmp_path):
  a, b = tmp_path / "runs/a", tmp_path / "runs/b"
  write_results(a, [
    line("gqa", 5, 0.1), line("gqa", 10, 0.2), line("gqa", 10, 0.3),
    line("gqa", 7, 0.9), {"step": 10, "metric": "vqa/all", "value": 1.0},
    {"step": 11, "metric": "transfer", "error": "no data"},
    {**line("rsvqa_lr", 10, 1.0), "metric": "transfer/rsvqa_lr/comp"},
  ])  # fmt: skip
  write_results(b, [line("rsvqa_lr", 3, 0.5)])
  found = transfers.collect([str(a), str(b)])
  assert {n: (r.value, r.step, r.workdir) for n, r in found.items()} == {
    "gqa": (0.3, 10, str(a)), "rsvqa_lr": (0.5, 3, str(b))
  }  # fmt: skip
  assert transfers.workdirs_below(str(tmp_path / "runs")) == [str(a), str(b)]
  text = transfers.summary((), str(tmp_path / "runs"))
  assert text == transfers.summary([str(a), str(b)], None)
  assert "30.00  step 10" in text


def test_what_cannot_be_gathered_is_refused(tmp_path):
  a, b = tmp_path / "a", tmp_path / "b"
  write_results(a, [line("gqa", 5, 0.1)])
  write_results(b, [line("gqa", 5, 0.2)])
  with pytest.raises(ValueError, match="gqa is scored in .*a and in .*b"):
    transfers.collect([str(a), str(b)])
  with pytest.raises(FileNotFoundError, match="evaluate this workdir first"):
    transfers.collect([str(tmp_path)])
  with pytest.raises(FileNotFoundError, match="no folder of"):
    transfers.workdirs_below(str(a))
  for given in ([], None), (["a"], "b"):
    with pytest.raises(ValueError, match="--workdirs=A,B,... or --root=DIR"):
      transfers.summary(*given)
