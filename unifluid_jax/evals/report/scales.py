"""How a metric is read: its name, its unit and which way is better.

Names of metrics are "group/rest", as metrics_eval.jsonl has them. The first
row of a table whose pattern fits a name counts.
"""

import fnmatch
from typing import NamedTuple


class Scale(NamedTuple):
  """How the values of a metric are printed and compared."""

  title: str
  unit: str = ""  # printed after the value
  end: float | None = None  # of a scale that begins at 0; None: it has no end
  factor: float = 1.0  # printed value : stored value
  digits: int = 2  # decimals of the printed value, where it stands large


_SHARE = {"unit": "%", "end": 100.0, "factor": 100.0, "digits": 1}

# Metrics that head a page, the most telling first.
HEADLINES = {
  "emoji_drawn/top1": Scale("Drawn, seen pairs", **_SHARE),
  "emoji_drawn_held_out/top1": Scale("Drawn, held-out pairs", **_SHARE),
  "emoji_fid/ratio": Scale("Fréchet distance", "× real"),
  "emoji_captions/exact": Scale("Captions, seen pairs", **_SHARE),
  "emoji_captions_held_out/concept": Scale("Concepts, held-out", **_SHARE),
  "emoji_vqa/all": Scale("VQA", **_SHARE),
  "emoji_edits/top1": Scale("Edits found again", **_SHARE),
  "geneval/overall": Scale("GenEval", "of 1", 1.0),
  "geneval_raw/overall": Scale("GenEval, own prompts", "of 1", 1.0),
  "geneval_rewritten/overall": Scale("GenEval, rewritten", "of 1", 1.0),
  "fid/ratio": Scale("Fréchet distance", "× real"),
  "coco_fid/distance": Scale("COCO FID"),
  "mjhq_fid/distance": Scale("MJHQ FID"),
  "folder_fid/distance": Scale("FID of a folder"),
  "captions/cider_d": Scale("CIDEr-D", "of 10", 10.0, digits=1),
  "vqa/all": Scale("VQA", **_SHARE),
  "paraphrases/all": Scale("VQA, paraphrased", "× plain"),
  "edits/success": Scale("Edits done", **_SHARE),
}
# Logged by policy gradients, with the title of the curve.
REWARDS = {
  "reward": "Reward of its drawings",
  "reward_told_apart": "Prompts whose drawings differ in it",
}
# Those that are drawn over training steps, with the title of the chart.
CHARTS = {
  "emoji_drawn/top1": "Drawn, seen pairs",
  "emoji_drawn_held_out/top1": "Drawn, held-out pairs",
  "emoji_captions/exact": "Captions, seen pairs",
  "emoji_captions_held_out/concept": "Concepts, held-out pairs",
  "emoji_fid/ratio": "Fréchet distance, generated : real",
  "geneval/overall": "GenEval overall",
  "geneval_raw/overall": "GenEval",
  "geneval_rewritten/overall": "GenEval, rewritten",
  "captions/cider_d": "CIDEr-D (0 to 10)",
  "vqa/all": "VQA",
  "paraphrases/all": "VQA, paraphrases : plain",
  "fid/generated": "Fréchet distance",
  "coco_fid/distance": "COCO FID",
  "mjhq_fid/distance": "MJHQ FID",
  "folder_fid/distance": "FID of a folder",
  "edits/success": "Edits done",
}
_TITLES = {
  "detector/truth": "agreement on true pictures",
  "*fid*/generated": "Fréchet distance, generated",
  "*fid*/real": "Fréchet distance, real",
  "*fid*/ratio": "generated : real (1 is ideal)",
  "*/cider_d": "CIDEr-D (0 to 10)",
  "*/psnr": "PSNR (dB)",
  "vqa/all": "all kinds",
  "paraphrases/all": "paraphrases : plain",
  **CHARTS,
}
# What no weights of the run enter: instruments, true pictures, neighbours.
_CONSTANTS = (
  "detector/*", "fid*/real", "*_fid*/real", "emoji_drawn*/real_*",
  "emoji_*_nearest*", "validation_loss*/order_randomness",
)  # fmt: skip
# What only the frozen tokenizer enters: the same at all steps of a run.
_FROZEN = ("tokenizer/*",)
_HIGHER = ("validation_loss*accuracy",)
_LOWER = ("fid*/*", "*_fid*/*", "validation_loss*")


def titled(name: str) -> tuple[str, str]:
  """Group and title of a metric, as a table prints them."""
  group, _, rest = name.partition("/")
  found = _first(name, tuple(_TITLES))
  title = _TITLES[found] if found else rest.replace("_", " ")
  return group.replace("_", " "), title


def is_constant(name: str, run: bool = False) -> bool:
  """Whether a better model cannot change a score.

  Args:
    name: of the metric.
    run: within one run, whose tokenizer is frozen.
  """
  return bool(_first(name, _CONSTANTS + _FROZEN * run))


def lower_is_better(name: str) -> bool:
  """Whether a metric is a distance or a loss."""
  return not _first(name, _HIGHER) and bool(_first(name, _LOWER))


def _first(name: str, patterns: tuple[str, ...]) -> str | None:
  return next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)
