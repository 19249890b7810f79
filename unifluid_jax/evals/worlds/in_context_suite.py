"""Whether a model infers a rule from two examples (Liquid §4.4, Figure 9).

Each prompt is asked three times: after its own two examples, after those of
another prompt, and alone. A model that learns in context is right the first
time and not by its examples' mere presence.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from unifluid_jax.data.records import Turn
from unifluid_jax.data.worlds import in_context as episodes_of
from unifluid_jax.data.worlds import shapes
from unifluid_jax.data.worlds.in_context import DRAW, RULES, TELL, Episode
from unifluid_jax.evals.bench import Bench, Outcome, Shown
from unifluid_jax.evals.metrics import vqa
from unifluid_jax.evals.metrics.geneval import MIN_SCORE, Detection
from unifluid_jax.evals.worlds import shapes_detector, world_suite

_SPLIT = "validation"
_SHOWN = 2  # of each kind and attribute
# What stands before the prompt → suffix of the metric's name.
_CONDITIONS = {"examples": "", "others": "_shuffled", "nothing": "_without"}


@runtime_checkable
class Dialogues(Protocol):
  """What continues dialogues, see `dialogues.Dialogues`."""

  def texts(self, dialogues: Sequence[Sequence[Turn]]) -> list[str]:
    """The text that continues each."""

  def images(
    self, dialogues: Sequence[Sequence[Turn]], seeds: Sequence[int]
  ) -> Any:
    """uint8 [n, H, W, 3]: the image that continues each."""


@runtime_checkable
class Subject(Protocol):
  """What the metric needs of a model."""

  dialogues: Dialogues


class _Asked(NamedTuple):
  """Episodes of a kind, and the examples of each prompt by condition."""

  episodes: list[Episode]
  prompts: dict[str, list[list[Turn]]]  # condition → dialogues


def in_context(subject: Subject, bench: Bench) -> Outcome:
  """Accuracy of what is told of an image, and of what is drawn of a word.

  "tell" asks for the attribute that two examples name; the floor is a model
  that names a right attribute of the image, whichever. "draw" gives an
  attribute and asks for a scene whose other attributes are the examples'; the
  floor is a model that draws the given one and leaves the others to chance.

  Raises:
    ValueError: data that are not of the embedded world, or too few prompts.
  """
  world, each = world_suite.world_of(bench), bench.config.eval.prompts_per_task
  if each < 2:
    raise ValueError(
      f"config.eval.prompts_per_task={each}: examples are exchanged between "
      "prompts, use at least 2"
    )
  told, drawn = (_asked(world, kind, each) for kind in (TELL, DRAW))
  values, shown = _tell(subject, told)
  more, others = _draw(subject, bench, drawn)
  values |= more
  floors = dict.fromkeys([n for n in values if f"/{TELL}" in n], 1 / len(RULES))
  for name in more:
    attribute = name.rpartition("/")[2]
    chances = [
      chance(world, e)
      for e in drawn.episodes
      if attribute not in RULES or e.named == attribute
    ]
    floors[name] = float(np.mean(chances))
  settings = {"prompts": 2 * len(told.episodes), **bench.sampled("images")}
  return Outcome(values, floors, settings, [*shown, *others])


def _asked(world: shapes.World, kind: str, each: int) -> _Asked:
  """Prompts of a kind, their attributes in turn.

  Another prompt's examples name another attribute ("tell"), or the same one
  of other scenes ("draw").
  """
  episodes = [
    episodes_of.sample_episode(
      world,
      np.random.default_rng([0, i]),
      kind,
      RULES[i % len(RULES)],
      _SPLIT,
    )
    for i in range(each * len(RULES))
  ]
  pairs = [e.pairs(world) for e in episodes]
  questions = [[p[-1][0]] for p in pairs]
  examples = [[turn for pair in p[:-1] for turn in pair] for p in pairs]
  step = 1 if kind == TELL else len(RULES)
  moved = examples[step:] + examples[:step]
  before = {"examples": examples, "others": moved, "nothing": [[]] * len(pairs)}
  return _Asked(
    episodes,
    {
      name: [a + b for a, b in zip(given, questions, strict=True)]
      for name, given in before.items()
    },
  )


def _tell(
  subject: Subject, asked: _Asked
) -> tuple[dict[str, float], list[Shown]]:
  """Accuracies of texts, overall in each condition, by attribute in one."""
  truth = [e.words[-1] for e in asked.episodes]
  named = [e.named for e in asked.episodes]
  values, shown = {}, []
  for condition, suffix in _CONDITIONS.items():
    dialogues = asked.prompts[condition]
    said = subject.dialogues.texts(dialogues)
    score = vqa.exact_accuracy(said, truth, named, lower=True)
    values[f"in_context/{TELL}{suffix}"] = score.overall
    if condition == "examples":
      values |= {f"in_context/{TELL}/{k}": score.by_kind[k] for k in RULES}
      shown = [
        Shown("answer", dialogues[i][-1].image, _title(asked.episodes[i]),
              said[i], truth[i], bool(score.scores[i]), task="in context")
        for i in range(_SHOWN * len(RULES))
      ]  # fmt: skip
  return values, shown


def _draw(
  subject: Subject, bench: Bench, asked: _Asked
) -> tuple[dict[str, float], list[Shown]]:
  """The same of images."""
  detector = shapes_detector.ShapesDetector(world_suite.world_of(bench))
  named = np.asarray([e.named for e in asked.episodes])
  values, shown = {}, []
  for condition, suffix in _CONDITIONS.items():
    dialogues = asked.prompts[condition]
    seeds = bench.seeds(len(dialogues))
    images = subject.dialogues.images(dialogues, seeds)
    right = np.asarray([
      shows(detector.detect(image), e)
      for image, e in zip(images, asked.episodes, strict=True)
    ])  # fmt: skip
    values[f"in_context/{DRAW}{suffix}"] = float(right.mean())
    if condition == "examples":
      values |= {
        f"in_context/{DRAW}/{k}": float(right[named == k].mean()) for k in RULES
      }
      shown = [
        Shown("generated", images[i], _title(asked.episodes[i]),
              correct=bool(right[i]), task="in context", seed=seeds[i])
        for i in range(_SHOWN * len(RULES))
      ]  # fmt: skip
  return values, shown


def shows(detections: Sequence[Detection], episode: Episode) -> bool:
  """Whether an image is what an episode asks for, wherever its objects are."""
  colour, shape, number = episodes_of.thing_of(episode.scenes[-1])
  found = [(d.colour, d.name) for d in detections if d.score > MIN_SCORE]
  return found == [(colour, shape)] * number


def chance(world: shapes.World, episode: Episode) -> float:
  """How likely a scene with the named attribute has the others by chance.

  Of all (colour, shape) pairs that training shows and numbers alike.
  """
  asked = episodes_of.thing_of(episode.scenes[-1])
  numbers = range(1, shapes.MAX_COUNT + 1)
  every = [(*pair, n) for pair in world.pairs("train") for n in numbers]
  k = RULES.index(episode.named)
  return 1 / sum(thing[k] == asked[k] for thing in every)


def _title(episode: Episode) -> str:
  """A prompt in words, for the report."""
  *examples, asked = episode.words
  last = "?" if episode.kind == TELL else asked
  return ", ".join([*examples, last])
