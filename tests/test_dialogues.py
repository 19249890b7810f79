"""What continues texts and images, as the Python API asks for it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import debug
from tests.data.test_fields import noise
from unifluid_jax import api, systems
from unifluid_jax.core.config import ChatConfig
from unifluid_jax.core.types import EOS, PAD
from unifluid_jax.data import text, transforms
from unifluid_jax.data.conversation import Reply
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.records import Turn

T, N, S = 24, 4, 8
BOI, EOI = 50, 51


class Echo:
  """Draws the last image seen, in negative; answers with the last ids."""

  inputs = {"dialogue": {"row": Dialogue(T, N, S, "crop")}}
  codec = SimpleNamespace(encode=lambda frozen, x: x[:, 0, :N, 0])
  begins_image = False

  def answer(self, params, frozen, prompts, keys, sampling):
    row = prompts["dialogue"]
    assert row["row.codes"].shape == (len(keys), 3, N)
    if self.begins_image:
      return jnp.full((len(keys), 2), jnp.asarray([BOI, PAD]))
    end = jnp.full((len(keys), 1), EOS)
    return jnp.concatenate([row["row.ids"][:, -2:], end], axis=1)

  def generate(self, params, frozen, prompts, keys, sampling):
    row = prompts["dialogue"]
    last = (row["row.cell"].max(1) // N).astype(jnp.int32)
    codes = row["row.codes"][jnp.arange(len(last)), last]
    return -jnp.broadcast_to(codes[:, None, :, None], (len(last), S, N, 3))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("t") / "t.model"
  text.train(["a red circle", "two red", "red two"] * 9, path, 50)
  return text.Tokenizer.load(path, {"boi": BOI, "eoi": EOI})


@pytest.fixture
def model(tokenizer):
  config = systems.resolve(debug.get_config())
  config = dataclasses.replace(config, batch={"dialogue": 8})
  system, mapper = Echo(), api.jitted({}, {"codec": {}}, 4)
  return api.Model(config, system, tokenizer, mapper)


def negative(image):
  pixels = -transforms.to_float(image)[0, :N, 0]
  return transforms.to_uint8(np.broadcast_to(pixels[:, None], (S, N, 3)))


def test_a_text_goes_on_with_a_text(model, tmp_path):
  assert model.complete(["a red", "two red"]) == "two red"
  path = tmp_path / "a.png"
  Image.fromarray(noise(S, S)).save(path)
  for image in (noise(S, S), Image.fromarray(noise(S, S)), path):
    assert model.complete([image, "red two"]) == "red two"


def test_an_image_is_drawn_where_the_model_begins_one(model):
  model._system.begins_image = True
  first, second = noise(S, S, 1), noise(S, S, 2)
  drawn = model.complete(["red", first, "two", second, "red"], seed=3)
  assert isinstance(drawn, Image.Image)
  want = negative(second)
  assert want.shape == (S, N, 3) and (want != negative(first)).any()
  np.testing.assert_array_equal(np.asarray(drawn), want)
  drawn = model.complete(["red", second, "two", first])
  np.testing.assert_array_equal(np.asarray(drawn), negative(first))


def test_several_dialogues_at_once(model):
  turns = [Turn("two"), Turn("red"), Turn("a red circle")]
  said = model.dialogues.texts([[t, Turn("two")] for t in turns] * 2)
  assert said == ["two"] * 6 and len(model.dialogues.answers([turns])[0]) == 3
  images = [noise(S, S, k) for k in range(6)]
  drawn = model.dialogues.images([[Turn(image=x)] for x in images], range(6))
  np.testing.assert_array_equal(drawn, np.stack(list(map(negative, images))))


def test_each_image_draws_from_its_seed_alone(model):
  def noisy(params, frozen, prompts, keys, sampling):
    return jax.vmap(lambda k: jax.random.uniform(k, (2, 2, 3)))(keys)

  model._system.generate = noisy
  turns = [[Turn("red")]]
  four = model.dialogues.images(turns * 4, [7, 3, 4, 7])
  same = [(a == b).all() for a, b in zip(four, four[[3, 0, 1, 0]], strict=True)]
  assert same == [True, False, False, True]
  np.testing.assert_array_equal(model.dialogues.images(turns, [4]), four[2:3])
  drawn = np.asarray(model.dialogues.images(turns, [3])[0])
  model._system.begins_image = True
  np.testing.assert_array_equal(model.complete(["red"], seed=3), drawn)


@pytest.mark.parametrize("parts, message", [
  ([], "at least one"),
  ("red", "expected a list of texts and images"),
  (["red", " "], "the text is empty"),
  (["red", 3], "expected a text, an image or a path, got int"),
])  # fmt: skip
def test_what_cannot_be_continued_is_refused(model, parts, message):
  with pytest.raises(ValueError, match=message):
    model.complete(parts)


def test_other_refusals(model, tmp_path):
  with pytest.raises(FileNotFoundError, match="gone.png"):
    model.complete([tmp_path / "gone.png"])
  with pytest.raises(ValueError, match="seed=-1"):
    model.complete(["red"], seed=-1)
  with pytest.raises(ValueError, match="unknown sampling option 'colour'"):
    model.complete(["red"], colour=1)
  unifluid = systems.build(systems.resolve(debug.get_config()))
  words = SimpleNamespace(special={})  # as a run without dialogues has them
  other = api.Model(model.config, unifluid, words, lambda f: f)
  asked = [{"role": "user", "content": "red"}]
  for ask in (lambda: other.complete(["red"]), lambda: other.chat(asked)):
    with pytest.raises(ValueError, match="no rows for dialogues.*dialogue=0"):
      ask()


def test_replies_say_whether_an_image_follows(model, tokenizer):
  """A conversation's prompt ends with what begins an answer."""

  def answer(params, frozen, prompts, keys, sampling):
    last = prompts["dialogue"]["row.ids"][:, -1]
    draws = last == tokenizer.encode("red")[-1]
    return jnp.stack([last, jnp.where(draws, BOI, EOS)], axis=1)

  model._system.answer = answer
  user = Turn("two", target=False, role="user")
  chats = [[user], [Turn("red")], [user, Turn("red", role="assistant")]]
  said = model.dialogues.replies(chats)
  assert said == [Reply("two", False), Reply("red", True), Reply("red", True)]
  chat = ChatConfig(user="a", assistant="red")
  model.dialogues._config = dataclasses.replace(
    model.config, text=dataclasses.replace(model.config.text, chat=chat)
  )
  said = model.dialogues.replies(chats)
  assert [r.draws for r in said] == [True, True, True]


def test_a_chat_is_answered_with_texts_and_images(model, tokenizer):
  """Each reply goes on from what it has said, until it ends."""
  rows = []
  script = [["a", "red", BOI], [BOI], ["two", EOS]]

  def answers(dialogues, sampling=None):
    rows.append(list(dialogues[0]))
    words = script[len(rows) - 1]
    ids = [w if isinstance(w, int) else tokenizer.encode(w)[0] for w in words]
    return np.array([ids + [PAD] * (3 - len(ids))])

  seeds, draw = [], model.dialogues.images

  def images_of(dialogues, given, sampling):
    seeds.extend(given)
    return draw(dialogues, given, sampling)

  model.dialogues.answers, model.dialogues.images = answers, images_of
  shown = noise(S, S, 1)
  said = model.chat([
    {"role": "user", "content": ["two", shown]},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "a red circle"},
  ], seed=3)  # fmt: skip
  text_, *images, last = said
  assert (text_, last) == ("a red", "two")
  # The toy draws the last image it sees, in negative: its own the second time.
  first = negative(shown)
  np.testing.assert_array_equal(np.asarray(images[0]), first)
  assert len(images) == 2 and len(rows) == 3 and seeds == [3, 4]
  assert [t.role for t in rows[0]] == ["user", "user", "assistant", "user"]
  assert [t.target for t in rows[0]] == [False, False, True, False]
  assert [t.text for t in rows[2][4:]] == ["a red", "", ""]
  np.testing.assert_array_equal(rows[2][5].image, first)


@pytest.mark.parametrize("messages, message", [
  ([], "at least one"),
  ([{"role": "user"}], "must be a dict of 'role' and 'content'"),
  ([{"role": "assistant", "content": "red"}], "where the user's is due"),
  ([{"role": "user", "content": "red"},
    {"role": "assistant", "content": "two"}], "not the user's"),
  ([{"role": "user", "content": " "}], "the text is empty"),
])  # fmt: skip
def test_what_is_no_chat_is_refused(model, messages, message):
  with pytest.raises(ValueError, match=message):
    model.chat(messages)
