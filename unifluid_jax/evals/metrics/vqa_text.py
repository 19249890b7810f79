"""Texts as VQA v2's official evaluation compares them, quirks included.

Sources: VQA v2's PythonEvaluationTools vqaEvaluation/vqaEval.py; big_vision
evaluators/proj/paligemma/transfers (vqav2, tallyqa) for the number words.
"""

import functools
import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(["a", "an", "the"])
_WORDS = "zero one two three four five six seven eight nine ten".split()
_TEENS = (
  "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
  "nineteen twenty"
).split()
# Whole answers of TallyQA and CountBenchQA; VQA v2 itself stops at ten.
NUMERALS = {"none": "0"} | {
  word: str(n) for n, word in enumerate(_WORDS + _TEENS)
}
# Contractions that are recognised where one of their apostrophes is missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've
it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll
who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def normalise(text: str) -> str:
  """A text as VQA v2's official evaluation compares it.

  Its quirks are kept: one digit,digit anywhere makes every punctuation mark
  vanish instead of leaving a space, and a period goes unless a digit follows.

  Args:
    text: an answer without line breaks.

  Returns:
    Lower case, without articles; known contractions and number words (to
    ten) replaced.
  """
  grouped = re.search(r"\d,\d", text) is not None
  result = text
  for mark in _PUNCTUATION:
    loose = f"{mark} " in text or f" {mark}" in text
    result = result.replace(mark, "" if grouped or loose else " ")
  result = re.sub(r"\.(?!\d)", "", result)
  words = (w for w in result.lower().split() if w not in _ARTICLES)
  return " ".join(replacements().get(w, w) for w in words)


def flat(text: str) -> str:
  """The text on one line, without space at its ends."""
  return text.replace("\n", " ").replace("\t", " ").strip()


@functools.cache
def replacements() -> dict[str, str]:
  """Misspelt contractions and number words by what they become."""
  table = {word: str(n) for n, word in enumerate(_WORDS)}
  # The official table has this one the wrong way round.
  table |= {"none": "0", "somebody'd": "somebodyd"}
  for word in _CONTRACTIONS:
    for i, letter in enumerate(word):
      if letter == "'":
        table[word[:i] + word[i + 1 :]] = word
  return table
