"""Tokenizers of Hugging Face's format, read by its package or a stand-in."""

import json
import pickle
import re
import sys
import types

import pytest

from unifluid_jax.data import text

WORDS = {"unused": 0, "\n": 1, "a": 2, "<unk>": 3, "red": 4, "circle": 5}
ADDED = {"<pad>": 6, "<bos>": 7, "<eos>": 8, "<boi>": 9}
NAMED = {"bos": "<bos>", "eos": "<eos>"}
LENGTH = 9


def content(**changes):
  """A tokenizer of words that would cut, pad and mark texts by itself."""
  both = [{"Sequence": {"id": x, "type_id": 0}} for x in "AB"]
  first = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
  return json.dumps({
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 2,
                   "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": LENGTH}, "direction": "Right",
                "pad_to_multiple_of": None, "pad_id": 6, "pad_type_id": 0,
                "pad_token": "<pad>"},
    "added_tokens": [
      {"id": i, "content": word, "single_word": False, "lstrip": False,
       "rstrip": False, "normalized": False, "special": True}
      for word, i in ADDED.items()
    ],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\n|[^ \n]+"},
                      "behavior": "Removed", "invert": True},
    "post_processor": {
      "type": "TemplateProcessing", "single": [first, both[0]], "pair": both,
      "special_tokens": {"<bos>": {"id": "<bos>", "ids": [ADDED["<bos>"]],
                                   "tokens": ["<bos>"]}},
    },
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "<unk>"},
  } | changes).encode()  # fmt: skip


class StandIn:
  """What tokenizers.Tokenizer makes of `content`, as it is documented."""

  encode_special_tokens = False

  def __init__(self, tree):
    self.tree = tree
    self.model = types.SimpleNamespace(unk_token=tree["model"]["unk_token"])
    self.normalizer = types.SimpleNamespace(normalize_str=str.lower)
    self.cut, self.pads = 2, True

  @classmethod
  def from_buffer(cls, data):
    try:
      return cls(json.loads(data))
    except (ValueError, KeyError) as error:
      raise ValueError(f"Cannot instantiate: {error}") from error

  def no_truncation(self):
    self.cut = None

  def no_padding(self):
    self.pads = False

  def get_vocab(self):
    added = {t["content"]: t["id"] for t in self.tree["added_tokens"]}
    return self.tree["model"]["vocab"] | added

  def token_to_id(self, token):
    return self.get_vocab().get(token)

  def encode(self, text, add_special_tokens=True):
    special = "" if self.encode_special_tokens else "<[a-z]+>|"
    found = re.findall(special + r"\n|[^ \n]+", text.lower())
    known = WORDS if self.encode_special_tokens else self.get_vocab()
    ids = [known.get(x, WORDS["<unk>"]) for x in found]
    ids = ([ADDED["<bos>"]] * add_special_tokens + ids)[: self.cut]
    ids += [ADDED["<pad>"]] * (LENGTH - len(ids)) * self.pads
    return types.SimpleNamespace(ids=ids)

  def decode(self, ids, skip_special_tokens=True):
    names = {i: word for word, i in self.get_vocab().items()}
    kept = [i for i in ids if not (skip_special_tokens and i > 5)]
    return " ".join(names[i] for i in kept)


@pytest.fixture(autouse=True, params=["stand-in", "installed"])
def package(request, monkeypatch):
  if request.param == "installed":
    pytest.importorskip("tokenizers", reason="of the extra `hf`")
  else:
    fake = types.SimpleNamespace(Tokenizer=StandIn)
    monkeypatch.setitem(sys.modules, "tokenizers", fake)


def test_texts_to_ids_and_back():
  made = text.Tokenizer(content(), special=NAMED)
  assert made.encode("A red circle\na") == [2, 4, 5, 1, 2]
  assert made.vocab_size == 10
  assert made.decode([6, 7, 2, 4, 10, -1, 5, 8, 4]) == "a red circle"
  assert made.unknown_words("a blue red circle, BLUE") == ["blue", ","]
  # What a text spells is text: it neither begins nor ends a row.
  assert made.encode("a <eos> red") == [2, 3, 4]


def test_special_and_extra_tokens_have_names():
  extra = {"boi": "<boi>", "eoi": 4096}
  made = text.Tokenizer(content(), special=NAMED | extra)
  assert made.special == {
    "bos": 7, "eos": 8, "unk": 3, "newline": 1, "boi": 9, "eoi": 4096
  }  # fmt: skip
  assert made.decode([2, 9, 4]) == "a red"
  copy = pickle.loads(pickle.dumps(made))
  assert copy.special == made.special and copy.encode("red") == [4]


def test_a_copy_of_any_name_is_read(tmp_path):
  path = tmp_path / "tokenizer.model"
  path.write_bytes(content())
  assert text.Tokenizer.load(path, NAMED).encode("a red") == [2, 4]


def test_unusable_files_are_refused():
  with pytest.raises(ValueError, match=r"bos and eos: .*text\.special\.bos"):
    text.Tokenizer(content())
  with pytest.raises(ValueError, match=r"text\.special\.boi='<b>' is no piece"):
    text.Tokenizer(content(), special=NAMED | {"boi": "<b>"})
  named = {**WORDS, "<unk>": 1, "\n": 3}
  other = {"type": "WordLevel", "vocab": named, "unk_token": "<unk>"}
  with pytest.raises(ValueError, match=r"unk = \(1,\), need \(3,\)"):
    text.Tokenizer(content(model=other), special=NAMED)
  for junk in (b"{}", b'{"version"'):
    with pytest.raises(ValueError, match="t.json is not a tokenizer.json: "):
      text.Tokenizer(junk, "t.json")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ValueError, match=r"pip install 'unifluid_jax\[hf\]'"):
    text.Tokenizer(content(), special=NAMED)
