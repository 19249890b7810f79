"""LLaVA-1.5 against transformers: image and text to logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import save_file  # noqa: E402

from tests.weights import helpers, references  # noqa: E402
from unifluid_jax.core import checkpoint, presets  # noqa: E402
from unifluid_jax.models import decoder  # noqa: E402
from unifluid_jax.models.adapter import Adapter  # noqa: E402
from unifluid_jax.models.clip_vit import ClipVit  # noqa: E402
from unifluid_jax.weights import convert, llava, readers  # noqa: E402
from unifluid_jax.weights.rows import nested  # noqa: E402

IMAGE, TOKENS, BEFORE = 39, 9, 3  # id of image slots, how many, where
TEXT = dict(
  model_type="llama", vocab_size=40, hidden_size=24, intermediate_size=32,
  num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
  rms_norm_eps=1e-5,
)  # fmt: skip
VISION = dict(
  model_type="clip_vision_model", hidden_size=16, intermediate_size=24,
  num_hidden_layers=3, num_attention_heads=2, image_size=12, patch_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
  config = transformers.LlavaConfig(
    vision_config=dict(VISION),
    text_config=dict(TEXT),
    image_token_index=IMAGE,
    attn_implementation="eager",
  )
  made = transformers.LlavaForConditionalGeneration(config)
  return references.randomise(made, 0)


def saved(model, path, newer):
  """As transformers saves it, or with the names the modules have."""
  model.save_pretrained(path)
  if newer:
    tensors = {n: x.detach().numpy() for n, x in model.state_dict().items()}
    assert "model.language_model.norm.weight" in tensors
    save_file(tensors, str(path / "model.safetensors"))
  else:
    names = readers.open_source(str(path)).names()
    assert "language_model.lm_head.weight" in names


def inputs():
  """Images, and text around their slots."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 12, 12, 3)).astype(np.float32)
  ids = references.tokens(2, BEFORE + 6)
  slots = np.full((2, TOKENS), IMAGE, np.int32)
  return images, np.concatenate([ids[:, :BEFORE], slots, ids[:, BEFORE:]], 1)


def ours(path, images, ids):
  """Logits of all positions by a converted file."""
  source = readers.open_source(str(path))
  params = nested(
    {
      name.removeprefix("params/"): jnp.asarray(source.read(name))
      for name in source.names()
    }
  )
  meta = checkpoint.read_meta(str(path), 0)["weights"]
  config = helpers.gemma_config(meta)
  vit = ClipVit(presets.VitConfig(**meta["vit"]), jnp.float32)
  seen = vit.apply({"params": params["encoder"]}, jnp.asarray(images))
  adapter = Adapter(config.width, jnp.float32)
  seen = adapter.apply({"params": params["projector"]}, seen)
  net = decoder.Decoder(config, jnp.float32)
  variables = {"params": params["decoder"]}
  x = net.apply(variables, jnp.asarray(ids), method="embed")
  x = x.at[:, BEFORE : BEFORE + TOKENS].set(seen)
  b, t = ids.shape
  mask = jnp.tile(jnp.tril(jnp.ones((t, t), bool)), (b, 1, 1))
  hidden, _ = net.apply(variables, x, jnp.tile(jnp.arange(t), (b, 1)), mask)
  table = decoder.output_table(params["decoder"])
  return decoder.logits(config, table, hidden)


@pytest.mark.parametrize("newer", [False, True], ids=["saved", "newer"])
def test_logits(model, tmp_path, newer):
  saved(model, tmp_path / "hf", newer)
  convert.to_checkpoint(
    f"llava:{tmp_path / 'hf'}", str(tmp_path / "ours"), lambda _: None
  )
  images, ids = inputs()
  with torch.no_grad():
    want = model(
      input_ids=torch.tensor(ids).long(),
      pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)),
    ).logits.numpy()
  with jax.default_matmul_precision("highest"):
    got = ours(tmp_path / "ours", images, ids)
    blind = ours(tmp_path / "ours", images[::-1], ids)
  assert helpers.absolute(got, want) < 1e-4
  # The image is felt behind its slots, and not before them.
  assert helpers.absolute(blind[:, -1], want[:, -1]) > 1e-2
  assert helpers.absolute(blind[:, :BEFORE], want[:, :BEFORE]) < 1e-4


def test_what_released_files_leave_out(model, tmp_path):
  """Their silence means what transformers takes it to mean."""
  model.save_pretrained(tmp_path)
  tree = json.loads((tmp_path / "config.json").read_text())
  tree["text_config"] = {"model_type": "llama", "vocab_size": 32_064}
  (tmp_path / "config.json").write_text(json.dumps(tree))
  theirs = transformers.LlavaConfig.from_pretrained(tmp_path).text_config
  for key, value in llava.SILENT.items():
    if key != "vocab_size":
      assert getattr(theirs, key) == value, key
  assert transformers.LlamaConfig().vocab_size == llava.SILENT["vocab_size"]
