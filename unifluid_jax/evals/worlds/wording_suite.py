"""Whether a model of the embedded world understands what people type.

Questions and prompts in other words than the plain ones of the other metrics:
`data.wordings` has ten paraphrases of each question, three of which training
never shows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.data.images import decode_image
from unifluid_jax.data.worlds import shapes, shapes_text, wordings
from unifluid_jax.evals.bench import Bench, Outcome, Shown, Subject
from unifluid_jax.evals.metrics import vqa
from unifluid_jax.evals.worlds import world_suite

_SHOWN = 4  # answers of each kind


class _Asked(NamedTuple):
  """A question in one of its wordings."""

  record: int
  text: str
  answer: str
  kind: str
  wording: str  # "plain", "trained" or "unseen"


def paraphrases(subject: Subject, bench: Bench) -> Outcome:
  """Accuracy on ten paraphrases over that on the plain question, by kind.

  A ratio of 1 says that the wording makes no difference. A kind whose plain
  questions are all answered wrong has no ratio. "geneval" is GenEval's
  overall score of prompts that begin as no training prompt does, to be
  compared with that of the plain prompts; of runs that do not draw it is left
  out.

  Raises:
    ValueError: data that are not of the embedded world.
  """
  world = world_suite.world_of(bench)
  records = bench.records(bench.splits[0])
  scenes = [shapes.scene_from_json(r.scene) for r in records]
  asked = _questions(world, scenes, bench.config.data.caption_prefix)
  pixels = [decode_image(r.image) for r in records]
  images = [pixels[a.record] for a in asked]
  said = subject.answers(images, [a.text for a in asked])
  right = vqa.exact_accuracy(said, [a.answer for a in asked]).scores
  values = _ratios(asked, right)
  if bench.config.batch.get("t2i"):
    values["paraphrases/geneval"] = _geneval(subject, bench, world)
  shown = [
    Shown("answer", images[i], asked[i].text, said[i], asked[i].answer,
          bool(right[i]), task=f"{kind}, unseen wording")
    for kind in sorted({a.kind for a in asked})
    for i in [
      i for i, a in enumerate(asked)
      if a.kind == kind and a.wording == "unseen"
    ][:_SHOWN]
  ]  # fmt: skip
  settings = {"questions": len(scenes), "paraphrases": len(asked),
              **bench.answered()}  # fmt: skip
  return Outcome(values, {}, settings, shown)


def _questions(
  world: shapes.World, scenes: Sequence[shapes.Scene], caption_prefix: str
) -> list[_Asked]:
  """One question a scene, kinds in turn, in its eleven wordings.

  Args:
    world: of the scenes.
    scenes: of the evaluation split.
    caption_prefix: the plain wording of the question what there is to see.
  """
  asked = []
  for i, scene in enumerate(scenes):
    rng = np.random.default_rng([0, i])
    options = shapes_text.questions(world, scene, rng, "validation")
    options.append(shapes_text.description(scene))
    kinds = sorted({q.kind for q in options})
    of_kind = [q for q in options if q.kind == kinds[i % len(kinds)]]
    q = of_kind[int(rng.integers(len(of_kind)))]
    described = q.kind == "description"
    text = caption_prefix if described else q.question
    asked.append(_Asked(i, text, q.answer, q.kind, "plain"))
    asked += [
      _Asked(i, p.text, q.answer, q.kind, "unseen" if p.unseen else "trained")
      for p in wordings.paraphrases(q.form, q.slots, rng)
    ]
  return asked


def _ratios(
  asked: Sequence[_Asked], right: Sequence[float]
) -> dict[str, float]:
  """Accuracies, and their ratios to the plain wording's."""

  def accuracy(wordings_: Sequence[str], kind: str = "") -> float:
    chosen = [
      r for a, r in zip(asked, right, strict=True)
      if a.wording in wordings_ and kind in ("", a.kind)
    ]  # fmt: skip
    return float(np.mean(chosen))

  both = ("trained", "unseen")
  values = {
    "paraphrases/plain": accuracy(("plain",)),
    "paraphrases/accuracy": accuracy(both),
  }
  pairs = {
    "all": ("", both),
    "unseen": ("", ("unseen",)),
    **{kind: (kind, both) for kind in sorted({a.kind for a in asked})},
  }
  for name, (kind, which) in pairs.items():
    plain = accuracy(("plain",), kind)
    if plain:
      values[f"paraphrases/{name}"] = accuracy(which, kind) / plain
  return values


def _geneval(subject: Subject, bench: Bench, world: shapes.World) -> float:
  """GenEval's tasks, a quarter as many, in prompts of unseen beginnings."""
  rng = np.random.default_rng(0)
  count = max(1, bench.config.eval.prompts_per_task // 4)
  tasks = [
    task
    for tag in shapes_text.TAGS
    for task in shapes_text.geneval_prompts(world, tag, count, rng)
  ]
  prompts = [wordings.prompt(t["prompt"], rng, unseen=True) for t in tasks]
  images: Any = subject.images(prompts, bench.seeds(len(prompts)))
  return world_suite.geneval_overall(world, tasks, images)
