"""What a model knows of the embedded world's language, without an image."""

import numpy as np

from unifluid_jax.data.worlds import shapes, shapes_choices
from unifluid_jax.evals.bench import Bench, Outcome, TextScorer
from unifluid_jax.evals.worlds import world_suite


def text_choice(subject: TextScorer, bench: Bench) -> Outcome:
  """Accuracy of choosing the right of four texts by likelihood.

  As HellaSwag (arXiv 1905.07830) is scored: "accuracy" by the sum of the
  tokens' log-likelihoods, "normalised" by that sum per character. The four
  texts begin alike, which adds one number to all sums and so decides nothing
  in "accuracy".

  Differs: the characters of the whole text are counted, not the ending's, as
  a system says how likely the whole is.

  Raises:
    ValueError: data that are not of the embedded world, or a run without
      training on text alone.
  """
  world, split = world_suite.world_of(bench), bench.splits[0]
  asked = []
  for i, record in enumerate(bench.records(split)):
    scene = shapes.scene_from_json(record.scene)
    rng = np.random.default_rng([0, i])
    asked += shapes_choices.choices(world, scene, rng, split)
  texts = [c.context + ending for c in asked for ending in c.endings]
  questions = [c.question or None for c in asked for _ in c.endings]
  found = subject.log_likelihoods(questions, texts)
  sums = np.asarray(found).reshape(-1, shapes_choices.OPTIONS)
  lengths = np.asarray([len(text) for text in texts]).reshape(sums.shape)
  right = _first_is_best(sums)
  kinds = np.asarray([c.kind for c in asked])
  values = {
    "text_choice/accuracy": float(right.mean()),
    "text_choice/normalised": float(_first_is_best(sums / lengths).mean()),
    **{
      f"text_choice/{kind}": float(right[kinds == kind].mean())
      for kind in shapes_choices.KINDS
    },
  }
  floors = dict.fromkeys(values, 1 / shapes_choices.OPTIONS)
  settings = {"texts": len(asked), "options": shapes_choices.OPTIONS}
  return Outcome(values, floors, settings | bench.skipped(split))


def _first_is_best(scores: np.ndarray) -> np.ndarray:
  """Whether the first of each row beats all others; ties are wrong."""
  return scores[:, 0] > scores[:, 1:].max(axis=1)
