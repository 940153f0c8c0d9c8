"""Training below one bit a weight that starts from the solver: blocks chosen under the curvature of the float network's outputs.

Before the first step kernels are blocks already, assigned with error feedback at what their indices cost
(:mod:`bqjax.methods.rate_distortion.block_solver`). Then both the codebooks and latent weights train: the network sees the blocks,
and gradients go to the codebooks and straight through to the latent weights. After every few steps each block looks whether another
entry is cheaper now by the solver's cost, distance under the curvature and bits of the index.

References:
  Bengio, Léonard, Courville 2013 (arXiv 1308.3432): the straight-through estimator.
  Stock et al. 2020 (arXiv 1907.05686), section 3.3: codebooks trained by summed gradients.
  Chou, Lookabaugh, Gray 1989: bits in the assignment.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.leaves import Clustered, decode
from bqjax.core.rules import Rule
from bqjax.core.tree import named_leaves
from bqjax.kmeans.codebooks import codebook_name, codebooks, rounded_codebooks, with_codebooks
from bqjax.methods.gwk.assignment import code_lengths, index_bits
from bqjax.methods.gwk.config import GWKConfig, block_size
from bqjax.methods.rate_distortion import BlockConfig, prepare_blocks
from bqjax.methods.rate_distortion.block_refresh import BlockRefresh, block_refreshes, refreshed_indices
from bqjax.methods.rate_distortion.block_solver import solve_blocks
from bqjax.sensitivity.curvature import output_curvature
from train.image.config import GWKLayers, GWKPhase
from train.schemes import Numbers, Scheme, Weights

__all__ = ["SolvedClusters", "SolvedStart", "bits_a_weight", "solved_start"]

# Rate control: indices that take a tenth of a bit a weight too many raise lmbda by this share of it a step, at most by the second
# number.
_GAIN, _MOST = 0.5, 0.1
_RANGE = 1e4  # how far lmbda may go from where it started


class SolvedStart(NamedTuple):
    """Where training starts.

    Attributes:
      leaves: clustered kernels by name, codebooks in float32.
      refreshes: what choosing their blocks anew needs.
      lmbda: of a bit.
    """

    leaves: dict[str, Clustered]
    refreshes: dict[str, BlockRefresh]
    lmbda: float


def solved_start(
    model: Any,
    names: Sequence[str],
    settings: GWKPhase,
    batches: Sequence[Any],
    key: jax.Array,
    leaves: Mapping[str, Clustered] | None = None,
) -> SolvedStart:
    """Blocks of kernels of a float network, by the curvature of its outputs.

    Args:
      model: the float NNX network, its channels equalized where they shall be.
      names: of the kernels.
      settings: blocks and lmbda.
      batches: what the network is called with.
      key: of the curvature's draws and of the seeds of k-means.
      leaves: blocks by name to start from in place of the solver's, those of the model.

    Raises:
      ValueError: ``leaves`` are other kernels, or blocks of another size, than the settings have; as
        :func:`bqjax.methods.rate_distortion.block_solver.block_quant_rd`.
    """
    params, (draws, seeds) = nnx_params(model), jax.random.split(key)
    weights = named_leaves(params)
    rules = [_rule(name, np.shape(weights[name]), settings) for name in names]
    if leaves is not None:
        _check_blocks(leaves, rules)
    # Of everything: the shifts behind kernels take up the mean of their outputs.
    curvature = output_curvature(nnx_apply(model), params, batches, key=draws)
    prepared = prepare_blocks(params, curvature, rules)
    solved = leaves if leaves is not None else solve_blocks(prepared, settings.lmbda, key=seeds, dtypes=weights)
    return SolvedStart({name: solved[name] for name in names}, block_refreshes(prepared, curvature), settings.lmbda)


def _check_blocks(leaves: Mapping[str, Clustered], rules: Sequence[Rule[BlockConfig]]) -> None:
    wanted = {rule.pattern: rule.setting.d if rule.setting else 0 for rule in rules}
    if other := sorted(set(leaves) ^ set(wanted)):
        raise ValueError(
            f"leaf {other[0]!r} is in blocks in the file or by the config, but not in both: give the file's own layers"
        )
    for name, leaf in leaves.items():
        if leaf.d != wanted[name]:
            raise ValueError(
                f"leaf {name!r} has blocks of {leaf.d} weights in the file and of {wanted[name]} by the config: give the file's own"
            )


def _rule(name: str, shape: tuple[int, ...], settings: GWKPhase) -> Rule[BlockConfig]:
    """A kernel's blocks, and its group."""
    own: GWKPhase | GWKLayers = next(
        (each for each in settings.layers if fnmatch.fnmatchcase(name, f"{each.pattern}/kernel")), settings
    )
    d = block_size(shape, GWKConfig(bits=own.bits, cv=own.cv, pw=own.pw))
    group = own.group if isinstance(own, GWKLayers) else None
    return Rule(name, BlockConfig(d=d, k=2**own.bits, codebook_bits=None), group=group)


def bits_a_weight(leaves: dict[str, Clustered]) -> jax.Array:
    """Entropy of the indices in the codes of their codebooks, over all weights of the leaves. Traceable."""
    bits = index_bits(leaves)
    total = sum((bits[name] * np.size(leaf.indices) for name, leaf in leaves.items()), jnp.zeros(()))
    return total / sum(leaf.size for leaf in leaves.values())


class _Carried(NamedTuple):
    leaves: dict[str, Clustered]
    refreshes: dict[str, BlockRefresh]
    lmbda: jax.Array
    step: jax.Array


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedClusters(Scheme):
    """Codebooks and latent weights that train together, blocks chosen anew by the solver's cost.

    Attributes:
      phase: settings; its epochs are not looked at.
      first: where training starts.
    """

    phase: GWKPhase
    first: SolvedStart

    def start(self, tree: Weights, key: jax.Array) -> tuple[Numbers, Any]:
        carried = _Carried(self.first.leaves, self.first.refreshes, jnp.float32(self.first.lmbda), jnp.int32(0))
        return {"weights": decode(tree), "codebooks": codebooks(self.first.leaves)}, carried

    def seen(self, numbers: Numbers, state: Any, progress: jax.Array) -> tuple[Weights, Any]:
        values = decode(self.finish(numbers, state))
        # The value of the block, and the gradient of both.
        return {name: values[name] + (w - jax.lax.stop_gradient(w)) for name, w in numbers["weights"].items()}, state

    def follow(self, numbers: Numbers, state: Any, grads: Numbers, progress: jax.Array) -> Any:
        leaves = self.finish(numbers, state)
        lengths = code_lengths(leaves)
        by_leaf = {name: lengths[codebook_name(name, leaf)] for name, leaf in leaves.items()}

        def anew(state: _Carried) -> _Carried:
            new = refreshed_indices(numbers["weights"], leaves, state.refreshes, by_leaf, state.lmbda)
            lmbda = state.lmbda
            if self.phase.bits_per_weight is not None:
                over = bits_a_weight(new) - self.phase.bits_per_weight
                lmbda = lmbda * jnp.exp(jnp.clip(_GAIN * over, -_MOST, _MOST))
                lmbda = jnp.clip(lmbda, self.first.lmbda / _RANGE, self.first.lmbda * _RANGE)
            return state._replace(leaves=new, lmbda=lmbda)

        keep = (progress >= self.phase.freeze) | (state.step % self.phase.refresh_steps > 0)
        state = jax.lax.cond(keep, lambda state: state._replace(leaves=leaves), anew, state)
        return state._replace(step=state.step + 1)

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        found: Weights = with_codebooks(state.leaves, rounded_codebooks(numbers["codebooks"], bits=self.phase.codebook_bits))
        return found
