"""Conversations as ShareGPT and LLaVA write them, and the rows they become."""

import json

import numpy as np
import pytest

from tests.data.test_bad_data import open_, png, read, refused
from tests.data.test_dialogue import BOI, EOI, N, S, spelt
from unifluid_jax.core.config import ChatConfig, SourceConfig
from unifluid_jax.core.types import BOS, EOS
from unifluid_jax.data import conversation, fields, identity, tasks
from unifluid_jax.data.conversation import Message
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.records import Turn

CHAT = ChatConfig("a chat", "user", "model")


def say(role, content):
  return {"role": role, "content": content}


DRAWN = {
  "messages": [
    say("user", "draw two red <image> "),
    say("assistant", "here it is <image_gen>"),
    say("user", "how many"),
    say("assistant", "two é"),
  ],
  "images": ["a.png", "b/b.png"],
}
TURNS = (
  Turn("draw two red", target=False, role="user"),
  Turn(image=png(0), target=False, role="user"),
  Turn("here it is", role="assistant"),
  Turn(image=png(1), role="assistant"),
  Turn("how many", target=False, role="user"),
  Turn("two é", role="assistant"),
)
LLAVA = {
  "id": "7", "image": "a.png",
  "conversations": [
    {"from": "human", "value": "<image>\nhow many"},
    {"from": "gpt", "value": "two"},
  ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "a.png").write_bytes(png(0))
  (tmp_path / "b" / "b.png").write_bytes(png(1))
  return tmp_path


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("ascii", [False, True])
def test_a_file_of_entries_is_read_by_index(folder, lines, ascii):
  entries = [{**DRAWN, "images": ["gone.png", "a.png"]}, DRAWN, DRAWN]
  text_ = [json.dumps(e, ensure_ascii=ascii) for e in entries]
  name = "t.jsonl" if lines else "t.json"
  whole = "\n\n".join(text_) if lines else " [" + " ,\n ".join(text_) + "]\n"
  (folder / name).write_text(whole, encoding="utf-8")
  source = open_(folder, "sharegpt", name)
  assert len(source) == 3 and not source.bad
  good, bad = read(source)
  where = f"{name}:1" if lines else f"{name}[0]"
  assert len(bad) == 1 and where in bad[0] and "gone.png" in bad[0]
  assert [r.dialogue for r in good] == [TURNS, TURNS]
  assert good[0].image == png(0)
  assert good[0].id.endswith(f"{name}:3" if lines else f"{name}[1]")
  serves = {t: len(source.indices(t)) for t in tasks.TASKS}
  assert serves == {"t2i": 0, "i2t": 0, "edit": 0, "text": 0, "image": 3,
                    "dialogue": 3}  # fmt: skip


def test_llava_names_things_otherwise_and_has_a_folder_of_images(folder):
  plain = {"conversations": LLAVA["conversations"][:]}
  plain["conversations"][0] = {"from": "human", "value": "how many"}
  named = LLAVA | {"image": "b.png"}
  (folder / "t.json").write_text(json.dumps([plain, named]))
  source = open_(folder, "llava", "t.json:b")
  assert not source.bad
  assert source[0].dialogue == (
    Turn("how many", target=False, role="user"), Turn("two", role="assistant"),
  )  # fmt: skip
  assert source[1].dialogue == (
    Turn(image=png(1), target=False, role="user"), *source[0].dialogue
  )  # fmt: skip
  assert source[0].image == b"" and source.indices("image").tolist() == [1]
  config = SourceConfig("llava", "t.json:b")
  before = identity.of_source(config, str(folder))
  assert before["files"] == 2
  (folder / "b" / "b.png").write_bytes(png(2))
  assert identity.of_source(config, str(folder)) != before


def test_a_conversation_about_one_image_holds_questions(folder):
  more = [{"from": "human", "value": "and now?"},
          {"from": "gpt", "value": "three"}]  # fmt: skip
  talk = LLAVA["conversations"]
  late = [{"from": "human", "value": "draw it <image>"}, *more[1:]]
  entries = [
    LLAVA | {"conversations": [*talk, *more]},
    LLAVA | {"conversations": [*more, *late]},
    {"conversations": more},
    LLAVA | {"image": ["a.png", "b/b.png"],
             "conversations": [*talk, *late]},
  ]  # fmt: skip
  (folder / "t.json").write_text(json.dumps(entries))
  source = open_(folder, "llava", "t.json")
  assert not source.bad and source.indices("i2t").tolist() == [0]
  assert source[0].questions == (("how many", "two"), ("and now?", "three"))
  assert source[0].image == png(0) and len(source[0].dialogue) == 5
  assert [source[i].questions for i in (1, 2, 3)] == [()] * 3


def changed(**keys):
  return DRAWN | keys


def spoken(*messages, images=()):
  return {"messages": list(messages), "images": list(images)}


BAD = [
  (changed(images=["a.png"]), "2 placeholders .* but 1 images: list one image"),
  (changed(images=None), "2 placeholders .* but 0 images"),
  (changed(images=["a.png"] * 3), "2 placeholders .* but 3 images"),
  (changed(images=["a.png", 7]), r"images\[1\] is int, not a text"),
  (changed(images=["a.png", "/b.png"]), "is absolute: write it relative"),
  (changed(images=["a.png", "../../b.png"]), "outside of data.root"),
  (changed(messages=[]), "no messages: write a list of"),
  (changed(messages=None), "no messages: write a list of"),
  ([DRAWN], "no messages"),
  (spoken("hi"), r"messages\[0\] is no JSON object"),
  (spoken(say("human", "hi")), r"messages\[0\].role is 'human': use system, u"),
  (spoken(say("user", "hi")), "no message of the assistant: nothing to learn"),
  (spoken(say("user", 7)), r"messages\[0\].content is int"),
  (spoken(say("assistant", "hi")), "0 is the assistant's where the user's"),
  (spoken(say("user", "a"), say("user", "b")), "1 is the user's where the ass"),
  (spoken(say("user", "a"), say("system", "b")), "1 is the system's where the"),
  (spoken(say("system", "a"), say("assistant", "b")), "the user's is due"),
  (spoken(say("user", " "), say("assistant", "b")), "message 0 .user. is em"),
  (spoken(say("user", "<image_gen>"), say("assistant", "b"), images=["a.png"]),
   "message 0 .user. holds <image_gen>: write <image> for"),
  (spoken(say("user", "a"), say("assistant", "<image>"), images=["a.png"]),
   "message 1 .assistant. holds <image>: write <image_gen> for"),
  (spoken(say("system", "<image>"), say("user", "a"), say("assistant", "b"),
          images=["a.png"]), "message 0 .system. .*: move it to the user's"),
  ({"x": "y" * (1 << 20)}, "longer than 1048576 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("entry, message", BAD, ids=range(len(BAD)))
def test_a_bad_entry_is_named_and_the_others_are_read(folder, entry, message):
  (folder / "t.json").write_text(json.dumps([DRAWN, entry, DRAWN]))
  source = open_(folder, "sharegpt", "t.json")
  (named,) = source.bad
  assert "t.json[1]: " in named and "\n" not in named and len(named) < 500
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(named)
  assert len(read(source)[0]) == 2


@pytest.mark.parametrize("content, message", [
  ("", r"no \[ at character 0"),
  ('{"a": 1}', r"no \[ at character 0"),
  ("[", "Expecting value"),
  ("[1", "no , or ] at character 2"),
  ("[1,]", "Expecting value"),
  ("[1] 2", "more follows the list, at character 4"),
  ("[] 2", "more follows the list, at character 2"),
  (b"[\xff]", "not in UTF-8"),
  ("[" * 100_000, "nested|recursion"),
])  # fmt: skip
def test_what_is_no_list_is_refused(folder, content, message):
  data = content if isinstance(content, bytes) else content.encode()
  (folder / "t.json").write_bytes(data)
  said = refused(folder, "sharegpt", "t.json")
  assert "JSON lines are named .jsonl" in said
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(said)
  for empty in ("[]", " [ ] \n"):
    (folder / "t.json").write_text(empty)
    assert len(open_(folder, "sharegpt", "t.json")) == 0


# ------------------------------------------------------------------------ rows


class Words:
  """A tokenizer of words."""

  _words = "a chat user model two red how many draw here it is".split()
  special = {"bos": BOS, "eos": EOS, "newline": 4, "boi": BOI, "eoi": EOI}

  def encode(self, text):
    return [10 + self._words.index(word) for word in text.split()]

  def decode(self, ids):
    return " ".join(self._words[i - 10] for i in ids)


@pytest.fixture
def row():
  """A conversation → its row in words, and those of them that count."""
  tokenizer = Words()

  def call(*messages, chat=CHAT, length=64, prompt=False, drop=0):
    given = [Message(*m) for m in messages]
    count = sum("<image" in c for _, c in given)
    images = [np.full((S, S, 3), k, np.uint8) for k in range(count)]
    turns = conversation.turns_of(given, images)
    turns = turns[: len(turns) - drop]
    field = Dialogue(length, N, S, "crop", prompt)
    example = fields.Example({}, {}, tokenizer, turns=turns, chat=chat)
    rows = field.rows(example, None)
    words = spelt(rows, tokenizer)
    assert words[-1 if prompt else 0] != "_"
    assert rows["ids"][words.index("bos")] == BOS
    counted = np.array(words)[rows["target"]]
    return " ".join(w for w in words if w != "_"), " ".join(counted)

  return call


ASKED = ("user", "draw two"), ("assistant", "here it is <image_gen>")
MORE = ("user", "how many <image>"), ("assistant", "two")
FIRST, SECOND = "boi c0 c1 c2 c3 eoi", "boi c4 c5 c6 c7 eoi"


def test_only_what_the_model_says_counts_and_eos_ends_it(row):
  assert row(*ASKED, *MORE) == (
    f"bos a chat user draw two model here it is {FIRST} eos "
    f"user how many {SECOND} model two eos",
    f"here it is {FIRST} eos two eos",
  )


def test_without_a_template_a_newline_begins_an_answer_to_a_text(row):
  """An image that the user shows after an answer is no target either."""
  shown = ("user", "<image> how many"), ("assistant", "two")
  assert row(*ASKED, *shown, chat=ChatConfig()) == (
    f"bos draw two nl here it is {FIRST} eos {SECOND} how many nl two eos",
    f"nl here it is {FIRST} eos nl two eos",
  )
  drawn = ("user", "draw"), ("assistant", "<image_gen>")
  assert row(*drawn, chat=ChatConfig())[1] == f"{FIRST} eos"


def test_a_systems_own_message_replaces_the_templates(row):
  own = ("system", "two red")
  assert row(own, *ASKED)[0].startswith("bos two red user draw two model")
  plain = row(own, *ASKED, chat=ChatConfig())
  assert plain[0].startswith("bos two red nl draw two nl here")
  assert plain[1].startswith("nl here it is boi")


def test_prompts_begin_an_answer_as_training_does(row):
  """A prompt and what training has after it are the trained row."""
  for chat, newline in ((CHAT, ""), (ChatConfig(), "nl ")):
    whole, _ = row(*ASKED, *MORE, chat=chat)
    for given, drop, rest in (
      ((*ASKED, *MORE), 1, "two eos"),
      (ASKED, 2, f"{newline}here it is {FIRST} eos"),
      # The text is said, its image is still to come: no EOS, no new marker.
      (ASKED, 1, f"{FIRST} eos"),
    ):
      said, _ = row(*given, chat=chat, prompt=True, drop=drop)
      assert whole.startswith(f"{said} {rest}")
      assert drop != 1 or given == ASKED or whole == f"{said} {rest}"


def test_long_conversations_keep_the_system_and_whole_turns(row):
  whole = row(*ASKED, *MORE)[0].split()
  assert len(whole) == 29
  at = lambda n, **more: row(*ASKED, *MORE, length=n, **more)[0]  # noqa: E731
  assert at(29).split() == whole
  # Without room for "model two eos" the row ends with the image before it.
  assert at(28).split() == at(26).split() == whole[:26]
  assert at(25).split() == whole[:20]
  last = f"user how many {SECOND.translate(str.maketrans('4567', '0123'))}"
  asked = dict(prompt=True, drop=1)
  assert at(27, **asked).split() == whole[:27]
  # The sentence is gone, the image it announced begins the row.
  assert at(23, **asked) == (
    f"bos a chat model {FIRST} eos user how many {SECOND} model"
  )
  assert at(13, **asked) == f"bos a chat {last} model"


def test_a_list_may_begin_with_a_byte_order_mark(folder):
  entries = [LLAVA, LLAVA | {"image": "b/b.png"}]
  text = json.dumps(entries)
  (folder / "l.json").write_text(text, encoding="utf-8-sig")
  records, bad = read(open_(folder, "llava", "l.json"))
  assert [r.image for r in records] == [png(0), png(1)] and not bad
