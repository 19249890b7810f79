"""The figures of the arithmetic published for this model's parts."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import unified_2b
from unifluid_jax import systems
from unifluid_jax.core import presets
from unifluid_jax.models import token_head
from unifluid_jax.systems.common import cost
from unifluid_jax.systems.unifluid_config import step_cost


def resolved(**batch):
  c = unified_2b.get_config()
  c.batch = dict(dict(t2i=0, i2t=0, edit=0, text=0), **batch)
  c.model.head.preset = "mar_l"
  return systems.resolve(c)


def test_gemma2_2b_costs_six_flops_a_parameter_and_token():
  c = presets.GEMMA["gemma2_2b"]
  body = 26 * (2304 * 256 * (16 + 8) + 3 * 2304 * 9216)
  # 2.024B body parameters; attention is 12 L N H S^2 for training.
  attention = 4 * 26 * 8 * 256 * 320**2
  np.testing.assert_allclose(
    cost.decoder_flops(c, 320), 2 * body * 320 + attention
  )
  assert abs(3 * cost.decoder_flops(c, 320) - 3.952e12) < 0.01e12


def test_generation_and_understanding_samples():
  """4.664 + 0.094 + 0.453 TF and 4.664 + 0.094 + 0.226 + 0.657 TF."""
  tokens, flops = step_cost(resolved(t2i=1))[:2]
  assert tokens == 384
  np.testing.assert_allclose(flops, 5.211e12, rtol=0.01)
  c = resolved(i2t=1)
  flops = step_cost(c).flops
  np.testing.assert_allclose(flops, 5.64e12, rtol=0.01)


def test_a_question_about_two_images_costs_its_tokens_and_encodings():
  """NLVR2: 2 x 256 features before 64 + 63 tokens of text; closed form."""
  one = resolved(i2t=3)
  data = dataclasses.replace(one.data, images=2)
  two = dataclasses.replace(one, data=data)
  (tokens, flops), (more_tokens, more_flops) = (
    step_cost(c)[:2] for c in (one, two)
  )
  v, text = 256, one.text.prefix + one.text.suffix - 1
  assert (tokens, more_tokens) == (3 * (v + text), 3 * (2 * v + text))
  width, heads, mlp = 2304, 256 * (2 * 8 + 2 * 4), 3 * 9216
  rows = 2 * v + text
  decoder = 26 * (
    v * width * (heads + mlp) + 2 * 8 * 256 * (rows**2 - (v + text) ** 2)
  )
  layer = 4 * 1152**2 + 2 * 1152 * 4304 + 2 * 1152 * v
  encoder = v * (27 * layer + 3 * 14**2 * 1152)
  np.testing.assert_allclose(
    more_flops - flops, 3 * 3 * 2 * (decoder + encoder)
  )
  # Nothing else sees two.
  rest = dataclasses.replace(two, batch=dict(t2i=1, edit=1, text=1))
  alone = dataclasses.replace(rest, data=one.data)
  assert step_cost(rest) == step_cost(alone)


def test_rows_of_a_pass_of_their_own_are_not_padded():
  """Fused attention runs over padding, and "dots" saves it."""
  c = presets.GEMMA["gemma2_2b"]
  tasks = {
    "short": cost.Sequences(6, 100),
    "long": cost.Sequences(2, 500),
    "alone": cost.Sequences(1, 3000, alone=True),
  }
  found = cost.step_cost(c, None, tasks, "splash", "dots", 2)
  pair = 2 * 26 * 8 * 256  # FLOPs of a product, of a query and a key
  pairs = 8 * 500**2 + 3000**2
  assert found.fused == {"decoder": 9 * pair * pairs}
  kept = 256 * 2 * (8 + 4) + 2 * 2304 + 2 * 9216
  assert found.saved_by_dots == 2 * 26 * (8 * 500 + 3000) / 2 * kept
  assert found.tokens == 6 * 100 + 2 * 500 + 3000


def test_a_scale_decoder_without_layers_costs_its_ends():
  """Embedding and logits of five slots, the last norm's modulations once."""
  for shared in (False, True):
    c = presets.ScaleDecoderConfig(16, 0, 2, 24, 11, 3, (1, 2), 1, shared)
    want = 2 * (5 * 16 * (3 + 11) + 2 * 16 * 16)
    assert cost.scale_decoder_flops(c) == want


@pytest.mark.parametrize("kind", token_head.KINDS)
def test_a_heads_products_are_those_of_its_kernels(kind):
  """Each is used once in an evaluation."""
  c = presets.HeadConfig(24, 3, kind)
  head = token_head.build(c, 5, "float32")
  shapes = jax.eval_shape(
    lambda: head.net.init(jax.random.key(0), *head.inputs(7))
  )
  kernels = sum(x.size for x in jax.tree.leaves(shapes) if x.ndim == 2)
  assert cost.head_flops(c, 7, 5) == 2 * kernels


def test_targets_of_self_consistency_have_no_backward_pass():
  """One draw of four costs two forward passes more; a step is three."""
  mar, shortcut = (presets.HeadConfig(8, 1, k) for k in ("ddpm", "shortcut"))
  assert cost.head_evaluations(mar, 4) == 4
  assert 3 * cost.head_evaluations(shortcut, 4) == pytest.approx(3 * 4 + 2)
  assert 3 * cost.head_evaluations(shortcut, 8) == pytest.approx(3 * 8 + 4)
  one = resolved(t2i=1)
  head = dataclasses.replace(one.model.head, kind="shortcut")
  c = dataclasses.replace(one, model=dataclasses.replace(one.model, head=head))
  more = 256 * (
    (4 + 2 / 3) * cost.head_flops(head, 2304, 16)
    - 4 * cost.head_flops(one.model.head, 2304, 16)
  )
  found = step_cost(c).flops - step_cost(one).flops
  np.testing.assert_allclose(found, 3 * more, rtol=1e-6)


def test_cost_scales_with_the_batch_and_the_draws():
  one, two = resolved(t2i=2, i2t=2), resolved(t2i=4, i2t=4)
  assert step_cost(two).flops == 2 * step_cost(one).flops
  more = dataclasses.replace(one, loss=dataclasses.replace(one.loss, draws=8))
  assert step_cost(more).flops > step_cost(one).flops
