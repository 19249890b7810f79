"""The table of transfers against the published settings, and its texts."""

import pytest

from unifluid_jax.data.transfers import tasks
from unifluid_jax.data.transfers.files import Example
from unifluid_jax.evals.metrics import answers

BY_NAME = {row.name: row for row in tasks.ROWS}

# run, length, epochs, batch, lr, weight decay, dropout, smoothing, lr of
# PaliGemma 2, beam, metric, published training examples
PUBLISHED = """
cococap      32  5 256 1e-5 1e-6 0  0  3e-6 2 cider_d    113287
textcaps     32  5 256 1e-5 1e-6 0  0  1e-6 3 cider_d    21953
screen2words 24 10 256 1e-5 0    .3 .2 6e-6 1 cider_d    18107
widgetcap    32  4  64 3e-6 3e-7 .1 .1 3e-6 1 cider_d    44704
okvqa        32 10 128 5e-6 0    0  0  3e-6 1 vqa_simple 9009
aokvqa_mc   128 15 128 5e-6 0    0  0  3e-6 1 exact      18201
aokvqa_da    32 10 128 5e-6 0    0  0  3e-6 1 vqa_simple 18201
gqa          32  1 256 1e-5 0    0  0  3e-6 1 exact      1075062
nlvr2        64  3 256 1e-5 1e-6 0  0  6e-6 1 exact      93355
ai2d        128 10 256 1e-5 1e-6 0  0  6e-6 1 exact      12413
science_qa  512 20 128 1e-5 0    0  0  6e-6 1 letters    8315
rsvqa_lr     32  3 256 3e-6 0    0  .2 3e-6 1 by_type    47173
rsvqa_hr     32  1 256 1e-5 0    0  0  1e-5 1 by_type    432239
chartqa      48 30 256 1e-5 1e-6 .1 .2 3e-6 1 relaxed    30219
vizwizvqa    48 10 256 1e-5 0    0  0  1e-5 1 vqa_simple 24842
tallyqa      32  2 256 1e-5 0    0  0  6e-6 1 counts     249318
textvqa      32  5 256 3e-6 0    0  0  3e-6 1 vqa_v2     39602
docvqa       32 10 256 1e-5 1e-6 0  0  6e-6 1 anls       44812
infovqa      48  3 256 1e-5 1e-6 0  .4 3e-6 1 anls       26747
stvqa        48  3 256 1e-5 1e-6 0  .1 6e-6 1 anls       26074
"""

ORDER = """
COCOcap, TextCaps, Screen2Words, WidgetCap, OKVQA, AOKVQA-MC, AOKVQA-DA, GQA,
NLVR2, AI2D, ScienceQA, RSVQA-lr, RSVQA-hr (test), RSVQA-hr (test2),
ChartQA (human), ChartQA (aug), VizWizVQA, TallyQA (simple), TallyQA (complex),
CountBenchQA, TextVQA, DocVQA, InfoVQA, ST-VQA
""".replace("\n", " ")


def test_four_captioning_and_twenty_question_answering_numbers():
  groups = [row.group for row in tasks.ROWS]
  assert (groups.count("caption"), groups.count("qa")) == (4, 20)
  assert len(BY_NAME) == 24
  titles = [t.strip() for t in ORDER.split(",")]
  assert [row.title for row in tasks.ROWS] == titles
  assert {row.metric for row in tasks.ROWS} == set(answers.METRICS)


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines())
def test_settings_are_the_published_ones(line):
  run, *numbers, metric, size = line.split()
  expected = (*map(float, numbers), metric, int(size))
  for row in tasks.rows(run):
    assert (
      row.length, row.epochs, row.batch, row.lr, row.weight_decay,
      row.dropout, row.smoothing, row.lr2, row.beam, row.metric,
      row.train_size,
    ) == expected  # fmt: skip


def test_every_run_is_checked_and_only_science_qa_freezes_the_encoder():
  runs = [line.split()[0] for line in PUBLISHED.strip().splitlines()]
  assert list(dict.fromkeys(row.run for row in tasks.ROWS)) == runs
  assert [r.name for r in tasks.ROWS if r.freeze_vit] == ["science_qa"]
  lowered = {r.run for r in tasks.ROWS if r.lower}
  assert lowered == {"textcaps", "rsvqa_lr", "rsvqa_hr", "infovqa", "stvqa"}
  assert [r.run for r in tasks.ROWS if r.target == "random"] == ["docvqa"]


def test_nothing_is_scored_on_what_it_was_trained_on():
  for row in tasks.ROWS:
    trained = {s for mixed in row.train for s in mixed.split("+")}
    if row.name != "countbenchqa":
      assert row.split not in trained
    held = {s for mixed in row.final for s in mixed.split("+")}
    assert bool(row.server) == bool(row.final)
    assert row.server not in held
    assert not row.weights or len(row.weights) == len(row.train)


def test_steps_of_an_epoch_count():
  row = BY_NAME["cococap"]
  assert row.epochs * row.train_size // row.batch == 2212
  row = BY_NAME["gqa"]
  assert row.epochs * row.train_size // row.batch == 4199


def test_a_row_is_found_by_its_name_or_its_runs():
  assert tasks.named("chartqa_aug").split == "test_augmented"
  assert tasks.named("chartqa") is BY_NAME["chartqa_human"]
  assert tasks.named("cococap") is BY_NAME["cococap"]
  with pytest.raises(ValueError, match="no transfer task 'coco'.* cococap, "):
    tasks.named("coco")


def test_what_is_held_out_of_the_published_training_sets():
  """The sizes of the validation splits, as their sets publish them."""
  assert {r.name: r.held for r in tasks.ROWS if r.held} == {
    "aokvqa_mc": 1145, "aokvqa_da": 1145, "vizwizvqa": 4319, "textvqa": 5000,
    "docvqa": 5349, "infovqa": 2801, "stvqa": 2628,
  }  # fmt: skip
  assert all(bool(r.held) == bool(r.final) for r in tasks.ROWS)


@pytest.mark.parametrize(
  ("name", "changes", "answered"),
  [
    ("okvqa", dict(answers=("", "x")), True),
    ("okvqa", dict(answers=("", " ")), False),
    ("okvqa", dict(answers=()), False),
    ("ai2d", dict(correct=2), True),
    ("ai2d", dict(correct=3), False),
    ("science_qa", dict(correct=-1), False),
  ],
)
def test_answered(name, changes, answered):
  assert tasks.answered(BY_NAME[name], CHOICES._replace(**changes)) == answered


def test_rows_of_a_run():
  names = [row.name for row in tasks.rows("tallyqa")]
  assert names == ["tallyqa_simple", "tallyqa_complex", "countbenchqa"]
  with pytest.raises(ValueError, match="no transfer run 'coco'.* cococap"):
    tasks.rows("coco")


CHOICES = Example(
  "7", (), "Which {one}?", ("dog",), ("cat", "dog", "cow"), 1, "A hint."
)


def test_prompts():
  def ask(name, example=CHOICES, **kw):
    return tasks.prompt(BY_NAME[name], example, **kw)

  assert ask("cococap") == "caption en"
  assert ask("gqa") == "answer en Which {one}?"
  assert ask("docvqa") == ask("chartqa_aug") == "Which {one}?"
  chosen = "answer en  Which {one}? choose from: cat \t dog \t cow"
  assert ask("ai2d") == ask("aokvqa_mc") == chosen
  science = "Question: Which {one}?\nContext: A hint.\nOptions: (A) cat, " \
    "(B) dog, (C) cow\nAnswer:"  # fmt: skip
  assert ask("science_qa") == science
  assert "Context: N/A\n" in ask("science_qa", CHOICES._replace(context=""))
  shuffled = ask("science_qa", order=[2, 0, 1])
  assert "(A) cow, (B) cat, (C) dog" in shuffled


def test_targets():
  def of(name, example=CHOICES, **kw):
    return tasks.targets(BY_NAME[name], example, **kw)

  assert of("ai2d") == of("aokvqa_mc") == ("dog",)
  assert of("science_qa") == ("The answer is B.",)
  assert of("science_qa", order=[2, 0, 1]) == ("The answer is C.",)
  several = CHOICES._replace(answers=("A", "b", "A"))
  assert of("okvqa", several) == ("A", "b", "A")
  assert of("stvqa", several) == ("a", "b", "a")


@pytest.mark.parametrize("name", ["okvqa", "ai2d", "science_qa"])
def test_hidden_answers_are_refused(name):
  hidden = CHOICES._replace(answers=(), correct=-1)
  with pytest.raises(ValueError, match="question 7 is not public"):
    tasks.targets(BY_NAME[name], hidden)


def test_an_order_must_be_a_permutation():
  row = BY_NAME["science_qa"]
  with pytest.raises(ValueError, match="each of 0 to 2 once"):
    tasks.prompt(row, CHOICES, [0, 1])
  with pytest.raises(ValueError, match="each of 0 to 2 once"):
    tasks.targets(row, CHOICES, [0, 1, 1])


def test_the_letters_a_row_trains_on_are_scored():
  row = BY_NAME["science_qa"]
  given = tasks.targets(row, CHOICES)
  metric = answers.METRICS[row.metric]
  assert metric({"7": given}, {"7": given[0]}).value == 1
  assert metric({"7": given}, {"7": "The answer is A."}).value == 0


def test_read_joins_splits_and_keeps_a_kind(tmp_path):
  kinds = {"x": "complex", "y": "simple", "z": "complex"}

  def read(root, split):
    return [
      Example(i, (f"{root}/{i}.png",), "how many?", ("1",), kind=kinds[i])
      for i in {"a": "xy", "b": "z"}[split]
    ]

  row = BY_NAME["tallyqa_simple"]._replace(reader=read, split="a")
  assert len(tasks.read(row, str(tmp_path), "a+b")) == 3
  (only,) = tasks.read(row, str(tmp_path), "a")
  assert only.images == (str(tmp_path / "tallyqa" / "y.png"),)
  with pytest.raises(ValueError, match="split b has no simple questions"):
    tasks.read(row._replace(split="b"), str(tmp_path), "b")
