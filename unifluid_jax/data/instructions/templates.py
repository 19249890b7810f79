"""Wordings that ask for an image and announce it, written as small grammars.

VARGPT (arXiv 2501.12327 §4.1, §4.2) joins up to 400 templates with captions:
its set of 1270K dialogues. The paper prints none of them but by example; those
here are ours. A pattern is a text with alternatives in brackets, e.g.

  "[draw|paint] {caption}[ please|]"

which are combined in all ways.
"""

import itertools
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from unifluid_jax.data import conversation, json_files

CAPTION = "{caption}"
MOST = 400  # templates of a kind, as the paper has

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_EVERY_PATTERN = 100_000  # expansions at most
_ARTICLES = ("A ", "An ", "The ", "One ", "Two ", "Several ", "Some ", "Many ")
_IMAGES = "[an image|a picture|a photo|an illustration]"
_IMAGE = "[image|picture|photo|illustration]"


class Pools(NamedTuple):
  """Seeds of instruction data: patterns, and for captions plain advice."""

  prompts: tuple[str, ...]  # how users ask; each holds {caption}
  captions: tuple[str, ...]  # how a language model is to use a caption
  answers: tuple[str, ...]  # how the model announces its image


class Templates(NamedTuple):
  """Wordings in use; each holds {caption}, no two read the same."""

  prompts: tuple[str, ...]
  held_out: tuple[str, ...]  # prompts that training never shows
  answers: tuple[str, ...]


POOLS = Pools(
  prompts=(
    f"[|Please ][draw|paint|create|generate|make] {_IMAGES} of {CAPTION}.",
    f"[Can|Could|Would] you [please |][draw|create|generate|make] [me |]"
    f"{_IMAGES} of {CAPTION}?",
    f"I [would like|want|need] {_IMAGES} [of|showing|with] {CAPTION}.",
    f"[Show|Give|Draw|Make] me {_IMAGES} of {CAPTION}.",
    f"[Hi|Hello|Hey], [can|could] you [draw|create|generate] {_IMAGES} of "
    f"{CAPTION}?",
    f"[Help me|I'd like you to|Try to] [draw|picture|create a photo of|"
    f"generate an image of] {CAPTION}.",
    f"{CAPTION}: [draw|paint|illustrate|picture] [it|this][ for me|].",
    f"What [would|might] {CAPTION} look like? [Draw|Show|Paint] it[ for me|].",
    f"[Imagine|Picture] {CAPTION} and [draw|paint|show] [it|what you see].",
    f"[Generate|Create] {_IMAGES} [from|for] this [caption|description|text]: "
    f"{CAPTION}",
  ),
  captions=(
    "Keep every object, colour and number of the caption.",
    "Say it in other words, without adding anything that is not in it.",
    "Use at most twelve words for what the image shows.",
    "Leave out what nobody could see in an image.",
    "Name the main object first, then what surrounds it.",
    "Write it as somebody would who speaks to a friend.",
  ),
  answers=(
    f"[Here is|Here's|This is] [an|the|your] image of {CAPTION}.",
    f"[I have|I've|I just] [created|drawn|painted|generated|made] {_IMAGES} of "
    f"{CAPTION}.",
    f"[The|Your|The requested] {_IMAGE} [of|showing] {CAPTION} is "
    "[as follows|below|ready|here]:",
    f"[Sure|Certainly|Of course|Gladly][, here is|! This is] {_IMAGES} of "
    f"{CAPTION}.",
    f"[Have a look at|Enjoy|Please find] [this|the] {_IMAGE} of {CAPTION}:",
    f"As [requested|you asked|you wished], {_IMAGES} of {CAPTION}:",
    f"[Below|Here] you [see|can see] {CAPTION}.",
    f"I hope you like [this|my|the] {_IMAGE} of {CAPTION}.",
    f"[Done|Finished|Ready]: {_IMAGES} of {CAPTION}.",
    f"[I have|I've] [prepared|put together|come up with] [this|the following] "
    f"{_IMAGE} of {CAPTION}:",
    f"[This is how I imagine|Let me show you] {CAPTION}.",
    f"[One|Your] {_IMAGE} of {CAPTION}, [as requested|as you wished]:",
  ),
)


def load_pools(path: str | os.PathLike[str]) -> Pools:
  """Pools out of a JSON file {"prompts": [...], "captions": ..., ...}.

  What the file leaves out is as in POOLS.

  Raises:
    ValueError: unreadable, an unknown pool, or one that is no list of texts;
      names the file and the fix.
  """
  found = json_files.load(path, "write an object of lists")
  if not isinstance(found, dict):
    raise ValueError(f"{os.fspath(path)} is no JSON object of lists")
  unknown = sorted(set(found) - set(Pools._fields))
  if unknown:
    raise ValueError(
      f"{os.fspath(path)}: unknown pool {unknown[0]!r}: use "
      f"{', '.join(Pools._fields)}"
    )
  pools = {}
  for name, listed in found.items():
    if not isinstance(listed, list) or not listed:
      raise ValueError(f"{os.fspath(path)}: {name} is no list of texts")
    pools[name] = tuple(
      json_files.text(x, f"{os.fspath(path)}: {name}[{i}]")
      for i, x in enumerate(listed)
    )
  return POOLS._replace(**pools)


def expand(pattern: str) -> list[str]:
  """All texts of a pattern.

  Raises:
    ValueError: it lacks {caption}, or has more texts than anybody needs.
  """
  parts = _CHOICE.split(pattern)  # plain texts and alternatives in turn
  options = [
    part.split("|") if i % 2 else [part] for i, part in enumerate(parts)
  ]
  count = int(np.prod([len(o) for o in options], dtype=float))
  if count > _EVERY_PATTERN:
    raise ValueError(f"pattern {pattern!r} has {count} texts: split it")
  texts = ["".join(choice) for choice in itertools.product(*options)]
  for text in texts:
    if text.count(CAPTION) != 1:
      raise ValueError(f"pattern {pattern!r}: each text needs one {CAPTION}")
  return texts


def key(text: str) -> str:
  """What two wordings share that read the same: letters and digits."""
  return "".join(c for c in text.casefold() if c.isalnum())


def deal(patterns: Iterable[str], count: int, seed: int) -> tuple[str, ...]:
  """So many texts, of the patterns in turn: no large one drowns the others.

  Args:
    patterns: of a pool.
    count: how many; fewer where the pool has fewer.
    seed: of the choice.

  Returns:
    Texts that all read differently.
  """
  rng = np.random.default_rng(seed)
  piles = [list(rng.permutation(expand(p))) for p in patterns]
  dealt: dict[str, str] = {}
  for hand in itertools.zip_longest(*piles):
    for text in hand:
      if text is not None and len(dealt) < count:
        dealt.setdefault(key(text), str(text))
  return tuple(dealt.values())


def choose(
  pools: Pools = POOLS, count: int = MOST, held_out: float = 0.05, seed: int = 0
) -> Templates:
  """The templates of a data set, a function of the arguments alone.

  Args:
    pools: where they come from.
    count: of prompts, and of answers, at most.
    held_out: share of the prompts that is kept for evaluation.
    seed: of the choice.

  Raises:
    ValueError: a share that leaves none to train on, or too few prompts.
  """
  if not 0 <= held_out < 1 or count < 1:
    raise ValueError(
      f"count={count}, held_out={held_out}: use count >= 1, 0 <= held_out < 1"
    )
  prompts = deal(pools.prompts, count, seed)
  kept = round(held_out * len(prompts))
  if held_out and not 0 < kept < len(prompts):
    raise ValueError(
      f"held_out={held_out} of {len(prompts)} prompts leaves none on one side: "
      "give it more templates, or another share"
    )
  chosen = np.random.default_rng([seed, 1]).permutation(len(prompts))[:kept]
  apart = set(chosen.tolist())
  return Templates(
    tuple(p for i, p in enumerate(prompts) if i not in apart),
    tuple(p for i, p in enumerate(prompts) if i in apart),
    deal(pools.answers, count, seed + 1),
  )


def fill(template: str, caption: str) -> str:
  """A template with its caption, as a sentence."""
  text = template.replace(CAPTION, caption)
  return text[:1].upper() + text[1:]


def cleaned(caption: str) -> str:
  """A caption as a part of a sentence: one line, no full stop at its end.

  Raises:
    ValueError: nothing remains, or it holds a placeholder of images.
  """
  text = " ".join(caption.split()).rstrip(" .")
  if not text:
    raise ValueError("the caption is empty")
  if conversation.SEEN in text or conversation.DRAWN in text:
    raise ValueError(f"the caption {text!r} holds a placeholder of images")
  if text.startswith(_ARTICLES):
    text = text[0].lower() + text[1:]
  return text
