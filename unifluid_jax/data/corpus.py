"""The texts of a data set, and the tokenizer that is trained on them."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from unifluid_jax.core import files
from unifluid_jax.core.config import Config, DataConfig, SourceConfig
from unifluid_jax.data import identity, text
from unifluid_jax.data.sources import source as sources
from unifluid_jax.data.worlds import written

# Sentences a tokenizer is trained on at most.
_SENTENCES = 200_000


def make_tokenizer(config: Config, rows: int, added: Sequence[str] = ()) -> str:
  """Loads the tokenizer, or trains it if the configuration allows.

  A note beside the model says what it was trained on. A run that has used the
  old model carries a copy of it, and refuses the new one by name.

  Args:
    config: its `text` and `data` count.
    rows: of the model's vocabulary, those of texts.
    added: sentences that the system adds to texts.

  Raises:
    ValueError: it is missing and config.text.train_vocab is 0; it has more
      ids than rows.
  """
  path, done = config.text.tokenizer, "kept"
  if config.text.train_vocab:
    note = _note(config) | ({"added": list(added)} if added else {})
    done, fit = _judge(path, note)
    if not fit:
      corpus = _sentences(config)
      # Every prompt has one of them: their words are to be pieces.
      each = len(corpus) // max(1, len(added))
      corpus += [sentence for sentence in added for _ in range(each)]
      text.train(corpus, path, config.text.train_vocab)
      made = files.digest(epath.Path(path).read_bytes())
      files.write(f"{path}.json", json.dumps(note | {"model": made}))
  tokenizer = text.Tokenizer.load(path, config.text.special)
  # What text.special adds beyond the file's pieces, each system checks.
  if tokenizer.vocab_size > rows:
    raise ValueError(
      f"{path} has {tokenizer.vocab_size} pieces, the model has {rows} rows "
      "for texts: raise config.model.decoder.vocab"
    )
  return f"{done} the tokenizer: {tokenizer.vocab_size} pieces in {path}"


def _note(config: Config) -> dict[str, Any]:
  """What the trained tokenizer depends on."""
  note = {
    "data": {
      name: found["digest"]
      for name, found in identity.of_data(_read(config.data)).items()
    },
    "vocab": config.text.train_vocab,
    "caption_prefix": config.data.caption_prefix,
  }
  chat = _chat(config)
  return note | ({"chat": chat} if chat else {})


def _chat(config: Config) -> list[str]:
  """The texts around messages, where there are any."""
  return [t for t in dataclasses.astuple(config.text.chat) if t.strip()]


def _read(data: DataConfig) -> DataConfig:
  """The data whose texts a tokenizer learns.

  Dialogues and signs of the procedural world are left out, as its scenes'
  texts have pieces for all they say, and a data set that several sources read,
  for tasks of their own, counts once: systems over the same data have one
  tokenizer, and each keeps what another trained.
  """
  train: dict[str, SourceConfig] = {}
  seen = set()
  for name, source in data.train.items():
    # All that chooses texts, and whether the source takes part.
    alike = dataclasses.replace(source, tasks=(), moments="", weight=1.0)
    key = (alike, source.weight > 0)
    if key not in seen and not written.is_beside(data, source):
      train[name] = source
      seen.add(key)
  return dataclasses.replace(data, train=train)


def _judge(path: str, note: dict[str, Any]) -> tuple[str, bool]:
  """What is done with the model file, for people; whether it can be kept.

  A model that this command did not write, or that was changed since, is its
  owner's and is kept.
  """
  if not epath.Path(path).exists():
    return "trained", False
  files.check_regular(path)  # reading a device would never end
  old = identity.read_note(path)
  if old.get("model") != files.digest(epath.Path(path).read_bytes()):
    return "kept, not knowing its data (delete it to train it anew),", True
  changed = [k for k in {**note, "added": ()} if old.get(k) != note.get(k)]
  if changed:
    return f"trained anew, as {' and '.join(changed)} changed,", False
  return "kept", True


def _sentences(config: Config) -> list[str]:
  """The corpus: as a list, since SentencePiece hides what iterators raise.

  Raises:
    FileNotFoundError: a source is missing.
    ValueError: one cannot be read, or none has a text.
  """
  opened = {
    f"data.train.{name}": sources.open_source(
      entry, config.data.root, config.data.caption_prefix, f"data.train.{name}"
    )
    for name, entry in _read(config.data).train.items()
  }
  bad: list[str] = []
  texts = _texts(opened, bad)
  found = list(itertools.islice(texts, _SENTENCES - 1))
  if not found:
    where = "; ".join(
      f"{key}.path={config.data.train[key.rpartition('.')[2]].path!r}"
      for key in opened
    )
    raise ValueError(
      f"no text to train a tokenizer on in data.root={config.data.root!r}: "
      f"looked for captions, prompts, questions and instructions in "
      f"{where or 'data.train, which is empty'}; bad records: {len(bad)}"
      + (f", the first: {bad[0]}" if bad else "")
    )
  return [config.data.caption_prefix, *_chat(config), *found]


def _texts(
  opened: Mapping[str, sources.Source], bad: list[str]
) -> Iterator[str]:
  """Texts of all sources that hold any; appends the names of bad records."""
  for key, source in opened.items():
    bad += source.bad
    for i in range(len(source)):
      try:
        record = source[i]
      except sources.BadRecord as error:
        # Counted here, judged by the training pipeline.
        bad.append(f"{key}[{i}]: {error}")
        continue
      edit = record.edit[:1] if record.edit is not None else ()
      # A conversation's questions are turns of it, which count once.
      asked = () if record.dialogue else record.questions
      questions = (text for pair in asked for text in pair)
      said = (turn.text for turn in record.dialogue)
      texts = (*record.prompts, *record.captions, *questions, *edit, *said)
      yield from (text for text in texts if text.strip())
