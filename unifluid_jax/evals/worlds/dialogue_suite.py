"""Whether a model draws when it is asked to, and only then.

VARGPT (arXiv 2501.12327) begins an image by a token that it has to emit by
itself. Here half of the prompts ask for an image or a changed one, half for a
description or an answer, alone or after an exchange of another kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from unifluid_jax.data import conversation
from unifluid_jax.data.conversation import Reply
from unifluid_jax.data.records import Turn
from unifluid_jax.data.worlds import chats, shapes, shapes_text
from unifluid_jax.data.worlds.chats import DESCRIBE, DRAW, Exchange
from unifluid_jax.evals.bench import Bench, Outcome, Shown
from unifluid_jax.evals.metrics import geneval, vqa
from unifluid_jax.evals.worlds import shapes_detector, world_suite

_SPLIT = "validation"
_SHOWN = 3  # first and last ones


@runtime_checkable
class Dialogues(Protocol):
  """What continues dialogues, see `dialogues.Dialogues`."""

  def replies(self, dialogues: Sequence[Sequence[Turn]]) -> list[Reply]:
    """What continues each, up to an image."""

  def images(
    self, dialogues: Sequence[Sequence[Turn]], seeds: Sequence[int]
  ) -> Any:
    """uint8 [n, H, W, 3]: the image that continues each."""


@runtime_checkable
class Subject(Protocol):
  """What the metric needs of a model."""

  dialogues: Dialogues


class Asked(NamedTuple):
  """A prompt, and what is right to answer."""

  turns: tuple[Turn, ...]  # images as pixels; the user's message is the last
  exchange: Exchange
  task: Mapping[str, Any] | None = None  # GenEval's, of requests
  unseen: bool = False  # a request in words that no training shows


def draws_when_asked(subject: Subject, bench: Bench) -> Outcome:
  """Shares of replies with an image where one is due and none elsewhere.

  "drawn": images that are right, of all that were asked for: GenEval's rules
  for requests, the scene after the edit for edits. "said": texts that are
  right where no image is due. "ends": replies that end after their image. The
  floor is a model that always draws.

  Raises:
    ValueError: data that are not of the embedded world.
  """
  world, each = world_suite.world_of(bench), bench.config.eval.prompts_per_task
  asked = prompts(world, each)
  replies = subject.dialogues.replies([list(a.turns) for a in asked])
  decided = [
    r.draws == a.exchange.draws for a, r in zip(asked, replies, strict=True)
  ]
  values = _by_kind("dialogue/draws_when_asked", asked, decided)
  unseen = [d for a, d in zip(asked, decided, strict=True) if a.unseen]
  if unseen:  # of one or two prompts of a kind none is
    values["dialogue/draws_when_asked_unseen"] = _mean(unseen)
  said, shown = _said(asked, replies)
  drawn, more = _drawn(subject, world, asked, replies, bench.seeds(len(asked)))
  settings = {"prompts": len(asked), "detector": "analytic",
              **bench.sampled("images", "text")}  # fmt: skip
  floors = {"dialogue/draws_when_asked": 0.5}
  return Outcome(values | drawn | said, floors, settings, [*shown, *more])


def prompts(world: shapes.World, each: int) -> list[Asked]:
  """So many prompts of each kind, every other one after an exchange.

  What comes before a request is a description; before all else it is a
  drawing, so that neither history nor an image tells what is due. Half of the
  requests, in both places, have held-out wordings.
  """
  found = []
  for k, kind in enumerate(chats.KINDS):
    tasks = _requests(world, each) if kind == DRAW else [None] * each
    for i, task in enumerate(tasks):
      rng = np.random.default_rng([0, k, i])
      history = (DESCRIBE if kind == DRAW else DRAW,) if i % 2 else ()
      before = chats.sample(world, rng, history, _SPLIT)
      unseen = kind == DRAW and i // 2 % 2 == 1
      scene = before[-1].scene if before else None
      exchange = chats.exchange(world, rng, kind, scene, _SPLIT)
      if task is not None:
        text = chats.request(task["prompt"], rng, unseen)
        exchange = exchange._replace(asked=text)
      turns = _turns(world, [*before, exchange])
      found.append(Asked(turns, exchange, task, unseen))
  return found


def _requests(world: shapes.World, count: int) -> list[Mapping[str, Any]]:
  """GenEval's tasks, their tags in turn."""
  rng, tags = np.random.default_rng(0), shapes_text.TAGS
  each = -(-count // len(tags))
  of = [shapes_text.geneval_prompts(world, tag, each, rng) for tag in tags]
  return [task for row in zip(*of, strict=True) for task in row][:count]


def _turns(
  world: shapes.World, exchanges: Sequence[Exchange]
) -> tuple[Turn, ...]:
  """A conversation up to the last answer."""
  said, scenes = chats.messages(exchanges)
  if exchanges[-1].draws:
    scenes = scenes[:-1]
  images = [shapes.draw(world, scene) for scene in scenes]
  return conversation.turns_of(said[:-1], images)


def _by_kind(
  name: str, asked: Sequence[Asked], values: Sequence[bool]
) -> dict[str, float]:
  """Shares over all prompts, then of each kind that occurs."""
  kinds = [a.exchange.kind for a in asked]
  found = {name: _mean(values)}
  for kind in (k for k in chats.KINDS if k in kinds):
    of = [v for v, k in zip(values, kinds, strict=True) if k == kind]
    found[f"{name}/{kind}"] = _mean(of)
  return found


def _mean(values: Any) -> float:
  return float(np.mean(list(values)))


# ------------------------------------------------------------------------ texts


def _said(
  asked: Sequence[Asked], replies: Sequence[Reply]
) -> tuple[dict[str, float], list[Shown]]:
  """Texts that are right; one before an image is not."""
  pairs = [
    (a, r) for a, r in zip(asked, replies, strict=True) if not a.exchange.draws
  ]
  truth = [a.exchange.said for a, _ in pairs]
  scores = vqa.exact_accuracy([r.text for _, r in pairs], truth, lower=True)
  right = [
    bool(s) and not r.draws
    for (_, r), s in zip(pairs, scores.scores, strict=True)
  ]
  values = _by_kind("dialogue/said", [a for a, _ in pairs], right)
  shown = [
    Shown("answer", _last_image(a.turns), a.exchange.asked, r.text, truth[i],
          right[i], task="dialogue")
    for i, (a, r) in enumerate(pairs)
    if not _SHOWN <= i < len(pairs) - _SHOWN
  ]  # fmt: skip
  return values, shown


def _last_image(turns: Sequence[Turn]) -> Any:
  return [t.image for t in turns if t.image is not None][-1]


# ----------------------------------------------------------------------- images


def _drawn(
  subject: Subject,
  world: shapes.World,
  asked: Sequence[Asked],
  replies: Sequence[Reply],
  seeds: Sequence[int],
) -> tuple[dict[str, float], list[Shown]]:
  """Images that are right; one that is not drawn is not."""
  due = [i for i, a in enumerate(asked) if a.exchange.draws]
  begun = [i for i in due if replies[i].draws]
  right, values, shown = dict.fromkeys(due, False), {}, []
  if begun:
    dialogues = [_with_text(asked[i].turns, replies[i].text) for i in begun]
    images = subject.dialogues.images(dialogues, [seeds[i] for i in begun])
    detector = shapes_detector.ShapesDetector(world)
    for i, image in zip(begun, images, strict=True):
      right[i] = shows(asked[i], detector.detect(image))
    shown = [
      Shown("generated", images[k], asked[i].exchange.asked, replies[i].text,
            correct=right[i], task="dialogue", seed=seeds[i])
      for k, i in enumerate(begun)
      if not _SHOWN <= k < len(begun) - _SHOWN
    ]  # fmt: skip
    after = subject.dialogues.replies([
      [*turns, Turn(image=image, role=conversation.ASSISTANT)]
      for turns, image in zip(dialogues, images, strict=True)
    ])  # fmt: skip
    values["dialogue/ends"] = _mean(not (r.text or r.draws) for r in after)
  found = _by_kind("dialogue/drawn", [asked[i] for i in due], [*right.values()])
  return found | values, shown


def _with_text(turns: Sequence[Turn], text: str) -> list[Turn]:
  """A prompt with the text that the model said before its image."""
  said = [Turn(text, role=conversation.ASSISTANT)] if text else []
  return [*turns, *said]


def shows(asked: Asked, detections: Sequence[geneval.Detection]) -> bool:
  """Whether an image is what a prompt asks for."""
  if asked.task is not None:
    return geneval.judge(asked.task, detections)[0]
  return bool(shapes_detector.scene_agreement(asked.exchange.scene, detections))
