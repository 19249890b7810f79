"""Systems over the same data share a tokenizer, which prepare trains once."""

import dataclasses
import json

import pytest
from PIL import Image

from configs import (
  debug,
  emoji,
  liquid_shapes,
  shapes,
  unitoken_shapes,
  vargpt_shapes,
)
from unifluid_jax import systems
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import corpus

CAPTIONS = ("a red sky", "a green field", "a blue lake")
DRAWN = SourceConfig("jsonl", "t.jsonl", tasks=("t2i",), moments="moments")
READ = SourceConfig("jsonl", "t.jsonl", tasks=("i2t", "text"), weight=0.5)


@pytest.fixture
def root(tmp_path):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  lines = [json.dumps({"image": "a.png", "suffix": text}) for text in CAPTIONS]
  (tmp_path / "t.jsonl").write_text("\n".join(lines))
  (tmp_path / "less.jsonl").write_text("\n".join(lines[:2]))
  return tmp_path


def config_of(root, **train):
  config = systems.resolve(debug.get_config())
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, root=str(root), train=train),
    text=dataclasses.replace(
      config.text, tokenizer=str(root / "t.model"), train_vocab=40
    ),
  )


def made(config):
  return corpus.make_tokenizer(config, 320).partition(" the tokenizer")[0]


@pytest.mark.parametrize("apart", [False, True])
def test_one_file_in_two_sources_is_one_corpus(root, apart):
  """Whichever of the two systems came first; the model stays to the byte."""
  two = config_of(root, emoji=DRAWN, emoji_read=READ)
  one = config_of(root, emoji=SourceConfig("jsonl", "t.jsonl"))
  assert corpus._sentences(two) == ["caption en", *CAPTIONS]
  first, second = (two, one) if apart else (one, two)
  assert made(first) == "trained"
  before = (root / "t.model").read_bytes()
  assert made(second) == "kept"
  assert made(first) == "kept"
  assert (root / "t.model").read_bytes() == before


@pytest.mark.parametrize(
  "other",
  [
    dataclasses.replace(READ, path="less.jsonl"),
    dataclasses.replace(READ, limit=2),
    dataclasses.replace(DRAWN, weight=0.0, limit=1),
  ],
)
def test_other_records_are_read_too(root, other):
  found = corpus._sentences(config_of(root, a=DRAWN, b=other))
  assert len(found) > 1 + len(CAPTIONS)


def test_a_source_that_takes_no_part_hides_none(root):
  """Its data is not in the note, so that of the other has to be."""
  unused = dataclasses.replace(DRAWN, weight=0.0)
  assert made(config_of(root, a=unused, b=READ)) == "trained"
  lines = (root / "t.jsonl").read_text().replace("red", "violet")
  (root / "t.jsonl").write_text(lines)
  assert made(config_of(root, a=unused, b=READ)) == (
    "trained anew, as data changed,"
  )


@pytest.mark.parametrize(
  "trees",
  [
    [emoji.get_config(arg) for arg in ("", "liquid", "unitoken", "vargpt")],
    [
      module.get_config()
      for module in (shapes, liquid_shapes, unitoken_shapes, vargpt_shapes)
    ],
  ],
  ids=["emoji", "shapes"],
)
def test_systems_of_a_world_learn_one_tokenizer(trees):
  seen = set()
  for tree in trees:
    config = systems.resolve(tree.to_dict())
    data = [
      (name, source.format, source.path, source.split, source.limit)
      for name, source in corpus._read(config.data).train.items()
    ]
    vocab = config.text.train_vocab
    seen.add((config.text.tokenizer, vocab, *data))
    assert not systems.sentences(config) and not corpus._chat(config)
  assert len(seen) == 1
