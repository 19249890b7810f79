"""The 24 transfer tasks of the paper's tables, one row a reported number.

Sources: UniFluid §5.1 names the tasks (4 captioning, 20 question answering);
their settings at 224 pixels are PaliGemma's (arXiv 2407.07726, appendix J;
big_vision configs/proj/paligemma/transfers), with PaliGemma 2's learning
rates (arXiv 2412.03555, table 14) beside them.
"""

import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

from unifluid_jax.data.transfers import caption_readers as captions
from unifluid_jax.data.transfers import photo_readers as photographs
from unifluid_jax.data.transfers import text_readers as texts
from unifluid_jax.data.transfers.files import Example, Root

Reader = Callable[[Root, str], list[Example]]

CAPTION = "caption en"
ASK = "answer en {question}"
PLAIN = "{question}"
# Two spaces after "en", as in the published code, though not in the paper.
CHOOSE = "answer en  {question} choose from: {choices}"
SCIENCE = (
  "Question: {question}\nContext: {context}\nOptions: {options}\nAnswer:"
)
LETTER = "The answer is {letter}."


class Row(NamedTuple):
  """One reported number and the fine-tuning run behind it.

  Optimizer settings that all rows share: Adam (.9, .999), gradient clipping
  at 1, cosine decay to 0 after a linear warm-up over 5 % of the steps; the
  weight decay is absolute (not multiplied by the learning rate).
  """

  name: str  # of the number, unique
  title: str  # as the tables print it
  run: str  # of the fine-tuning it comes from; several rows may share one
  reader: Reader
  train: tuple[str, ...]  # splits to mix when `split` is scored; "a+b": joined
  split: str  # scored here; published 3B models are compared on it
  prefix: str  # asks; the newline that ends it is the tokenizer's business
  length: int  # tokens of prefix and answer together, and of decoding at most
  epochs: int
  batch: int
  lr: float
  metric: str  # a name of evals.answers.METRICS
  train_size: int  # published examples (captions: images) of `final`
  held: int = 0  # of these, in what `train` leaves out of `final`
  images: int = 1  # that a question is about
  target: str = "cycle"  # an answer by turns; "random" one; "choice"; "letter"
  lower: bool = False  # lower-case the answers to train on
  weight_decay: float = 0.0
  dropout: float = 0.0  # in the decoder
  smoothing: float = 0.0  # of labels
  lr2: float = 0.0  # PaliGemma 2 3B's; all else equal
  beam: int = 1  # 1: greedy
  freeze_vit: bool = False
  kind: str = ""  # only questions of this kind count
  weights: tuple[int, ...] = ()  # of the mixed splits; by size if empty
  final: tuple[str, ...] = ()  # trained on for the server; `train` if empty
  server: str = ""  # split whose answers only a server knows
  folder: str = ""  # below the data root; `run` if empty

  @property
  def group(self) -> str:
    """The average it belongs to: "caption" or "qa"."""
    return "caption" if self.metric == "cider_d" else "qa"


_RSVQA_HR = Row(
  name="rsvqa_hr_test", title="RSVQA-hr (test)", run="rsvqa_hr",
  reader=texts.rsvqa_hr, train=("train+val",), split="test", prefix=ASK,
  lower=True, length=32, epochs=1, batch=256, lr=1e-5, lr2=1e-5,
  metric="by_type", train_size=432_239,
)  # fmt: skip

_CHARTQA = Row(
  name="chartqa_human", title="ChartQA (human)", run="chartqa",
  reader=texts.chartqa,
  train=("train_human+val_human", "train_augmented+val_augmented"),
  weights=(7398, 20_901), split="test_human", prefix=PLAIN, length=48,
  epochs=30, batch=256, lr=1e-5, weight_decay=1e-6, dropout=0.1,
  smoothing=0.2, lr2=3e-6, metric="relaxed", train_size=30_219,
)  # fmt: skip

_TALLYQA = Row(
  name="tallyqa_simple", title="TallyQA (simple)", run="tallyqa",
  reader=photographs.tallyqa, train=("train",), split="test", kind="simple",
  prefix=ASK, length=32, epochs=2, batch=256, lr=1e-5, lr2=6e-6,
  metric="counts", train_size=249_318,
)  # fmt: skip

ROWS: tuple[Row, ...] = (
  Row(
    name="cococap", title="COCOcap", run="cococap",
    reader=captions.coco_karpathy, train=("train+restval",), split="val",
    prefix=CAPTION, length=32, epochs=5, batch=256, lr=1e-5,
    weight_decay=1e-6, lr2=3e-6, beam=2, metric="cider_d",
    train_size=113_287, folder="coco",
  ),
  Row(
    name="textcaps", title="TextCaps", run="textcaps",
    reader=captions.textcaps, train=("train",), split="val", prefix=CAPTION,
    lower=True, length=32, epochs=5, batch=256, lr=1e-5, weight_decay=1e-6,
    lr2=1e-6, beam=3, metric="cider_d", train_size=21_953,
  ),
  Row(
    name="screen2words", title="Screen2Words", run="screen2words",
    reader=captions.screen2words, train=("train+dev",), split="test",
    prefix=CAPTION, length=24, epochs=10, batch=256, lr=1e-5, dropout=0.3,
    smoothing=0.2, lr2=6e-6, metric="cider_d", train_size=18_107,
  ),
  Row(
    name="widgetcap", title="WidgetCap", run="widgetcap",
    reader=captions.widgetcap, train=("train+dev",), split="test",
    prefix=CAPTION, length=32, epochs=4, batch=64, lr=3e-6,
    weight_decay=3e-7, dropout=0.1, smoothing=0.1, lr2=3e-6,
    metric="cider_d", train_size=44_704,
  ),
  Row(
    name="okvqa", title="OKVQA", run="okvqa", reader=photographs.okvqa,
    train=("train",), split="val", prefix=ASK, length=32, epochs=10,
    batch=128, lr=5e-6, lr2=3e-6, metric="vqa_simple", train_size=9009,
  ),
  Row(
    name="aokvqa_mc", title="AOKVQA-MC", run="aokvqa_mc",
    reader=photographs.aokvqa, train=("train",), split="val",
    final=("train+val",), server="test", prefix=CHOOSE, target="choice",
    length=128, epochs=15, batch=128, lr=5e-6, lr2=3e-6, metric="exact",
    train_size=18_201, held=1145, folder="aokvqa",
  ),
  Row(
    name="aokvqa_da", title="AOKVQA-DA", run="aokvqa_da",
    reader=photographs.aokvqa, train=("train",), split="val",
    final=("train+val",), server="test", prefix=ASK, length=32, epochs=10,
    batch=128, lr=5e-6, lr2=3e-6, metric="vqa_simple", train_size=18_201,
    held=1145, folder="aokvqa",
  ),
  Row(
    name="gqa", title="GQA", run="gqa", reader=photographs.gqa,
    train=("train_balanced+val_balanced",), split="testdev_balanced",
    prefix=ASK, length=32, epochs=1, batch=256, lr=1e-5, lr2=3e-6,
    metric="exact", train_size=1_075_062,
  ),
  Row(
    name="nlvr2", title="NLVR2", run="nlvr2", reader=photographs.nlvr2,
    train=("train+dev",), split="test1", prefix=ASK, length=64, epochs=3,
    batch=256, lr=1e-5, weight_decay=1e-6, lr2=6e-6, metric="exact",
    train_size=93_355, images=2,
  ),
  Row(
    name="ai2d", title="AI2D", run="ai2d", reader=texts.ai2d,
    train=("train",), split="test", prefix=CHOOSE, target="choice",
    length=128, epochs=10, batch=256, lr=1e-5, weight_decay=1e-6, lr2=6e-6,
    metric="exact", train_size=12_413,
  ),
  Row(
    name="science_qa", title="ScienceQA", run="science_qa",
    reader=texts.science_qa, train=("train+val",), split="test",
    prefix=SCIENCE, target="letter", length=512, epochs=20, batch=128,
    lr=1e-5, lr2=6e-6, freeze_vit=True, metric="letters", train_size=8315,
  ),
  Row(
    name="rsvqa_lr", title="RSVQA-lr", run="rsvqa_lr", reader=texts.rsvqa_lr,
    train=("train+val",), split="test", prefix=ASK, lower=True, length=32,
    epochs=3, batch=256, lr=3e-6, smoothing=0.2, lr2=3e-6, metric="by_type",
    train_size=47_173,
  ),
  _RSVQA_HR,
  _RSVQA_HR._replace(
    name="rsvqa_hr_test2", title="RSVQA-hr (test2)", split="test_phili"
  ),
  _CHARTQA,
  _CHARTQA._replace(
    name="chartqa_aug", title="ChartQA (aug)", split="test_augmented"
  ),
  Row(
    name="vizwizvqa", title="VizWizVQA", run="vizwizvqa",
    reader=photographs.vizwiz, train=("train",), split="val",
    final=("train+val",), server="test", prefix=ASK, length=48, epochs=10,
    batch=256, lr=1e-5, lr2=1e-5, metric="vqa_simple", train_size=24_842,
    held=4319,
  ),
  _TALLYQA,
  _TALLYQA._replace(
    name="tallyqa_complex", title="TallyQA (complex)", kind="complex"
  ),
  _TALLYQA._replace(
    name="countbenchqa", title="CountBenchQA", kind="",
    reader=photographs.countbench, folder="countbenchqa",
  ),
  Row(
    name="textvqa", title="TextVQA", run="textvqa", reader=texts.textvqa,
    train=("train",), split="val", final=("train+val",), server="test",
    prefix=ASK, length=32, epochs=5, batch=256, lr=3e-6, lr2=3e-6,
    metric="vqa_v2", train_size=39_602, held=5000,
  ),
  Row(
    name="docvqa", title="DocVQA", run="docvqa", reader=texts.docvqa,
    train=("train",), split="val", final=("train+val",), server="test",
    prefix=PLAIN, target="random", length=32, epochs=10, batch=256, lr=1e-5,
    weight_decay=1e-6, lr2=6e-6, metric="anls", train_size=44_812,
    held=5349,
  ),
  Row(
    name="infovqa", title="InfoVQA", run="infovqa", reader=texts.infovqa,
    train=("train",), split="val", final=("train+val",), server="test",
    prefix=ASK, lower=True, length=48, epochs=3, batch=256, lr=1e-5,
    weight_decay=1e-6, smoothing=0.4, lr2=3e-6, metric="anls",
    train_size=26_747, held=2801,
  ),
  Row(
    name="stvqa", title="ST-VQA", run="stvqa", reader=texts.stvqa,
    train=("train",), split="val", final=("train+val",), server="test",
    prefix=ASK, lower=True, length=48, epochs=3, batch=256, lr=1e-5,
    weight_decay=1e-6, smoothing=0.1, lr2=6e-6, metric="anls",
    train_size=26_074, held=2628,
  ),
)  # fmt: skip


def named(name: str) -> Row:
  """The row of a name, or the first one of the fine-tuning run so named.

  Raises:
    ValueError: neither; the message names the rows.
  """
  for row in ROWS:
    if name in (row.name, row.run):
      return row
  known = ", ".join(row.name for row in ROWS)
  raise ValueError(f"no transfer task {name!r}: use one of {known}")


def rows(run: str) -> tuple[Row, ...]:
  """The rows that a fine-tuning run is scored by.

  The first is its own: its reader and `train` make the training set.

  Raises:
    ValueError: no such run; the message names them.
  """
  found = tuple(row for row in ROWS if row.run == run)
  if not found:
    known = ", ".join(dict.fromkeys(row.run for row in ROWS))
    raise ValueError(f"no transfer run {run!r}: use one of {known}")
  return found


def read(row: Row, root: str, split: str) -> list[Example]:
  """The examples of a split, or of several joined by "+".

  Args:
    row: whose reader is used; a row with a `kind` keeps that kind alone where
      the split is the one it scores.
    root: of all data sets; files lie in the row's folder below.
    split: as in `row.train` or `row.split`.

  Raises:
    FileNotFoundError: files are missing.
    ValueError: they have another layout, or nothing is left of a kind.
  """
  place = f"{root}/{row.folder or row.run}"
  examples = [
    e for part in split.split("+") for e in row.reader(place, part)
  ]  # fmt: skip
  if row.kind and split == row.split:
    examples = [e for e in examples if e.kind == row.kind]
  if not examples:
    raise ValueError(
      f"{place}: split {split} has no {row.kind} questions: download it again"
    )
  return examples


def prompt(row: Row, example: Example, order: Sequence[int] = ()) -> str:
  """What is asked of an image, without the newline that ends it.

  Args:
    row: the task.
    example: its question, choices and context.
    order: the choices' order, as indices; empty: as they are. PaliGemma
      shuffles ScienceQA's anew each time it trains on one, no other task's.

  Raises:
    ValueError: `order` is no permutation of the choices.
  """
  choices = [example.choices[i] for i in _order(example, order)]
  lettered = zip(string.ascii_uppercase, choices, strict=False)
  return row.prefix.format(
    question=example.question,
    context=example.context or "N/A",
    choices=" \t ".join(choices),
    options=", ".join(f"({letter}) {c}" for letter, c in lettered),
  )


def targets(
  row: Row, example: Example, order: Sequence[int] = ()
) -> tuple[str, ...]:
  """The right answers: one to train on, all to score a prediction with.

  With `row.target` "cycle" each comes once, in a fresh order, before any
  comes again; with "random" they are drawn independently.

  Args:
    row: the task.
    example: its answers.
    order: as for `prompt`.

  Returns:
    At least one text, repeated as annotators repeat it.

  Raises:
    ValueError: the answers are hidden, or `order` is no permutation.
  """
  order = _order(example, order)
  if row.target in ("choice", "letter"):
    if not 0 <= example.correct < len(order):
      raise ValueError(_hidden(row, example))
    if row.target == "choice":
      return (example.choices[example.correct],)
    place = tuple(order).index(example.correct)
    return (LETTER.format(letter=string.ascii_uppercase[place]),)
  if not example.answers:
    raise ValueError(_hidden(row, example))
  if row.lower:
    return tuple(a.lower() for a in example.answers)
  return example.answers


def answered(row: Row, example: Example) -> bool:
  """Whether `targets` gives at least one text that is not blank."""
  if row.target in ("choice", "letter"):
    return 0 <= example.correct < len(example.choices)
  return any(a.strip() for a in example.answers)


def _order(example: Example, order: Sequence[int]) -> Sequence[int]:
  natural = range(len(example.choices))
  if len(order) == 0:
    return natural
  if sorted(order) != list(natural):
    raise ValueError(
      f"order {list(order)} must hold each of 0 to {len(natural) - 1} once"
    )
  return order


def _hidden(row: Row, example: Example) -> str:
  return (
    f"{row.name}: the answer of question {example.id} is not public: use a "
    "split with answers"
  )
