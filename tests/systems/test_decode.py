"""Decoding with a cache equals recomputing everything, step by step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.jaxprs import repeated
from tests.systems.conftest import Tiny, examples, right_aligned
from unifluid_jax.core.types import BOS, EOS, PAD
from unifluid_jax.models import ddpm_head, decoder, diffusion_head
from unifluid_jax.models.ddpm_head import sample_tokens
from unifluid_jax.models.kl_vae import KlVae, from_latents
from unifluid_jax.ops import diffusion, order, patches
from unifluid_jax.ops import sampling as sampling_ops
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.systems.common import embed, packing
from unifluid_jax.systems.unifluid_sampling import SamplingConfig

SAMPLING = SamplingConfig(
  steps=3, cfg=2.0, cfg_schedule="linear", temperature=0.9, clip=3.0,
  order="random",
  text="greedy", text_temperature=1.0, top_k=0, top_p=1.0, beams=2, seed=0,
)  # fmt: skip
TEXT = right_aligned(np.random.default_rng(1), 3, 5, 5)


def plain(text):
  return {"t2i": {"prompt": text}}


def edit(m, text, image):
  """Prompts of an edit, the source as pixels and as moments."""
  source = m.system.codec.encode(m.frozen["codec"], image)
  return {"edit": {"prompt": text, "seen": image, "source": source}}


def asked(i2t):
  return {"i2t": {k: i2t[k] for k in ("seen", "prefix")}}


def keys(*seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


@pytest.fixture(scope="module")
def draw(model):
  @jax.jit
  def run(text, keys):
    return model.system.generate(
      model.params, model.frozen, plain(text), keys, SAMPLING
    )

  return run


@pytest.fixture(scope="module")
def narrow():
  """A model whose products run in bfloat16."""
  return Tiny(model__dtype="bfloat16")


@pytest.mark.parametrize("what", ["generate", "answer"])
def test_weights_are_narrowed_once_for_all_tokens(what, narrow, monkeypatch):
  """With the same results as when every use narrows them."""
  images, text = jnp.zeros((3, 32, 32, 3)), jnp.asarray(TEXT)

  def run(params):
    row_keys = keys(0, 1, 2)
    if what == "answer":
      prompts = {"i2t": {"seen": images, "prefix": text}}
      return narrow.system.answer(params, {}, prompts, row_keys, SAMPLING)
    prompts = plain(text)
    return narrow.system.generate(
      params, narrow.frozen, prompts, row_keys, SAMPLING
    )

  got, program = jax.jit(run)(narrow.params), jax.make_jaxpr(run)(narrow.params)
  monkeypatch.setattr(embed, "cast_for_decoding", lambda params, _: params)
  monkeypatch.setattr(diffusion_head, "narrow", lambda params, _: params)
  want = jax.jit(lambda params: run(params))(narrow.params)
  np.testing.assert_array_equal(got, want)
  decoder, head = narrow.params["decoder"], narrow.params["head"]
  # Those that carry the tokens themselves stay wide, as their products.
  own = {k: v for k, v in head.items() if k != "input"}
  weights = {decoder["embedder"]["table"].shape}
  for leaf in jax.tree.leaves((decoder["layers"], own)):
    # A layer's own, and the stack's; all that products read.
    weights |= {s for s in (leaf.shape, leaf.shape[1:]) if len(s) > 1}
  converted = {
    line.invars[0].aval.shape
    for line in repeated(program.jaxpr)
    if line.primitive.name == "convert_element_type"
  }
  assert converted  # activations are
  assert not weights & converted


def recomputed(
  model, conditions, row_keys, cells, image_cfg=1.0, known=None, steps=None,
  starts=None,
):  # fmt: skip
  """The same images with full forward passes for every token.

  `conditions` are prompts: with text, without, and of edits without a source.
  `known` are tokens in raster order, and how many of each row's order are fed;
  `steps` are those of each place, `starts` the first place of its group.
  """
  s, params, (b, n) = model.system, model.params, cells.shape
  heads = [
    s.prompt_parts(params, model.frozen, fields)
    for prompts in conditions
    for fields in prompts.values()
  ]
  steps = steps or [SAMPLING.steps] * n
  token_keys = jax.vmap(lambda k: jax.random.split(k, 2)[1])(row_keys)

  @jax.jit
  def hidden_of(x, order):
    tail = s.embed_image(params, x, order)
    tail = packing.causal(tail, packing.all_valid(tail))
    joined = [packing.join([head, tail]) for head in heads]
    return [
      packing.hidden_states(s.decoder, params, [whole])[0][:, -n:]
      for whole in joined
    ]

  x = jnp.zeros((b, n, 16))
  for i in range(n):
    # Its cell comes directly after those that are known.
    begun = starts[i] if starts else i
    swapped = cells.at[:, [begun, i]].set(cells[:, [i, begun]])
    z, z_null, *z_none = (h[:, begun] for h in hidden_of(x, swapped))
    scale, image_scale = (
      1 + (c - 1) * (i + 1) / n for c in (SAMPLING.cfg, image_cfg)
    )
    token = sample_tokens(
      s.head, params["head"], diffusion.respace(steps[i]), z, z_null,
      jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(token_keys),
      scale, SAMPLING.temperature, limit=SAMPLING.clip,
      z_none=z_none[0] if z_none else None, image_cfg=image_scale,
    )  # fmt: skip
    if known is not None:
      rows, given = jnp.arange(b), known[0][jnp.arange(b), cells[:, i]]
      token = jnp.where((i < known[1][rows])[:, None], given, token)
    x = x.at[:, i].set(token)
  z = patches.unpatchify(order.put_tokens(x, cells), 2, 4)
  frozen = model.frozen["codec"]
  z = from_latents(z, frozen["latent_mean"], frozen["latent_scale"])
  return jnp.clip(decoded(model, z), -1, 1)


def test_late_tokens_take_fewer_steps(model):
  """DiSA: 3, 2 and 1 steps, for six, five and five of sixteen tokens."""
  text, k = jnp.asarray(TEXT[:2]), keys(5, 6)
  sampling = dataclasses.replace(SAMPLING, last_steps=1)
  got = jax.jit(
    lambda: model.system.generate(
      model.params, model.frozen, plain(text), k, sampling
    )
  )()
  steps = [3] * 6 + [2] * 5 + [1] * 5
  conditions, cells = plain_and_null(text), drawn_orders(k)
  want = recomputed(model, conditions, k, cells, steps=steps)
  np.testing.assert_allclose(got, want, atol=2e-4)


def in_groups(model, text, row_keys, passes, **changes):
  """Images of several tokens a pass, by a run in random order to the end."""
  sampling = dataclasses.replace(SAMPLING, passes=passes, **changes)
  return jax.jit(
    lambda: model.system.generate(
      model.params, model.frozen, plain(text), row_keys, sampling
    )
  )()


def test_groups_of_tokens_equal_full_recomputation(model):
  """Each from those before its group; 4 passes draw 2, 3, 5 and 6 tokens."""
  text, k = jnp.asarray(TEXT[:2]), keys(5, 6)
  assert order.group_sizes(16, 4) == [2, 3, 5, 6]
  starts = [0] * 2 + [2] * 3 + [5] * 5 + [10] * 6
  want = recomputed(
    model, plain_and_null(text), k, drawn_orders(k), starts=starts
  )
  np.testing.assert_allclose(in_groups(model, text, k, 4), want, atol=2e-4)


def test_groups_of_the_farthest_order_equal_full_recomputation(model):
  """Three corners one by one, then the other thirteen tokens at once."""
  text, k = jnp.asarray(TEXT[:2]), keys(5, 6)
  cells = order.to_draw("farthest", k, 16)
  starts = [0, 1, 2] + [3] * 13
  want = recomputed(model, plain_and_null(text), k, cells, starts=starts)
  got = in_groups(model, text, k, 4, order="farthest")
  np.testing.assert_allclose(got, want, atol=2e-4)


def test_a_pass_a_token_is_the_same_program(model):
  text, k = jnp.asarray(TEXT[:2]), keys(5, 6)
  one_by_one = in_groups(model, text, k, 0)
  np.testing.assert_array_equal(in_groups(model, text, k, 16), one_by_one)
  assert np.abs(in_groups(model, text, k, 15) - one_by_one).max() > 1e-3


def decoded(model, z):
  """Raw latents as images."""
  vae = {"params": model.frozen["codec"]["vae"]}
  return KlVae(model.config.model.vae).apply(vae, z, method="decode")


def plain_and_null(text):
  return plain(text), plain(packing.null_prompt(text))


def drawn_orders(row_keys):
  """The random order of each row, from its own key."""
  return order.permutations(
    jax.vmap(lambda k: jax.random.split(k, 2)[0])(row_keys), 16
  )


def test_generation_equals_full_recomputation(model, draw):
  text, k = jnp.asarray(TEXT), keys(3, 4, 5)
  cells = drawn_orders(k)
  assert (cells != jnp.arange(16)).any(1).all()
  np.testing.assert_allclose(
    draw(text, k), recomputed(model, plain_and_null(text), k, cells), atol=2e-4
  )


def test_any_order_equals_full_recomputation(model):
  text, k = jnp.asarray(TEXT[:2]), keys(8, 9)
  rng = np.random.default_rng(2)
  cells = jnp.asarray(np.stack([rng.permutation(16) for _ in range(2)]))
  got = jax.jit(
    lambda: model.system.generate(
      model.params, model.frozen, plain(text), k, SAMPLING, cells
    )
  )()
  np.testing.assert_allclose(
    got, recomputed(model, plain_and_null(text), k, cells), atol=2e-4
  )


def test_an_image_depends_on_its_own_seed_and_prompt_only(model, draw):
  text = jnp.asarray(TEXT)
  a = draw(text, keys(3, 4, 5))
  b = draw(text[::-1], keys(5, 7, 3))
  np.testing.assert_allclose(a[0], b[2], atol=1e-5)
  np.testing.assert_allclose(a[2], b[0], atol=1e-5)
  assert np.abs(a[1] - b[1]).max() > 1e-2


def test_guidance_off_ignores_the_null_prompt(model):
  """cfg 1 takes the short path and equals the guided formula at 1."""
  text, k = jnp.asarray(TEXT[:2]), keys(1, 2)

  def run(cfg):
    sampling = dataclasses.replace(SAMPLING, cfg=cfg, cfg_schedule="constant")
    return jax.jit(
      lambda: model.system.generate(
        model.params, model.frozen, plain(text), k, sampling
      )
    )()

  np.testing.assert_allclose(run(1.0), run(1.0 + 1e-7), atol=2e-4)
  assert np.abs(run(1.0) - run(4.0)).max() > 1e-2


def test_greedy_answers_equal_full_recomputation(model, monkeypatch):
  batch = examples(rows=4)["i2t"]
  s, params = model.system, model.params
  seen, greedy = [], sampling_ops.greedy

  def watched(logits):  # the likeliest token alone hardly shows a wrong slot
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), logits,
                       ordered=True)  # fmt: skip
    return greedy(logits)

  monkeypatch.setattr(sampling_ops, "greedy", watched)
  got = np.asarray(
    jax.jit(
      lambda: s.answer(params, {}, asked(batch), keys(*range(4)), SAMPLING)
    )()
  )
  jax.effects_barrier()
  table = params["decoder"]["embedder"]["table"]

  @jax.jit
  def next_token(suffix, length):
    example = batch | {"suffix": suffix}
    packed = s._pack_answer(params, example, jax.random.key(0))
    mask = block_causal_mask(packed.block, packed.valid)
    hidden, _ = s.decoder.apply(
      {"params": params["decoder"]}, packed.x,
      packing.positions(packed.valid), mask,
    )  # fmt: skip
    start = packed.x.shape[1] - suffix.shape[1]
    return decoder.logits(
      model.config.model.decoder, table, hidden[:, start + length]
    )

  suffix, done = np.full((4, 4), PAD), np.zeros(4, bool)
  for i in range(4):
    # A pad that was emitted is fed as a token: give it another id to stay
    # visible would change it, so rows stop at their first pad.
    logits = np.asarray(next_token(jnp.asarray(suffix), i))
    if not done.all():
      np.testing.assert_allclose(seen[i][~done], logits[~done], atol=1e-4)
    token = np.where(done, PAD, logits.argmax(-1))
    done |= np.isin(token, (EOS, PAD))
    suffix[:, i] = token
  first_stop = [
    next((j for j, t in enumerate(r) if t in (PAD, EOS)), 4) for r in suffix
  ]
  for row, want, stop in zip(got, suffix, first_stop, strict=True):
    np.testing.assert_array_equal(row[: stop + 1], want[: stop + 1])


def test_beam_of_one_is_greedy_and_more_beams_score_no_worse(model):
  batch = examples(rows=4)["i2t"]
  s = model.system

  def run(**changes):
    sampling = dataclasses.replace(SAMPLING, **changes)
    return np.asarray(
      jax.jit(
        lambda: s.answer(
          model.params, {}, asked(batch), keys(*range(4)), sampling
        )
      )()
    )

  sampled = run(text="sample", top_k=1)
  np.testing.assert_array_equal(sampled, run())
  beams = run(text="beam", beams=3)
  assert beams.shape == (4, 4) and (beams >= PAD).all()
  ended = (beams == EOS).any(1)
  assert ended.all()


def test_a_sampled_answer_depends_on_its_own_key(model):
  batch = examples(rows=1)["i2t"]
  prompts = asked({k: jnp.repeat(x, 3, axis=0) for k, x in batch.items()})
  sampling = dataclasses.replace(SAMPLING, text="sample", text_temperature=9.0)
  a, b, c = jax.jit(
    lambda: model.system.answer(
      model.params, {}, prompts, keys(1, 2, 1), sampling
    )
  )()
  np.testing.assert_array_equal(a, c)
  assert (a != b).any()


@pytest.fixture(scope="module")
def editor():
  return Tiny(
    batch__edit=4, model__edit_latents=True, loss__prompt_dropout=0.1,
    loss__image_dropout=0.1,
  )  # fmt: skip


def test_edit_prompts_see_the_source_image(editor):
  m = editor
  image = examples()["i2t"]["seen"][:2]
  text = jnp.asarray(TEXT[:2])
  draw = jax.jit(
    lambda source: m.system.generate(
      m.params, m.frozen, edit(m, text, source), keys(1, 2), SAMPLING
    )
  )
  a, b = draw(image), draw(image[::-1])
  assert a.shape == (2, 32, 32, 3)
  assert np.abs(a - b).max() > 1e-3


def edited(m, **changes):
  """Two edits; also as generation, from the same prompts without sources."""
  image, text = examples()["i2t"]["seen"][:2], jnp.asarray(TEXT[:2])
  config = dataclasses.replace(SAMPLING, **changes)

  def run(prompts):
    return jax.jit(
      lambda: m.system.generate(m.params, m.frozen, prompts, keys(1, 2), config)
    )()

  return lambda: run(edit(m, text, image)), lambda: run(plain(text))


def test_a_hidden_source_leaves_a_prompt_that_never_had_one(editor):
  """Hidden states, and so all predictions, are those of plain generation."""
  s, params = editor.system, editor.params
  image, text = examples()["i2t"]["seen"][:2], jnp.asarray(TEXT[:2])
  whole = jax.jit(s.prompt_parts)(
    params, editor.frozen, edit(editor, text, image)["edit"]
  )
  hidden = packing.hide_source(whole, 5, jnp.asarray([True, False]))
  bare = s.prompt_parts(params, editor.frozen, {"prompt": text})
  assert whole.x.shape[1] == 16 + 16 + 5
  np.testing.assert_array_equal(hidden.valid[1], whole.valid[1])
  assert not hidden.valid[0, :32].any()

  @jax.jit
  def states(packed):
    mask = block_causal_mask(packed.block, packed.valid)
    out, _ = s.decoder.apply(
      {"params": params["decoder"]}, packed.x,
      packing.positions(packed.valid), mask,
    )  # fmt: skip
    return out[:, -5:] * packed.valid[:, -5:, None]

  got, want = states(hidden), states(bare)
  np.testing.assert_allclose(got[0], want[0], atol=1e-5)
  assert np.abs(got[1] - want[1]).max() > 1e-2


def test_two_scales_of_an_edit_equal_full_recomputation(editor):
  """Against a plain empty prompt: it never had a source to hide."""
  image, text = examples()["i2t"]["seen"][:2], jnp.asarray(TEXT[:2])
  null = packing.null_prompt(text)
  conditions = (
    edit(editor, text, image), edit(editor, null, image), plain(null)
  )  # fmt: skip
  expected = recomputed(
    editor, conditions, keys(1, 2), drawn_orders(keys(1, 2)), 3.0
  )
  got, _ = edited(editor, image_cfg=3.0)
  np.testing.assert_allclose(got(), expected, atol=2e-4)


def test_image_scale_one_is_two_way_guidance_bit_by_bit(editor, monkeypatch):
  """Rows, arguments and images are those of a sampler without the option."""
  seen = []

  def watched(*args, **options):
    assert options["z_none"] is None
    z, z_null = args[3:5]
    seen.append((z.shape[0], z_null.shape[0]))
    return sample_tokens(*args, limit=options["limit"])

  def never(*_):
    raise AssertionError("a source was hidden")

  edits, drawn = edited(editor, cfg=2.0, image_cfg=1.0)
  images = edits(), drawn()
  monkeypatch.setattr(ddpm_head, "sample_tokens", watched)
  monkeypatch.setattr(packing, "hide_source", never)
  np.testing.assert_array_equal(images[0], edits())
  # Without a source there is nothing to guide towards, whatever the scale.
  _, scaled = edited(editor, cfg=2.0, image_cfg=5.0)
  np.testing.assert_array_equal(images[1], scaled())
  assert set(seen) == {(2, 2)}


def test_shares_of_edits_without_source_and_text(editor, monkeypatch):
  """Of rates 0.1: a twentieth lose each alone, a twentieth both."""
  rows, texts = 8192, []
  text = jnp.tile(jnp.asarray([PAD, BOS, 7, 8, 9]), (rows, 1))
  parts = packing.prefix(jnp.zeros((rows, 9, 1)), jnp.ones((rows, 9), bool))

  def prompt_parts(params, frozen, prompts, kernel):
    texts.append(prompts["prompt"])
    return parts

  s = editor.system
  monkeypatch.setattr(s, "prompt_parts", prompt_parts)
  monkeypatch.setattr(s, "embed_image", lambda *_: jnp.zeros((rows, 1, 1)))
  monkeypatch.setattr(s.codec, "tokens", lambda *_: jnp.zeros((rows, 1, 1)))

  def pack(prompts):
    fields = {"image": None, **prompts}
    packed, _ = s._pack_image(
      {}, {"codec": None}, fields, jax.random.key(3), 0.0,
      s.config.loss.prompt_dropout,
    )  # fmt: skip
    seen = np.asarray(packed.valid)
    assert seen[:, 4:].all() and (seen[:, :4].all(1) == seen[:, 0]).all()
    lost = np.asarray((texts[-1] == packing.null_prompt(text)).all(1))
    assert (np.asarray(texts[-1] == text).all(1) == ~lost).all()
    return lost, ~seen[:, 0]

  source = jnp.zeros((rows, 1, 1, 3))
  lost, hidden = pack({"prompt": text, "seen": source})
  for group in (lost & ~hidden, ~lost & hidden, lost & hidden):
    assert abs(group.mean() - 0.05) < 0.01
  # Plain generation loses its prompt at the same rate, nothing is hidden.
  again, unhidden = pack({"prompt": text})
  np.testing.assert_array_equal(again, lost)
  assert not unhidden.any()


def test_overfit_regenerates_tokens_and_captions_exactly():
  """Eight examples, both tasks: sampling returns what was learned."""
  m = Tiny(
    loss__prompt_dropout=0.0, sampling__cfg=1.0, loss__text_weight=0.3,
    loss__draws=8, model__head__width=64, model__head__depth=2,
    model__decoder__width=48, loss__random_until=0, loss__raster_from=0,
  )  # fmt: skip
  rng = np.random.default_rng(3)
  batch = examples()
  prompt = np.full((8, 5), PAD, np.int32)
  prompt[:, 3], prompt[:, 4] = BOS, np.arange(8) + 8
  moments = rng.normal(size=(8, 8, 8, 8)).astype(np.float32)
  moments[..., 4:] = -30
  batch["t2i"] = {
    "prompt": jnp.asarray(prompt), "image": jnp.asarray(moments)
  }  # fmt: skip
  optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, 1000))
  params = jax.jit(m.system.init)(jax.random.key(5))
  state = optimizer.init(params)

  # Runs a thousand times: worth compiling well.
  options = {
    "xla_backend_optimization_level": 2, "xla_cpu_use_fusion_emitters": True
  }  # fmt: skip

  @functools.partial(jax.jit, compiler_options=options)
  def update(params, state, key):
    def objective(p):
      return m.whole_loss(p, m.frozen, batch, key, 0)

    grads, metrics = jax.grad(objective, has_aux=True)(params)
    change, state = optimizer.update(grads, state)
    return optax.apply_updates(params, change), state, metrics

  key = jax.random.key(0)
  for i in range(1000):
    params, state, metrics = update(params, state, jax.random.fold_in(key, i))
  assert metrics["text_accuracy"] == 1
  answers = jax.jit(
    lambda p: m.system.answer(
      p, {}, asked(batch["i2t"]), keys(*range(8)), SAMPLING
    )
  )(params)
  np.testing.assert_array_equal(answers, batch["i2t"]["suffix"])
  sampling = dataclasses.replace(
    SAMPLING, cfg=1.0, steps=25, clip=4.0, order="raster"
  )
  target = decoded(m, jnp.asarray(moments[..., :4]))
  images = jax.jit(
    lambda p: m.system.generate(
      p, m.frozen, plain(batch["t2i"]["prompt"]), keys(*range(8)), sampling
    )
  )(params)
  error = np.square(images - np.clip(target, -1, 1)).mean((1, 2, 3))
  other = np.square(images - np.clip(target[::-1], -1, 1)).mean((1, 2, 3))
  assert error.max() < 0.1 * other.min(), (error, other)
