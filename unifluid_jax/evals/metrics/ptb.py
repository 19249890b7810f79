"""Captions as tokens of the Penn Treebank, as pycocoevalcap cuts them.

pycocoevalcap runs the Stanford tokenizer 3.4.1 in Java, lower-cases, and
drops punctuation (tokenizer/ptbtokenizer.py). Where Java and its jar are
installed this does the same; elsewhere a regex of our own stands in. Which
one it is holds for a whole process, and `chosen().name` belongs beside every
score.

Differs: the regex knows no HTML, no smileys, no numbers with a space inside
(1 1/2) and few of the Stanford rules on apostrophes, of which ’ is one.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unifluid_jax.evals.metrics.pairing import Id

# Texts to the tokens of each; all at once, as starting Java takes a while.
Tokenize = Callable[[Sequence[str]], list[list[str]]]

_JAR = "stanford-corenlp-3.4.1.jar"
_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
# What pycocoevalcap drops. Its list names brackets in capitals, too, which no
# token has once it is lower-cased: brackets stay.
_DROPPED = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())
# All that ends a line for the Stanford tokenizer.
_BREAK = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")


class Tokenizer(NamedTuple):
  """A way to cut texts, and what reports call it."""

  name: str
  tokenize: Tokenize


@functools.cache
def chosen() -> Tokenizer:
  """The Stanford tokenizer where it can run, else ours; decided once."""
  java, jar = shutil.which("java"), _find_jar()
  if java and jar:
    return Tokenizer(
      "Stanford PTBTokenizer 3.4.1 in Java, lower-cased, punctuation dropped",
      functools.partial(stanford, java, jar),
    )
  return Tokenizer(
    "own regex after the Stanford PTBTokenizer, lower-cased, punctuation "
    "dropped",
    own,
  )


def tokenize(texts: Sequence[str]) -> list[list[str]]:
  """Lower-cased tokens of each text, punctuation dropped.

  Args:
    texts: captions; line breaks count as spaces.

  Raises:
    RuntimeError: Java is chosen and fails.
  """
  return chosen().tokenize(texts)


def tokenized(
  pairs: Mapping[Id, tuple[Sequence[str], str]], tokenize: Tokenize
) -> dict[Id, tuple[list[list[str]], list[str]]]:
  """References and predictions, as `pairing.paired` gives them, as tokens."""
  texts = [t for refs, text in pairs.values() for t in (*refs, text)]
  tokens = iter(tokenize(texts))
  return {
    i: ([next(tokens) for _ in refs], next(tokens))
    for i, (refs, _) in pairs.items()
  }


# -------------------------------------------------------------------- Stanford


def _find_jar() -> Path | None:
  """The jar within an installed pycocoevalcap, which is not imported."""
  package = importlib.util.find_spec("pycocoevalcap")
  for folder in (package and package.submodule_search_locations) or ():
    jar = Path(folder, "tokenizer", _JAR)
    if jar.is_file():
      return jar
  return None


def stanford(java: str, jar: Path, texts: Sequence[str]) -> list[list[str]]:
  """`tokenize` by the Stanford tokenizer, with pycocoevalcap's options.

  Args:
    java: the program.
    jar: that holds the tokenizer.
    texts: as of `tokenize`.

  Raises:
    RuntimeError: it fails, or gives other numbers of lines than of texts.
  """
  lines = [_BREAK.sub(" ", text) for text in texts]
  done = subprocess.run(
    [java, "-cp", str(jar), _CLASS, "-preserveLines", "-lowerCase"],
    input="".join(f"{line}\n" for line in lines).encode(),
    capture_output=True,
    check=False,
  )
  # Only spaces part tokens: "1 1/2" is one, with a no-break space inside.
  found = done.stdout.decode().split("\n")[:-1]
  if done.returncode or len(found) != len(lines):
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["-"]
    raise RuntimeError(
      f"{jar}: the tokenizer gave {len(found)} lines for {len(lines)} texts, "
      f"status {done.returncode} ({said[-1]}): mend {java}, or uninstall "
      "pycocoevalcap to use our own tokenizer"
    )
  return [[t for t in line.split(" ") if _counts(t)] for line in found]


# ------------------------------------------------------------------------ ours

_SIGNS = str.maketrans(
  dict.fromkeys('"“”«»‘–—―…', " ")  # dropped, and they part words
  | {"’": "'", "£": "#", "€": "$", "¢": " cents "}
  | {"¼": " 1/4 ", "½": " 1/2 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
)
_BRACKETS = {
  "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-",
  "}": "-rcb-",
}  # fmt: skip
# Whose period belongs to them: always, before a number, or with a capital.
_ABBREVIATIONS = """
  adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp
  bhd bldg blvd brig bros calif capt cf cie cmdr co col colo comdr conn corp
  cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft
  ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky
  lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms
  msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof profs pte
  pty pvt rd rep reps rev rt sen sens sep sept seq sgt spc sq sr st ste supt
  sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
""".split()
_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop".split()
_CAPITAL = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash".split()
_LETTER, _WORD = r"[^\W\d_]", r"[^\W_]+"
_TOKEN = re.compile(
  rf"""
  \.\.\. | -- | [?!]{{2,}} | _+
  | -[LlRr][RrCcSs][Bb]-
  | (?:https?://|www\.)\S*[\w/] | [\w.+-]+@\w+(?:\.\w+)+
  | [@\#]{_LETTER}+
  | (?<!\w)(?:(?i:ph|ed)\.[Dd]|{_LETTER}(?:\.{_LETTER})*)\.(?!\w)  # U.S.  B.
  | (?<!\w)(?:(?i:{"|".join(_ABBREVIATIONS)})|{"|".join(_CAPITAL)})\.(?!\w)
  | (?<!\w)(?i:{"|".join(_BEFORE_NUMBERS)})\.(?=\s*\d)
  | [A-Z]+(?:&[A-Z]+)+                                     # AT&T
  | [-+]?\d+(?:[.,:/]\d+)+(?:-{_LETTER}+)*                 # 1,000  3.5-inch
  | [-+]?\.?\d+(?!\w|[-'/]\w)                              # -5  .5
  | '(?i:n'|(?:n|em|til|cause|s|m|d|re|ve|ll|\d\ds?)(?!\w))  # 'n'  '90s
  | (?<!\w)(?i:'t(?=(?:is|was)\b))
  | {_WORD}(?:(?:[\-_/]|'(?!\d)|(?<={_LETTER})[.?!](?={_LETTER})){_WORD})*
  | ``|'' | [^\s\U00010000-\U0010ffff]
  """,
  re.VERBOSE,
)
_CLITIC = re.compile(r"(.+?)(n't|'s|'m|'d|'re|'ve|'ll|'em)((?:'\w+)?)$")
_MERGED = {
  "cannot": ("can", "not"),
  "gimme": ("gim", "me"),
  "gonna": ("gon", "na"),
  "gotta": ("got", "ta"),
  "lemme": ("lem", "me"),
  "wanna": ("wan", "na"),
  "y'all": ("y'", "all"),
}


def own(texts: Sequence[str]) -> list[list[str]]:
  """`tokenize` by a regex: words, numbers and abbreviations stay whole.

  Clitics are cut off as in the Penn Treebank (don't: do n't, dog's: dog 's).
  """
  return [
    [
      token
      for found in _TOKEN.findall(text.translate(_SIGNS))
      for token in _parts(found.lower())
      if _counts(token)
    ]
    for text in texts
  ]


def _parts(token: str) -> Sequence[str]:
  clitic = _CLITIC.match(token)
  if clitic:
    return clitic.groups()  # the last is empty but in should|n't|'ve
  return _MERGED.get(token, (_BRACKETS.get(token, token),))


def _counts(token: str) -> bool:
  return bool(token) and token not in _DROPPED
