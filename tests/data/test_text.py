import io
import pickle

import numpy as np
import pytest
import sentencepiece

from tests import text_rows
from unifluid_jax.core.types import BOS, EOS, PAD, UNK
from unifluid_jax.data import text, vocabulary

PIECE = 0  # that SentencePiece pads with

COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "star")


def corpus():
  for colour in COLOURS:
    for shape in SHAPES:
      yield f"a {colour} {shape}"
      yield f"a {colour} {shape} left of a {colour} {shape}"
      yield f"two {colour} {shape}s"
      yield f"what colour is the {shape}?"
      yield colour


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "deep" / "tokenizer.model"
  text.train(corpus(), path, 160)
  return path


@pytest.fixture(scope="module")
def tokenizer(model_path):
  return text.Tokenizer.load(model_path)


@pytest.mark.parametrize(
  "words", ["a red circle", "two blue stars", "what colour is the triangle?"]
)
def test_round_trip(tokenizer, words):
  assert tokenizer.decode(tokenizer.encode(words)) == words


def test_frequent_words_are_single_pieces(tokenizer):
  first, *rest = tokenizer.encode("a red circle")
  assert len(rest) == 2
  # The dummy space makes a word the same piece at every place.
  assert tokenizer.encode("red")[0] == rest[0]
  assert tokenizer.vocab_size <= 160


@pytest.mark.parametrize(
  "typed",
  [
    "A RED CIRCLE",
    "  a  red\tcircle ",
    "A\u00a0Red\u3000Circle",
    "\uff21 \uff32\uff25\uff24 circle",  # full width
    "a red \u24d2ircle",  # circled c
  ],
)
def test_case_width_and_spaces_do_not_count(tokenizer, typed):
  assert tokenizer.encode(typed) == tokenizer.encode("a red circle")


def test_the_newline_survives_normalisation(tokenizer):
  newline = text_rows.prefix(tokenizer, "", 2)[1]
  a, b = tokenizer.encode("a"), tokenizer.encode("a\nred")
  assert b[: len(a) + 1] == [*a, newline]
  row = text_rows.prefix(tokenizer, "What  COLOUR?", 9).tolist()
  assert row == text_rows.prefix(tokenizer, "what colour?", 9).tolist()
  assert row[-1] == newline and row.count(newline) == 1


def test_tokenizers_made_elsewhere_take_texts_as_they_are():
  ids = dict(pad_id=PIECE, eos_id=EOS, bos_id=BOS, unk_id=UNK)
  gemma = text.Tokenizer(
    other_model(
      normalization_rule_name="identity", user_defined_symbols=["\n"], **ids
    )
  )
  assert gemma.encode("RED") != gemma.encode("red")
  # They list no words: only what has no piece is unknown.
  assert gemma.unknown_words("a tired quart") == []
  assert gemma.unknown_words("a \u4e2d RED") == ["\u4e2d", "RED"]


def test_unknown_words_are_those_never_taught(tokenizer):
  known = "What  COLOUR is the Circles, squares of a red star?"
  assert tokenizer.unknown_words(known) == [","]
  assert tokenizer.unknown_words("") == []
  # Spelt by known pieces, yet never seen; each once, in order.
  assert UNK not in tokenizer.encode("tired quart")
  assert tokenizer.unknown_words("A Tired red-ish quart, tired") == [
    "tired", "-", "ish", "quart", ",",
  ]  # fmt: skip
  copy = pickle.loads(pickle.dumps(tokenizer))
  assert copy.unknown_words("a blue hexagon") == ["hexagon"]


def test_lone_surrogates_do_no_harm(tokenizer, tmp_path):
  assert tokenizer.encode("a red\ud800 circle") == tokenizer.encode(
    "a red circle"
  )
  # A pair of them is one character.
  assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")
  assert tokenizer.unknown_words("\udfff red") == []
  said = [*corpus(), "a \ud800 circle"]
  made = text.train(said, tmp_path / "t.model", 160)
  assert made.encode("a red") == tokenizer.encode("a red")


def test_unseen_characters_are_unknown_and_others_spelt(tokenizer):
  assert UNK in tokenizer.encode("\u4e2d")
  assert tokenizer.decode(tokenizer.encode("a tired quart")) == "a tired quart"


def test_prompt_row_is_right_aligned(tokenizer):
  ids = tokenizer.encode("a red circle")
  row = text_rows.prompt(tokenizer, "a red circle", 8)
  assert row.dtype == np.int32
  assert row.tolist() == [PAD] * 4 + [BOS, *ids]


def test_empty_prompt_is_bos_alone(tokenizer):
  for blank in ("", None):
    row = text_rows.prompt(tokenizer, blank, 4)
    assert row.tolist() == [PAD, PAD, PAD, BOS]


def test_where_nothing_is_asked_no_newline_stands(tokenizer):
  assert text_rows.prefix(tokenizer, None, 3).tolist() == [PAD, PAD, BOS]
  asked = [PAD, BOS, tokenizer.special["newline"]]
  assert text_rows.prefix(tokenizer, "", 3).tolist() == asked


def test_prefix_row_ends_in_the_newline_piece(tokenizer):
  model = sentencepiece.SentencePieceProcessor(
    model_proto=tokenizer.__reduce__()[1][0]
  )
  newline = model.piece_to_id("\n")
  assert newline not in (UNK, PIECE)
  ids = tokenizer.encode("what colour")
  row = text_rows.prefix(tokenizer, "what colour", 8).tolist()
  assert row == [PAD] * (6 - len(ids)) + [BOS, *ids, newline]


def test_suffix_row_is_left_aligned(tokenizer):
  ids = tokenizer.encode("two red circles")
  row = text_rows.suffix(tokenizer, "two red circles", 9).tolist()
  assert row == [*ids, EOS] + [PAD] * (8 - len(ids))


def test_truncation_keeps_the_ends_that_matter(model_path):
  tokenizer = text.Tokenizer.load(model_path)
  ids = tokenizer.encode("a red circle left of a blue star")
  long = "a red circle left of a blue star"
  assert tokenizer.truncated == 0
  assert text_rows.prompt(tokenizer, long, 4).tolist() == [BOS, *ids[:3]]
  prefix = text_rows.prefix(tokenizer, long, 4).tolist()
  newline = text_rows.prefix(tokenizer, "", 2)[1]
  assert prefix == [BOS, *ids[:2], newline]
  assert text_rows.suffix(tokenizer, long, 3).tolist() == [*ids[:2], EOS]
  assert tokenizer.truncated == 3


def test_truncation_is_logged_once(model_path, caplog):
  tokenizer = text.Tokenizer.load(model_path)
  with caplog.at_level("WARNING", logger="absl"):
    for _ in range(3):
      text_rows.prompt(tokenizer, "a red circle", 2)
  assert len([r for r in caplog.records if "cut to" in r.message]) == 1


@pytest.mark.parametrize(
  "row, length, words",
  [
    (text_rows.prompt, 0, r"text.prompt=0 .*for BOS: use >= 1"),
    (text_rows.prefix, 1, r"text.prefix=1 .*for BOS and NEWLINE: use >= 2"),
    (text_rows.suffix, 0, r"text.suffix=0 .*for EOS: use >= 1"),
  ],
)
def test_rows_without_room_are_refused(tokenizer, row, length, words):
  with pytest.raises(ValueError, match=words):
    row(tokenizer, "a", length)


def test_decode_stops_at_eos_and_drops_specials(tokenizer):
  ids = tokenizer.encode("red star")
  assert tokenizer.decode([PAD, PIECE, BOS, *ids, EOS, *ids]) == "red star"
  beyond = tokenizer.vocab_size
  assert tokenizer.decode(np.array([*ids, beyond])) == "red star"
  assert tokenizer.decode([]) == ""


def test_pickles_for_worker_processes(tokenizer):
  tokenizer.encode("a red circle")
  copy = pickle.loads(pickle.dumps(tokenizer))
  assert copy.encode("a red circle") == tokenizer.encode("a red circle")


def test_training_is_deterministic_and_leaves_no_partial_file(
  model_path, tmp_path
):
  text.train(corpus(), tmp_path / "again.model", 160)
  assert (tmp_path / "again.model").read_bytes() == model_path.read_bytes()
  assert [p.name for p in tmp_path.iterdir()] == ["again.model"]


def test_training_errors(tmp_path):
  with pytest.raises(ValueError, match="raise vocab_size"):
    text.train(corpus(), tmp_path / "small.model", 8)
  with pytest.raises(ValueError, match=r"smaller than required_chars. 8 vs"):
    text.train(corpus(), tmp_path / "small.model", 8)
  with pytest.raises(ValueError, match="empty"):
    text.train(["", " "], tmp_path / "none.model", 64)
  with pytest.raises(ValueError, match="longer than 4192 bytes"):
    text.train(["x" * 5000], tmp_path / "long.model", 64)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError, OSError])
def test_errors_of_the_data_are_passed_on(tmp_path, error):
  def sentences():
    yield "a red circle"
    raise error("no folder")

  with pytest.raises(error, match="^no folder$") as raised:
    text.train(sentences(), tmp_path / "t.model", 64)
  assert type(raised.value) is error
  assert not list(tmp_path.iterdir())


def test_words_of_a_text():
  typed = "the circle's 12 d\u00e9j\u00e0, e\u0301t\u00e9s?"
  assert vocabulary.words(typed) == [
    "the", "circle", "'", "s", "1", "2", "d\u00e9j\u00e0", ",",
    "e\u0301t\u00e9s", "?",
  ]  # fmt: skip
  # No spaces between words: character by character.
  assert vocabulary.words("\u7ea2\u5706 red") == ["\u7ea2", "\u5706", "red"]
  assert vocabulary.words(" \x00\n") == []


def test_words_travel_in_the_model_file():
  proto = other_model()
  assert vocabulary.words_of(proto) == frozenset()
  many = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijk" for c in "lmnop"]
  stored = vocabulary.with_words(proto, [" ".join(many), "r\u00e9d"])
  assert stored.startswith(proto)
  assert vocabulary.words_of(stored) == {*many, "r\u00e9d"}


@pytest.fixture(scope="module")
def llama():
  """A model whose special ids are another family's, named."""
  ids = dict(unk_id=0, bos_id=4, eos_id=2, pad_id=1)
  data = other_model(**ids, user_defined_symbols=["<nl>"])
  named = {"pad": 1, "unk": "<unk>", "bos": "<s>", "eos": 2, "newline": "<nl>"}
  return text.Tokenizer(data, special=named | {"boi": 64, "a": "\u2581a"})


def test_special_ids_by_name(llama):
  assert llama.special["bos"] == 4 and llama.special["eos"] == 2
  assert llama.special["unk"] == 0 and llama.special["boi"] == 64
  piece = llama.encode("a")
  assert [llama.special["a"]] == piece
  assert llama.decode([4, *llama.encode("red"), 2, *piece]) == "red"
  assert llama.unknown_words("red \u4e2d") == ["\u4e2d"]
  for bad in ("<t>", -1, 0.5, True, None):
    with pytest.raises(ValueError, match=r"text\.special\.boi=.*no piece of t"):
      text.Tokenizer(llama.__reduce__()[1][0], "t", {"boi": bad})


def test_rows_carry_the_named_ids(llama):
  newline, ids = llama.special["newline"], llama.encode("red")
  asked = text_rows.prefix(llama, "red", 9).tolist()
  assert asked[-len(ids) - 2 :] == [4, *ids, newline]
  drawn = text_rows.prompt(llama, "red", 9).tolist()
  assert drawn[-len(ids) - 1 :] == [4, *ids]
  said = text_rows.suffix(llama, "red", 9).tolist()
  assert said[: len(ids) + 1] == [*ids, 2]


def test_the_most_frequent_words_are_kept(monkeypatch):
  monkeypatch.setattr(vocabulary, "_MOST", 2)
  stored = vocabulary.with_words(b"", ["b c a", "a c", "c d"])
  assert vocabulary.words_of(stored) == {"a", "c"}


def other_model(**options):
  writer = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=corpus(),
    model_writer=writer,
    vocab_size=64,
    model_type="bpe",
    minloglevel=2,
    **options,
  )
  return writer.getvalue()


def test_unusable_models_are_refused(tmp_path):
  with pytest.raises(ValueError, match="set text.tokenizer"):
    text.Tokenizer.load(tmp_path / "missing.model")
  with pytest.raises(ValueError, match="set text.tokenizer"):
    text.Tokenizer.load("")
  (tmp_path / "junk.model").write_bytes(b"junk" * 100)
  with pytest.raises(ValueError, match="not a SentencePiece"):
    text.Tokenizer.load(tmp_path / "junk.model")
  with pytest.raises(ValueError, match="has eos, bos, unk"):
    text.Tokenizer(other_model())
  with pytest.raises(ValueError, match="or name its own by text.special"):
    text.Tokenizer(other_model(), special={"bos": 1, "newline": 5})
  ids = dict(pad_id=PIECE, eos_id=EOS, bos_id=BOS, unk_id=UNK)
  with pytest.raises(ValueError, match=r"newline.*text\.special\.newline"):
    text.Tokenizer(other_model(**ids))
