"""Scores of the emoji world, of subjects that know all, or nothing."""

import math

import numpy as np
import pytest

from tests.evals import emoji_toys as toys
from unifluid_jax import evaluation
from unifluid_jax.evals.report import scales
from unifluid_jax.evals.worlds import (
  emoji_album,
  emoji_classifier,
  emoji_edit_suite,
  emoji_reward,
  emoji_suite,
  emoji_text_suite,
)
from unifluid_jax.evals.worlds.emoji_text_suite import Asked

FOUND = toys.records()
SPLITS = ("validation", "held_out")
COUNT = {split: len(FOUND[split]) for split in SPLITS}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(emoji_album, "SIZE", toys.SIDE)
    patch.setattr(emoji_classifier, "_STEPS", 150)
    patch.setattr(emoji_classifier, "_EPOCHS", 0)
    patch.setattr(emoji_classifier, "_BATCH", 16)
    yield toys.bench_of(tmp_path_factory.mktemp("data"), patch, FOUND)


def of(outcome, name):
  """Scores of a group by what stands behind the slash."""
  return {
    key.removeprefix(f"{name}/"): value
    for key, value in outcome.items()
    if key.startswith(f"{name}/")
  }


# --------------------------------------------------------------------- captions


def test_captions_of_a_model_that_knows_all(bench):
  out = emoji_text_suite.captions(toys.Knowing(FOUND), bench)
  for name in ("emoji_captions", "emoji_captions_held_out"):
    scores = of(out.values, name)
    assert [*scores] == ["exact", "concept", "style", "cider_d"]
    assert scores["exact"] == scores["concept"] == scores["style"] == 1
    assert scores["cider_d"] > 5
  seen = of(out.values, "emoji_captions_nearest")
  assert seen["exact"] == seen["concept"] == seen["style"] == 1
  unseen = of(out.values, "emoji_captions_nearest_held_out")
  assert unseen["exact"] == 0  # it was never trained on
  assert set(out.floors) == set(out.values)
  assert out.settings["images"] == sum(COUNT.values())
  assert all(s.correct for s in out.shown) and len(out.shown) == 9


def test_captions_of_a_model_that_says_nothing(bench):
  out = emoji_text_suite.captions(toys.Silent(), bench)
  for name in ("emoji_captions", "emoji_captions_held_out"):
    assert set(of(out.values, name).values()) == {0.0}
  assert not any(s.correct for s in out.shown)


def test_concept_and_style_are_scored_apart(bench):
  """Right concepts in the first style, whatever the picture."""

  class Half(toys.Knowing):
    def answers(self, images, questions):
      said = super().answers(images, questions)
      return [text.split(",")[0].upper() + " TWEMOJI" for text in said]

  scores = of(
    emoji_text_suite.captions(Half(FOUND), bench).values, "emoji_captions"
  )
  share = np.mean(["twemoji" in r.captions[0] for r in FOUND["validation"]])
  assert scores["concept"] == 1 and scores["exact"] == 0
  assert scores["style"] == pytest.approx(share) and 0 < share < 1


def test_chance_is_the_mean_over_all_training_captions(bench):
  out = emoji_text_suite.captions(toys.Silent(), bench)
  pool = [r.captions[0] for r in FOUND["train"]]
  for split in SPLITS:
    name = bench.name("emoji_captions", split)
    texts = [r.captions[0] for r in FOUND[split]]
    pairs = [(a.split(", "), b.split(", ")) for a in texts for b in pool]
    got = of(out.floors, name)
    assert got["exact"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    for place, key in enumerate(("concept", "style")):
      share = np.mean([a[place] == b[place] for a, b in pairs])
      assert got[key] == pytest.approx(share)
    assert of(out.floors, name.replace("captions", "captions_nearest")) == got


# ---------------------------------------------------------------------- answers


def test_answers_of_models_that_know_all_or_nothing(bench):
  out = emoji_text_suite.vqa(toys.Knowing(FOUND), bench)
  for name in ("emoji_vqa", "emoji_vqa_held_out"):
    assert of(out.values, name) == dict.fromkeys(
      ("all", "name", "style", "yes/no"), 1.0
    )
  # What was learnt by heart knows the names of seen pictures only.
  assert out.values["emoji_vqa_nearest/name"] == 1
  assert out.values["emoji_vqa_nearest/style"] == 1
  asked = sum(len(r.questions) for split in SPLITS for r in FOUND[split])
  assert out.settings["questions"] == asked
  assert set(out.floors) == set(out.values)
  out = emoji_text_suite.vqa(toys.Silent(), bench)
  assert set(of(out.values, "emoji_vqa").values()) == {0.0}


def test_the_floor_of_answers_is_blind(bench):
  out = emoji_text_suite.vqa(toys.Silent(), bench)
  floors = of(out.floors, "emoji_vqa_held_out")
  # As many styles and concepts each; three pairs are not trained on.
  train = [r.captions[0].split(", ")[1] for r in FOUND["train"]]
  assert {train.count(f"{s} style") for s in toys.STYLES} == {8}
  assert floors["style"] == pytest.approx(1 / 3)
  assert floors["name"] == 0
  # Concepts with a held-out style are seen less often than denied.
  assert floors["yes/no"] == 0


def test_questions_take_turns():
  records = FOUND["validation"][:3]
  asked = emoji_text_suite.questions(records, 5)
  assert [(a.record.id, a.question) for a in asked] == [
    (records[i].id, records[i].questions[j][0])
    for i, j in [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2)]
  ]
  assert len(emoji_text_suite.questions(records, 99)) == 12
  short = [records[0]._replace(questions=(("a", "b"),), kinds=()), records[1]]
  asked = emoji_text_suite.questions(short, 99)
  assert len(asked) == 5 and asked[0].kind == "all"


def test_blind_answers():
  entry = emoji_album.Entry(
    toys.HELD_OUT[0], toys.draw(toys.HELD_OUT[0]), "a", "a",
    (("Name it?", "a cat"), ("which style", "noto"), ("is it a cat", "yes")),
    ("name", "style", "yes/no"), True,
  )  # fmt: skip
  dogs = [
    entry._replace(questions=(("name it", "a dog"),), kinds=("name",)),
  ] * 2
  blind = emoji_text_suite.Blind(emoji_album.Album([entry, *dogs]))

  def answer(question, kind, seen=None):
    return blind.answer(Asked(None, question, "", kind), seen)

  assert answer("name it", "name") == "a dog"
  assert answer("NAME IT ?", "name", entry) == "a cat"
  assert answer("what is this", "name") == "a dog"  # of its kind
  assert answer("what is this", "name", entry) == "a cat"
  assert answer("is it a dog", "yes/no", dogs[0]) == "yes"  # blind
  assert answer("other", "other") == "a dog"  # the most frequent of all


# --------------------------------------------------------------------- drawings


def test_drawings_of_a_model_that_knows_all(bench):
  out = emoji_suite.drawn(toys.Knowing(FOUND), bench)
  for name in ("emoji_drawn", "emoji_drawn_held_out"):
    scores = of(out.values, name)
    assert scores["top1"] == scores["top5"] == scores["style"] == 1
    assert 0.5 < scores["real_top1"] <= scores["real_top5"] <= 1
    assert 1 / len(toys.CONCEPTS) < scores["real_named"] <= 1
    floors = of(out.floors, name)
    assert floors["top1"] == pytest.approx(1 / len(toys.CONCEPTS))
    assert floors["top5"] == pytest.approx(5 / len(toys.CONCEPTS))
    assert floors["style"] == pytest.approx(1 / len(toys.STYLES))
  assert of(out.values, "emoji_drawn_nearest")["top1"] == 1
  looked_up = of(out.values, "emoji_drawn_nearest_held_out")
  assert looked_up["style"] < 1
  assert [s.target is not None and s.correct for s in out.shown] == [True] * 11
  for s in out.shown:
    np.testing.assert_array_equal(s.target, s.image)
  assert [s.seed - 10**6 for s in out.shown] == [*range(8), *range(3)]


def test_one_picture_for_all_prompts_is_chance(bench):
  """Of all pairs, a plane is nearest to one concept in each style."""
  judge = emoji_classifier.judge_of(bench)
  every = toys.pictures()
  plane = toys.Silent().images(every, None)
  scores = emoji_suite.retrieval(judge, plane, every)
  assert scores == pytest.approx(emoji_suite.chance_retrieval(judge, every))


def near(value):
  """Float32 features of batches of several sizes."""
  return pytest.approx(value, rel=1e-3)


def one_picture_far(bench, image):
  """Fréchet distance of one picture, again and again, to all true ones."""
  judge = emoji_classifier.judge_of(bench)
  true = np.asarray(judge.true_features, np.float64)
  gap = true.mean(0) - judge.features([image])[0]
  return gap @ gap + true.var(0, ddof=1).sum()


def test_distance_of_drawings(bench):
  train = [toys.decoded(r.image) for r in FOUND["train"]]
  mean = np.mean(train, 0).round().astype(np.uint8)
  out = emoji_suite.frechet(toys.Knowing(FOUND), bench)
  for name in ("emoji_fid", "emoji_fid_held_out"):
    scores = of(out.values, name)
    assert scores["ratio"] == pytest.approx(1)
    assert scores["generated"] == pytest.approx(scores["real"])
    blank = of(out.floors, name)
    assert blank["generated"] == near(one_picture_far(bench, mean))
    assert blank["ratio"] * scores["real"] == near(blank["generated"])
    assert scales.lower_is_better(f"{name}/ratio")
  assert out.values["emoji_fid_nearest/ratio"] == pytest.approx(1)
  assert "held_out: rank-deficient" in out.settings["warning"]
  grey = emoji_suite.frechet(toys.Silent(), bench).values
  plane = toys.Silent().images([""], [0])[0]
  far = near(one_picture_far(bench, plane))
  assert grey["emoji_fid_held_out/generated"] == far
  assert grey["emoji_fid/generated"] == far
  assert grey["emoji_fid/real"] == out.values["emoji_fid/real"]
  assert not scales.lower_is_better("emoji_drawn/top1")


# ------------------------------------------------------------------------ edits


def test_edits_of_a_model_that_knows_all(bench):
  out = emoji_edit_suite.edits(toys.Knowing(FOUND), bench)
  for name in ("emoji_edits", "emoji_edits_held_out"):
    scores, floors = of(out.values, name), of(out.floors, name)
    assert scores["top1"] == scores["top5"] == scores["top1/style"] == 1
    assert scores["psnr"] > 100 > 30 > floors["psnr"] > 5
    assert "top1/tone" not in scores
  assert {s.task for s in out.shown} == {
    "validation, style", "held out, style"
  }  # fmt: skip
  assert set(out.floors) == set(out.values)
  nearest = of(out.values, "emoji_edits_nearest_held_out")
  assert 5 < nearest["psnr"] <= scores["psnr"]


def test_edits_left_undone_score_the_floor(bench):
  class Idle(toys.Silent):
    def edits(self, images, instructions, seeds):
      return np.stack(images)

  out = emoji_edit_suite.edits(Idle(), bench)
  for name in ("emoji_edits", "emoji_edits_held_out"):
    assert of(out.values, name) == of(out.floors, name)
  assert emoji_edit_suite.psnr(
    np.full((2, 2, 3), 10, np.uint8), np.full((2, 2, 3), 30, np.uint8)
  ) == pytest.approx(20 * math.log10(255 / 20))


def test_edits_of_skin_tones(bench):
  """What is looked up for them is another picture than the source."""
  edit = emoji_edit_suite.edits_of(bench, "validation")[0]
  assert edit.kind == "style"
  tone = edit._replace(after=edit.before._replace(tone="dark"))
  assert tone.kind == "tone"
  found = emoji_edit_suite._looked_up(emoji_album.album_of(bench), tone)
  assert (found != edit.source).any()


# ------------------------------------------------------------------------- data


def test_the_judge_is_trained_once_per_data_set(bench, monkeypatch):
  judge = emoji_classifier.judge_of(bench)
  (file,) = emoji_classifier.epath.Path(bench.config.data.root).iterdir()
  emoji_classifier.judge_of.cache_clear()

  def fail(*_):
    raise AssertionError("trained again")

  with monkeypatch.context() as patch:
    patch.setattr(emoji_classifier, "train", fail)
    again = emoji_classifier.judge_of(bench)
  np.testing.assert_array_equal(again.true_features, judge.true_features)
  other = dict(FOUND, train=FOUND["train"][1:])
  new = toys.bench_of(bench.config.data.root, monkeypatch, other)
  with monkeypatch.context() as patch:
    patch.setattr(emoji_classifier, "train", fail)
    with pytest.raises(AssertionError, match="trained again"):
      emoji_classifier.judge_of(new)
  assert file.exists()


METRICS = ("emoji_captions", "emoji_vqa", "emoji_drawn", "emoji_fid",
           "emoji_edits")  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_data_without_what_a_metric_needs(bench, metric, monkeypatch):
  """An error of one line says what to leave out; nothing is drawn."""
  lacking = {
    split: [
      r._replace(captions=(), questions=(), prompts=(), edit=None) for r in rows
    ]
    for split, rows in FOUND.items()
  }
  judge, album = emoji_classifier.judge_of(bench), emoji_album.album_of(bench)
  for module in (emoji_suite, emoji_edit_suite):
    monkeypatch.setattr(module, "judge_of", lambda _: judge)
  for module in (emoji_suite, emoji_edit_suite, emoji_text_suite):
    monkeypatch.setattr(module, "album_of", lambda _: album)
  made = toys.bench_of(bench.config.data.root, monkeypatch, lacking)
  with pytest.raises(ValueError, match=f"leave '{metric}' out of") as error:
    evaluation.METRICS[metric](toys.Silent(), made)
  assert "\n" not in str(error.value)


def test_data_of_another_world(bench, monkeypatch):
  shapes = {k: [r._replace(scene="") for r in v] for k, v in FOUND.items()}
  made = toys.bench_of(bench.config.data.root, monkeypatch, shapes)
  for metric in METRICS:
    with pytest.raises(ValueError, match="defined on the emoji world"):
      evaluation.METRICS[metric](toys.Silent(), made)


# --------------------------------------------------------------------- a reward


def test_reward_is_1_for_the_asked_picture_alone(bench):
  reward = emoji_reward.EmojiReward(bench)
  asked = reward.prompts(60, np.random.default_rng(0))
  known = {toys.caption(p): p for p in toys.pictures()}
  trained = [p for p in known.values() if p not in toys.HELD_OUT]
  assert {a["prompt"] for a in asked} == {toys.caption(p) for p in trained}
  images = np.stack([toys.draw(known[a["prompt"]]) for a in asked])
  assert reward.judge(asked, images).mean() > 0.9
  assert reward.judge(asked, np.roll(images, 1, axis=0)).mean() < 0.5
  assert reward.kind(asked[0]) == known[asked[0]["prompt"]].style
