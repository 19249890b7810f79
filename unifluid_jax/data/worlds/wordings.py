"""Many ways to say what `shapes_text` says in one: what people type.

Every question and instruction has a plain form, which evaluation uses, seven
further wordings that training draws from, and three that training never
shows, to see what a model makes of new ones. All are spelt in both ways
(colour, color), with and without capitals and a question mark. Captions are
not reworded: scored against references, they have one form.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

NUMBERS = ("zero", "one", "two", "three", "four")

_PLAIN_SHARE = 0.5  # of the questions and prompts that training shows
_AMERICAN_SHARE = 0.5
_MARK_SHARE = 0.5  # of questions that end in a question mark
_STOP_SHARE = 0.1  # of prompts and instructions that end in a full stop


class Form(NamedTuple):
  """One thing that is asked; the templates' slots are filled by name."""

  plain: str
  trained: tuple[str, ...]  # seven
  unseen: tuple[str, ...]  # three


class Paraphrase(NamedTuple):
  """A question in other words; `unseen`: in words that no training shows."""

  text: str
  unseen: bool


def _form(plain: str, trained: str, unseen: str) -> Form:
  """A form from templates, one a line."""
  return Form(plain, *(
    tuple(line.strip() for line in block.strip().splitlines())
    for block in (trained, unseen)
  ))  # fmt: skip


def _count(things: str, *others: str) -> Form:
  """How many there are of something, which the image may lack."""
  everything, all_of_it = others or (things, things)
  return _form(
    f"how many {things} are there",
    f"""how many {things} do you see
        how many {everything} are in the picture
        how many {things} can you see here
        what is the number of {things}
        count the {all_of_it}
        how many {things} does the image show
        tell me how many {everything} there are""",
    f"""how many {things} are here
        what number of {everything} do you see
        count the {things} in the picture""",
  )


QUESTIONS: Mapping[str, Form] = {
  "count_all": _count("objects", "things", "objects"),
  "count": _count("{shapes}"),
  "colour": _form(
    "what colour is the {shape}",
    """what is the colour of the {shape}
       which colour is the {shape}
       which colour does the {shape} have
       what colour does the {shape} have
       tell me the colour of the {shape}
       the {shape} is what colour
       what colour is the {shape} in the picture""",
    """tell me what colour the {shape} is
       in which colour is the {shape}
       in the image what is the colour of the {shape}""",
  ),
  "colours": _form(
    "what colour are the {shapes}",
    """what is the colour of the {shapes}
       which colour are the {shapes}
       which colour do the {shapes} have
       what colour do the {shapes} have
       tell me the colour of the {shapes}
       the {shapes} are what colour
       what colour are the {shapes} in the picture""",
    """tell me what colour the {shapes} are
       in which colour are the {shapes}
       in the image what is the colour of the {shapes}""",
  ),
  "relation": _form(
    "where is the {a} relative to the {b}",
    """where is the {a} seen from the {b}
       on which side of the {b} is the {a}
       which side of the {b} is the {a} on
       tell me where the {a} is relative to the {b}
       where is the {a} compared to the {b}
       in which direction from the {b} is the {a}
       what is the position of the {a} relative to the {b}""",
    """where do you see the {a} relative to the {b}
       what is the position of the {a} seen from the {b}
       tell me on which side of the {b} the {a} is""",
  ),
  "exists": _form(
    "is there {thing}",
    """is there {thing} here
       is there {thing} in the picture
       do you see {thing}
       can you see {thing}
       does the image show {thing}
       does the picture contain {thing}
       is {thing} in the image""",
    """can you see {thing} in the picture
       does the picture show {thing}
       do you see {thing} here""",
  ),
  "number": _form(
    "are there {n} {shapes}",
    """are there exactly {n} {shapes}
       are there {n} {shapes} in the picture
       do you see {n} {shapes}
       can you see {n} {shapes}
       does the image show {n} {shapes}
       does the picture contain {n} {shapes}
       is the number of {shapes} {n}""",
    """can you see exactly {n} {shapes}
       are {n} {shapes} in the image
       do you see {n} {shapes} here""",
  ),
  "side": _form(
    "is the {a} {where} the {b}",
    """is the {a} in the picture {where} the {b}
       do you see the {a} {where} the {b}
       can you see the {a} {where} the {b}
       does the image show the {a} {where} the {b}
       the {a} is {where} the {b} yes or no
       tell me if the {a} is {where} the {b}
       is it true the {a} is {where} the {b}""",
    """in the image is the {a} {where} the {b}
       does the picture show the {a} {where} the {b}
       is the {a} {where} the {b} yes or no""",
  ),
  # Answered by the caption; evaluation asks for it by the caption prefix.
  "description": _form(
    "what is in the picture",
    """what is in the image
       describe the picture
       describe the image
       what do you see
       what does the picture show
       tell me what you see
       what can you see here""",
    """describe what you see
       tell me what is in the picture
       what does the image show""",
  ),
}

INSTRUCTIONS: Mapping[str, Form] = {
  "recolour": _form(
    "change the {noun} to {colour}",
    """make the {noun} {colour}
       turn the {noun} {colour}
       paint the {noun} {colour}
       draw the {noun} in {colour}
       make the colour of the {noun} {colour}
       change the {noun} into {colour}
       change the colour of the {noun} to {colour}""",
    """turn the {noun} into {colour}
       turn the colour of the {noun} to {colour}
       paint the {noun} in {colour}""",
  ),
  "remove": _form(
    "remove the {noun}",
    """delete the {noun}
       erase the {noun}
       take the {noun} away
       take away the {noun}
       remove the {noun} from the picture
       delete the {noun} from the image
       make the {noun} go away""",
    """erase the {noun} from the picture
       take the {noun} from the image
       delete the {noun} here""",
  ),
  "add": _form(
    "add {thing} {where} the {noun}",
    """put {thing} {where} the {noun}
       draw {thing} {where} the {noun}
       place {thing} {where} the {noun}
       paint {thing} {where} the {noun}
       insert {thing} {where} the {noun}
       {where} the {noun} add {thing}
       {where} the {noun} draw {thing}""",
    """{where} the {noun} put {thing}
       {where} the {noun} place {thing}
       {where} the {noun} paint {thing}""",
  ),
}

_LEADS = ("a picture of", "a photo of", "an image of", "draw", "show me",
          "please draw")  # fmt: skip
_UNSEEN_LEADS = ("please show me", "draw me", "photo of", "image of")
_SYNONYMS = {
  "left of": ("left of", "to the left of", "on the left of"),
  "right of": ("right of", "to the right of", "on the right of"),
  "above": ("above", "over", "on top of"),
  "below": ("below", "under", "beneath"),
  "and": ("and", "with"),
}
_RELATION = re.compile(rf" ({'|'.join(_SYNONYMS)}) ")


def plain(form: str, slots: Mapping[str, str]) -> str:
  """A question or instruction as evaluation words it."""
  return _FORMS[form].plain.format(**slots)


def reworded(form: str, slots: Mapping[str, str], rng) -> str:
  """The same as training words it: half of them are plain.

  Args:
    form: a key of QUESTIONS or INSTRUCTIONS.
    slots: what fills the templates.
    rng: source of all randomness.
  """
  table = _FORMS[form]
  template = table.plain
  if rng.random() >= _PLAIN_SHARE:
    template = _pick(table.trained, rng)
    slots = _varied(slots, rng)
  return _surface(template.format(**slots), rng, form in QUESTIONS)


def paraphrases(form: str, slots: Mapping[str, str], rng) -> list[Paraphrase]:
  """All ten ways to say it that are not plain, those of training first."""
  table = _FORMS[form]
  return [
    Paraphrase(
      _surface(template.format(**_varied(slots, rng)), rng, form in QUESTIONS),
      template in table.unseen,
    )
    for template in (*table.trained, *table.unseen)
  ]


def prompt(text: str, rng: np.random.Generator, unseen: bool = False) -> str:
  """A plain prompt as training words it: half of them are as they were.

  Others get a lead ("draw ..."), digits, other words for the relation, or
  lose their articles.

  Args:
    text: of `shapes_text.prompt` or a GenEval task.
    rng: source of all randomness.
    unseen: begin with a lead that training never shows.
  """
  if not unseen and rng.random() < _PLAIN_SHARE:
    return _surface(text, rng, question=False)
  text = _RELATION.sub(lambda m: f" {_pick(_SYNONYMS[m[1]], rng)} ", text)
  first, _, rest = text.partition(" ")
  if first in NUMBERS and rng.random() < 0.5:
    text = f"{NUMBERS.index(first)} {rest}"
  elif rng.random() < 0.2:
    text = re.sub(r"\ban? ", "", text)
  if unseen or rng.random() < 0.5:
    lead = _pick(_UNSEEN_LEADS if unseen else _LEADS, rng)
    return _surface(f"{lead} {text}", rng, question=False, stop=False)
  return _surface(text, rng, question=False)


def _varied(slots: Mapping[str, str], rng) -> Mapping[str, str]:
  """The slots with another word for the relation, digits for numbers."""
  changes = {}
  if "where" in slots:
    changes["where"] = _pick(_SYNONYMS[slots["where"]], rng)
  if "n" in slots and rng.random() < 0.5:
    changes["n"] = str(NUMBERS.index(slots["n"]))
  return {**slots, **changes}


def _surface(text: str, rng, question: bool, stop: bool = True) -> str:
  """Spelling, capitals and the mark at the end."""
  if rng.random() < _AMERICAN_SHARE:
    text = text.replace("colour", "color")
  style = rng.random()
  if style < 0.4:
    text = text[0].upper() + text[1:]
  elif style < 0.5:
    text = text.upper()
  if question:
    return text + ("?" if rng.random() < _MARK_SHARE else "")
  return text + ("." if stop and rng.random() < _STOP_SHARE else "")


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
  return options[int(rng.integers(len(options)))]


_FORMS: Mapping[str, Form] = {**QUESTIONS, **INSTRUCTIONS}
