"""Dialogues that a language model writes after four examples.

VARGPT's set of 130K (arXiv 2501.12327 §4.1, §8): for each captioned image a
seed of each of three pools (how to ask, how to use the caption, how to answer)
and four examples out of the data set go into a request; any language model
answers the requests. Its replies are read back and checked here; nothing is
sent anywhere.

Differs: the paper's seeds and its request are not printed but in a figure;
these are ours. Replies are checked; the paper names no checks.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unifluid_jax.data import conversation, json_files
from unifluid_jax.data.instructions import templates
from unifluid_jax.data.instructions.templates import Pools, Templates
from unifluid_jax.data.instructions.written import Captioned

SHOTS = 4
LONGEST = 300  # characters of a prompt or an answer
OVERLAP = 0.5  # of the caption's words that a prompt has, at least

_SYSTEM = (
  "You write examples of dialogues between a user and an assistant that can "
  "draw. The user asks for an image, the assistant announces the image it has "
  "drawn. Reply with one JSON object, "
  '{"prompt": what the user says, "answer": what the assistant says}, '
  "and nothing else."
)
_RULES = (
  "The prompt asks for an image of what the caption says.",
  "The answer is one sentence that announces the image; it asks nothing and "
  "neither apologises nor refuses.",
  f"Neither has more than {LONGEST} characters or a line break, and neither "
  "mentions the caption or these rules.",
)
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
_STEM = 5  # letters that two forms of a word share
# Say nothing of an image. Of other languages' words all count.
_STOP = frozenset(
  "a an the of in on at to and or with by for from as is are was were be being "
  "been it its his her their that this these those there some".split()
)
_REFUSALS = ("i cannot", "i can't", "i'm sorry", "i am sorry", "as an ai")


class Said(NamedTuple):
  """What a language model wrote for an image."""

  prompt: str
  answer: str


class Verdicts(NamedTuple):
  """Requests by what became of them, in their order."""

  accepted: list[tuple[Mapping[str, Any], Said]]
  rejected: list[tuple[Mapping[str, Any], str]]  # with the reason
  unanswered: list[Mapping[str, Any]]


# -------------------------------------------------------------------- requests


def requests(
  images: Sequence[Captioned], pools: Pools, used: Templates, seed: int
) -> Iterator[dict[str, Any]]:
  """One request an image, as JSON; a function of the arguments alone.

  Args:
    images: at least five.
    pools: the advice on captions is taken from.
    used: seeds of prompts and answers; those of its held-out prompts make
      requests whose dialogues training never shows.
    seed: of all choices.

  Raises:
    ValueError: too few images for four examples.
  """
  if len(images) <= SHOTS:
    raise ValueError(
      f"{len(images)} images with captions: {SHOTS} examples beside each need "
      f"at least {SHOTS + 1}"
    )
  every = (*used.prompts, *used.held_out)
  for i, image in enumerate(images):
    rng = np.random.default_rng([seed, image.index, 1])
    asked = int(rng.integers(len(every)))
    others = rng.permutation(len(images) - 1)[:SHOTS]
    shots = [images[k + (k >= i)] for k in others]
    yield {
      "id": f"{image.index:07d}",
      "image": image.image,
      "caption": image.caption,
      "held_out": asked >= len(used.prompts),
      "messages": _messages(
        image.caption,
        [_example(s, used, rng) for s in shots],
        (every[asked], _pick(pools.captions, rng), _pick(used.answers, rng)),
      ),
    }


def _example(
  image: Captioned, used: Templates, rng: np.random.Generator
) -> tuple[str, Said]:
  """A caption with the dialogue of two templates, never of held-out ones."""
  prompt, answer = _pick(used.prompts, rng), _pick(used.answers, rng)
  caption = image.caption
  return caption, Said(
    templates.fill(prompt, caption), templates.fill(answer, caption)
  )


def _messages(
  caption: str,
  examples: Sequence[tuple[str, Said]],
  seeds: tuple[str, str, str],
) -> list[dict[str, str]]:
  """What is sent: the system's message, and one with examples and seeds."""
  prompt, advice, answer = seeds
  lines = ["Examples:"]
  for shown, said in examples:
    lines += [f"caption: {shown}", json.dumps(said._asdict())]
  lines += ["Rules:", *(f"- {rule}" for rule in (*_RULES, advice))]
  lines += [
    f"Let the prompt be like: {prompt}",
    f"Let the answer be like: {answer}",
    f"caption: {caption}",
  ]
  return [
    {"role": "system", "content": _SYSTEM},
    {"role": "user", "content": "\n".join(lines)},
  ]


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
  return options[int(rng.integers(len(options)))]


# --------------------------------------------------------------------- replies


def read_lines(path: str, keys: Iterable[str]) -> list[dict[str, Any]]:
  """Objects of a file of JSON lines.

  Raises:
    ValueError: a line is no object or lacks a key; names it.
  """
  rows = []
  for number, line in enumerate(json_files.read(path).splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json_files.parse(line)
    except ValueError as error:
      raise ValueError(f"{path}:{number} is {error}: write it again") from error
    lacking = [k for k in keys if not isinstance(row, dict) or k not in row]
    if lacking:
      raise ValueError(
        f"{path}:{number} has no {lacking[0]!r}: each line is an object with "
        f"{', '.join(keys)}"
      )
    rows.append(row)
  return rows


def judge(
  asked: Sequence[Mapping[str, Any]],
  replies: Sequence[Mapping[str, Any]],
  overlap: float = OVERLAP,
) -> Verdicts:
  """Pairs requests with replies and checks these.

  Of several replies to a request the first that passes counts.

  Args:
    asked: what `requests` made.
    replies: {"id": of a request, "reply": text} in any order.
    overlap: see `check`.

  Raises:
    ValueError: a reply to no request.
  """
  known = {row["id"] for row in asked}
  given: dict[str, list[Any]] = {}
  for row in replies:
    if row["id"] not in known:
      raise ValueError(
        f"a reply has the id {row['id']!r}, which no request has: give the "
        "requests that were answered"
      )
    given.setdefault(row["id"], []).append(row["reply"])
  found = Verdicts([], [], [])
  seen: dict[str, str] = {}  # prompt → its caption
  for row in asked:
    if row["id"] not in given:
      found.unanswered.append(row)
      continue
    said, reason = _first_good(row, given[row["id"]], seen, overlap)
    if said is None:
      found.rejected.append((row, reason))
    else:
      seen[templates.key(said.prompt)] = row["caption"]
      found.accepted.append((row, said))
  return found


def _first_good(
  row: Mapping[str, Any],
  texts: Sequence[Any],
  seen: Mapping[str, str],
  overlap: float,
) -> tuple[Said | None, str]:
  """The first reply that passes, or what is wrong with the last."""
  reason = ""
  for text in texts:
    try:
      said = check(row["caption"], text, overlap)
      if seen.get(templates.key(said.prompt), row["caption"]) != row["caption"]:
        raise ValueError("the prompt is that of another caption")
      return said, ""
    except ValueError as error:
      reason = str(error)
  return None, reason


def check(caption: str, reply: Any, overlap: float = OVERLAP) -> Said:
  """What a reply says, if it can be trained on.

  Args:
    caption: of the image.
    reply: the language model's text: a JSON object, perhaps in a code fence.
    overlap: share of the caption's words that the prompt must have; words
      count as one where their first five letters do.

  Raises:
    ValueError: says what is wrong.
  """
  text = json_files.text(reply, "the reply").strip()
  if fenced := _FENCED.search(text):
    text = fenced[1]
  found = json_files.parse(text)
  if not isinstance(found, dict) or set(found) != set(Said._fields):
    raise ValueError("not one object with prompt and answer")
  said = Said(*(
    json_files.text(found[name], name).strip() for name in Said._fields
  ))  # fmt: skip
  for name, value in said._asdict().items():
    _check_text(name, value)
  if any(words in said.answer.casefold() for words in _REFUSALS):
    raise ValueError("the answer refuses")
  if said.answer.endswith("?"):
    raise ValueError("the answer asks")
  needed = _stems(caption)
  share = len(needed & _stems(said.prompt)) / max(1, len(needed))
  if share < overlap:
    raise ValueError(
      f"the prompt has {share:.0%} of the caption's words, less than "
      f"{overlap:.0%}"
    )
  return said


def _check_text(name: str, text: str) -> None:
  """Raises ValueError where it cannot be a message."""
  if not text:
    raise ValueError(f"the {name} is empty")
  if len(text) > LONGEST or "\n" in text:
    raise ValueError(f"the {name} is no line of at most {LONGEST} characters")
  marks = (conversation.SEEN, conversation.DRAWN, templates.CAPTION)
  held = [m for m in marks if m in text]
  if held:
    raise ValueError(f"the {name} holds {held[0]}")


def _stems(text: str) -> set[str]:
  """The beginnings of the words that say something."""
  words = _WORD.findall(text.casefold())
  return {w[:_STEM] for w in words if w not in _STOP}
