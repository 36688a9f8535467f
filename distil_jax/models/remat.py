"""Chooses what a layer keeps for the backward pass, and what it computes again.

From most memory and least work to least memory and most work:

  none       keeps everything
  attention  computes attention again, from queries, keys and values
  dots       keeps the results of products with weights
  layer      keeps the layer's input
  offload    keeps that too, in pinned memory of the host
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from distil_jax.models.decoder_config import Remat

# These run a whole layer once more, its products with weights included.
RECOMPUTES_PRODUCTS = ("layer", "offload")

_Fn = Callable[..., Any]
_INPUT = "layer_input"


def of_layer(run: _Fn, remat: Remat) -> _Fn:
  """Returns a layer that keeps what the policy names.

  Args:
    run: `(x, inputs) -> (x, what the layer returns besides)`.
    remat: name of the policy.
  """
  if remat == "layer":
    return jax.checkpoint(run)
  policies = jax.checkpoint_policies
  if remat == "dots":
    keep = policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(run, policy=keep)
  if remat != "offload":
    return run

  def named(x, inputs):
    return run(checkpoint_name(x, _INPUT), inputs)

  move = policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
  )
  return jax.checkpoint(named, policy=move)


def of_attention(attend: _Fn, remat: Remat) -> _Fn:
  """Returns attention that keeps only its arguments, if the policy says so."""
  return jax.checkpoint(attend) if remat == "attention" else attend
