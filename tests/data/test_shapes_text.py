"""What is said about scenes, against a parser and a judge of its own."""

import collections
import functools
import re

import numpy as np
import pytest

from unifluid_jax.data.worlds import shapes, shapes_text

WORLD = shapes.World()


HELD = {
  ("purple", "circle"),
  ("yellow", "square"),
  ("blue", "triangle"),
  ("red", "cross"),
}


COUNTS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}


SINGULAR = {
  "circles": "circle",
  "squares": "square",
  "triangles": "triangle",
  "crosses": "cross",
}


@functools.cache
def scenes(n, split="train", world=WORLD, seed=0):
  return [
    shapes.sample_scene(world, np.random.default_rng([seed, i]), split)
    for i in range(n)
  ]


def pairs(scene):
  return [(i.colour, i.shape) for i in scene.items]


def side(a, b):
  """Relation by grid cells, independent of the module's own."""
  (ax, ay), (bx, by) = ((int(i.x // 16), int(i.y // 16)) for i in (a, b))
  assert (ax == bx) != (ay == by)
  if ay == by:
    return "left of" if ax < bx else "right of"
  return "above" if ay < by else "below"


def parse(text):
  """[(colour or None, shape)] in the order named, and the relation or None."""
  found = re.fullmatch(r"(two|three|four) (?:(\w+) )?(\w+)", text)
  if found:
    colour, shape = found[2], SINGULAR[found[3]]
    return [(colour, shape)] * COUNTS[found[1]], None
  relation = "left of|right of|above|below|and"
  noun = r"an? (?:(\w+) )?(\w+)"
  found = re.fullmatch(f"{noun}(?: ({relation}) {noun})?", text)
  assert found, text
  named = [(found[1], found[2])]
  if found[3]:
    named.append((found[4], found[5]))
  return named, found[3] if found[3] != "and" else None


def says_truth(scene, named, relation):
  actual = collections.Counter(pairs(scene))
  if named[0][0] is None:
    actual = collections.Counter((None, s) for _, s in pairs(scene))
  if collections.Counter(named) != actual:
    return False
  if relation is None:
    return True
  a, b = (next(i for i in scene.items if i.shape == s) for _, s in named)
  return side(a, b) == relation


def test_captions_say_the_scene():
  for scene in [*scenes(500), *scenes(200, "held_out")]:
    text = shapes_text.caption(scene)
    named, relation = parse(text)
    assert says_truth(scene, named, relation)
    assert all(colour for colour, _ in named)
    two = len(scene.items) == 2 and not scene.identical
    assert relation in (("left of", "above") if two else (None,))
    mirrored = shapes.Scene(scene.background, scene.items[::-1])
    assert shapes_text.caption(mirrored) == text


def test_prompts_are_true_and_varied():
  rng = np.random.default_rng(0)
  colours, relations = [], []
  for scene in scenes(1000):
    named, relation = parse(shapes_text.prompt(scene, rng))
    assert says_truth(scene, named, relation)
    colours.append(named[0][0] is not None)
    if len(scene.items) == 2 and not scene.identical:
      relations.append(relation)
  assert np.mean(colours) == pytest.approx(0.7, abs=0.04)
  shares = collections.Counter(relations)
  assert 1 - shares[None] / len(relations) == pytest.approx(0.6, abs=0.06)
  assert set(shares) == {None, *shapes_text.RELATIONS}


def answer(scene, question):
  """The answer by rules of the test's own."""
  shape_of = {i.shape: i for i in scene.items}
  if question == "how many objects are there":
    return len(scene.items)
  if m := re.fullmatch(r"how many (\w+) are there", question):
    return sum(i.shape == SINGULAR[m[1]] for i in scene.items)
  if m := re.fullmatch(r"what colour (?:is|are) the (\w+)", question):
    return shape_of[SINGULAR.get(m[1], m[1])].colour
  if m := re.fullmatch(r"where is the (\w+) relative to the (\w+)", question):
    return side(shape_of[m[1]], shape_of[m[2]]).split()[0]
  if m := re.fullmatch(r"is there an? (\w+) (\w+)", question):
    return (m[1], m[2]) in pairs(scene)
  if m := re.fullmatch(r"are there (\w+) (\w+)", question):
    n = sum(i.shape == SINGULAR[m[2]] for i in scene.items)
    return n == COUNTS[m[1]]
  m = re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)",
                   question)  # fmt: skip
  assert m, question
  return side(shape_of[m[1]], shape_of[m[3]]) == m[2]


def verify(scene, question, reply):
  expected = answer(scene, question)
  if isinstance(expected, bool):
    assert reply == ("yes" if expected else "no")
  else:
    assert COUNTS.get(reply, reply) == expected


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_answers_are_right_and_balanced(split):
  rng = np.random.default_rng(0)
  verdicts = collections.Counter()
  for scene in scenes(400, split):
    asked = shapes_text.questions(WORLD, scene, rng, split)
    kinds = {q.kind for q in asked}
    two = len(scene.items) == 2 and not scene.identical
    assert kinds == set(shapes_text.KINDS) - (set() if two else {"relation"})
    closed = []
    for q in asked:
      verify(scene, q.question, q.answer)
      assert (q.kind == "yes/no") == (q.answer in ("yes", "no"))
      if q.kind == "yes/no":
        closed.append(q)
        verdicts[q.answer] += 1
    for yes, no in zip(closed[::2], closed[1::2], strict=True):
      assert (yes.answer, no.answer) == ("yes", "no")
      a = [w for w in yes.question.split() if w not in ("a", "an", "of")]
      b = [w for w in no.question.split() if w not in ("a", "an", "of")]
      assert sum(u != v for u, v in zip(a, b, strict=True)) == 1
  assert verdicts["yes"] == verdicts["no"] > 0


def test_questions_alone_do_not_tell_yes_from_no():
  rng = np.random.default_rng(0)
  asked = collections.defaultdict(collections.Counter)
  for scene in scenes(4000):
    for q in shapes_text.questions(WORLD, scene, rng, "train"):
      if q.kind == "yes/no":
        asked[q.question][q.answer] += 1
  # The best guess from the question alone.
  right = sum(max(c.values()) for c in asked.values())
  assert right / sum(c.total() for c in asked.values()) < 0.54


def test_edits_change_what_they_say():
  rng = np.random.default_rng(0)
  seen = collections.Counter()
  for scene in scenes(600):
    made = shapes_text.edit(WORLD, scene, rng)
    text, target = made.instruction, made.target
    assert target.background == scene.background
    kind = text.split()[0]
    seen[kind, len(scene.items), scene.identical] += 1
    before, after = set(scene.items), set(target.items)
    if kind == "remove":
      (gone,) = before - after
      assert not after - before
      assert text == f"remove the {gone.colour} {gone.shape}"
    elif kind == "add":
      (new,) = after - before
      (old,) = scene.items
      assert after > before
      noun = "an" if new.colour == "orange" else "a"
      where = side(new, old)
      assert text == (
        f"add {noun} {new.colour} {new.shape} {where} "
        f"the {old.colour} {old.shape}"
      )
    else:
      m = re.fullmatch(r"change the (\w+) (\w+) to (\w+)", text)
      changed = [
        (a, b) for a, b in zip(scene.items, target.items, strict=True) if a != b
      ]
      assert len(changed) == (len(scene.items) if scene.identical else 1)
      for a, b in changed:
        assert (a.colour, a.shape) == (m[1], SINGULAR.get(m[2], m[2]))
        assert b.colour == m[3] != a.colour
        assert (a.shape, a.x, a.y, a.radius) == (b.shape, b.x, b.y, b.radius)
      assert m[3] not in {i.colour for i in scene.items}
  assert len(seen) == 7  # change: 1, 2, alike x 3; remove: 2; add: 1


def test_vocabulary_is_small_and_plain():
  rng = np.random.default_rng(0)
  words = set()
  for scene in scenes(1000):
    texts = [
      shapes_text.prompt(scene, rng),
      shapes_text.caption(scene),
      shapes_text.edit(WORLD, scene, rng).instruction,
    ]
    for q in shapes_text.questions(WORLD, scene, rng, "train"):
      texts += [q.question, q.answer]
    for text in texts:
      assert re.fullmatch(r"[a-z]+( [a-z]+)*", text)
      words |= set(text.split())
  assert len(words) <= 56


@pytest.mark.parametrize(
  ("tag", "distinct"),
  [
    ("single_object", 4),
    ("two_object", 12),
    ("counting", 12),
    ("colors", 28),
    ("position", 48),
    ("color_attr", 516),
  ],
)
def test_geneval_prompts_say_their_metadata(tag, distinct):
  rng = np.random.default_rng(0)
  tasks = shapes_text.geneval_prompts(WORLD, tag, distinct, rng)
  assert len({t["prompt"] for t in tasks}) == distinct
  for t in tasks:
    assert t["tag"] == tag
    named, relation = parse(t["prompt"])
    wanted = [(c.get("color"), c["class"]) for c in t["include"]
              for _ in range(c["count"])]  # fmt: skip
    if tag == "position":
      # Named first is the placed object; include[0] is its reference.
      wanted.reverse()
      assert "position" not in t["include"][0]
      assert t["include"][1]["position"] == [relation, 0]
    assert named == wanted
    assert not HELD & set(named)
    if tag == "counting":
      (only,) = t["include"]
      more = {"class": only["class"], "count": only["count"] + 1}
      assert t["exclude"] == [more]
    else:
      assert "exclude" not in t
  again = shapes_text.geneval_prompts(WORLD, tag, 2 * distinct, rng)
  counts = collections.Counter(t["prompt"] for t in again)
  assert set(counts.values()) == {2}


def test_geneval_prompts_of_held_out_pairs():
  rng = np.random.default_rng(0)
  for tag, n in (("colors", 4), ("color_attr", 2)):
    tasks = shapes_text.geneval_prompts(WORLD, tag, 40, rng, "held_out")
    for t in tasks:
      named, _ = parse(t["prompt"])
      assert len(HELD & set(named)) == 1
    assert len({t["prompt"] for t in tasks}) >= n
  with pytest.raises(ValueError, match="names no colours"):
    shapes_text.geneval_prompts(WORLD, "position", 4, rng, "held_out")
  with pytest.raises(ValueError, match="choose one of single_object"):
    shapes_text.geneval_prompts(WORLD, "colour", 4, rng)
