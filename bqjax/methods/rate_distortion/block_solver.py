"""Entropy-constrained vector quantization under the outputs' curvature: blocks of weights from codebooks that leaves may share.

Below one bit a weight an index must stand for several weights. Codebooks start from weighted k-means; then indices are chosen with
error feedback at what each costs (:mod:`bqjax.methods.rate_distortion.block_feedback`) and codebooks refitted by least squares
under the curvature (:mod:`bqjax.methods.rate_distortion.block_codebook`), in turn. What is left of the tree goes through the
scalar solver at the same lmbda.

References: see :mod:`bqjax.methods.rate_distortion.block_feedback`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bqjax.core.leaves import Clustered, index_dtype
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves
from bqjax.kmeans.codebooks import quantize_codebooks, trimmed_codebooks
from bqjax.kmeans.ecvq import ideal_code_lengths
from bqjax.methods.rate_distortion.block_codebook import BlockLeaf, refitted_codebook, start_codebook
from bqjax.methods.rate_distortion.block_feedback import block_errors, block_stats, compensated_blocks, descended_blocks, to_columns
from bqjax.methods.rate_distortion.blocks import BlockLayout, block_layout
from bqjax.methods.rate_distortion.solver import SolverConfig, bin_and_quant_rd, shifts_taken
from bqjax.sensitivity.curvature import Curvature

__all__ = ["BlockConfig", "PreparedBlocks", "block_quant_rd", "prepare_blocks", "solve_blocks"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """How leaves are cut to blocks.

    Attributes:
      d: weights of a block, neighbours of one output channel; 9 takes whole 3x3 kernels.
      k: codebook entries at most; fewer where entropy makes some not worth their bits.
      passes: assignments and refits in turn.
      sweeps: of coordinate descent after each assignment.
      steps: of conjugate gradients in each refit; 0 keeps the codebook of k-means.
      codebook_bits: of a number of the codebook in the file; blocks are chosen anew after it was rounded. None keeps float32.
    """

    d: int = 9
    k: int = 256
    passes: int = 4
    sweeps: int = 3
    steps: int = 20
    codebook_bits: int | None = 8

    def __post_init__(self) -> None:
        for what, low, high in (("d", 1, 4096), ("k", 1, 65536), ("passes", 1, 1000), ("sweeps", 0, 1000), ("steps", 0, 1000)):
            if not low <= getattr(self, what) <= high:
                raise ValueError(f"{what} must be from {low} to {high}, got {getattr(self, what)}")
        if self.codebook_bits is not None and not 1 <= self.codebook_bits <= 8:
            raise ValueError(f"codebook_bits must be from 1 to 8, or None for float32, got {self.codebook_bits}")


class _Group(NamedTuple):
    """Leaves of one codebook, by name."""

    group: str | None
    setting: BlockConfig
    layouts: dict[str, BlockLayout]
    leaves: dict[str, BlockLeaf]


@dataclass(frozen=True, kw_only=True)
class PreparedBlocks:
    """What does not depend on lmbda: the leaves of each codebook."""

    groups: Sequence[_Group]


def prepare_blocks(
    params: Any, curvature: Curvature, blocks: Sequence[Rule[BlockConfig]], config: SolverConfig | None = None
) -> PreparedBlocks:
    """Checks, lays out and factors the leaves that go to blocks.

    Args:
      params, curvature, blocks, config: see :func:`block_quant_rd`.

    Raises:
      ValueError: see :func:`block_quant_rd`.
    """
    config = config or SolverConfig()
    curvature.check(params)
    leaves, found = named_leaves(params), dict[tuple[str | None, str], _Group]()
    shifts = shifts_taken(params, curvature, None, config)
    for name, rule in select(params, blocks).taken.items():
        setting = rule.setting or BlockConfig()
        if not isinstance(setting, BlockConfig):
            raise ValueError(f"rule {rule.pattern!r}: the setting must be BlockConfig, got {setting!r}")
        check_finite(name, leaves[name])
        if name not in curvature.leaves:
            why = curvature.left.get(name, "was not asked for")
            raise ValueError(f"leaf {name!r} has no curvature (it {why}): blocks need one, skip it by a rule")
        known = curvature[name]
        layout = block_layout(name, known.layout, setting.d)
        stats = block_stats(known, layout, centred=name in shifts, damping=config.damping)
        rows = jnp.asarray(known.layout.to_rows(np.asarray(leaves[name], np.float32)))
        at = (rule.group, "" if rule.group is not None else name)
        group = found.setdefault(at, _Group(rule.group, setting, {}, {}))
        if group.setting != setting:
            raise ValueError(
                f"leaves of group {rule.group!r} share one codebook, and {name!r} has other BlockConfig than the first"
            )
        group.layouts[name], group.leaves[name] = layout, BlockLeaf(to_columns(rows, stats), stats)
    for group in found.values():
        n = sum(layout.numbers.size for layout in group.layouts.values())
        if n < group.setting.k:
            raise ValueError(
                f"leaf {next(iter(group.leaves))!r} has {n} blocks, fewer than the {group.setting.k} entries of its codebook"
            )
    return PreparedBlocks(groups=tuple(found.values()))


def _lengths(chosen: Sequence[jax.Array], k: int) -> jax.Array:
    counts = sum((jnp.bincount(index.reshape(-1), length=k) for index in chosen), jnp.zeros(k, jnp.int32))
    return ideal_code_lengths(counts.astype(jnp.float32), unused=0.5)


def _assigned(
    group: _Group, codebook: jax.Array, bits: jax.Array, lmbda: jax.Array, first: Mapping[str, jax.Array] | None = None
) -> tuple[jax.Array, ...]:
    """Indices of each leaf: by error feedback, or those of ``first``, and then by coordinate descent."""
    found = []
    for name, leaf in group.leaves.items():
        index = compensated_blocks(leaf.columns, leaf.stats, codebook, bits, lmbda) if first is None else first[name]
        if group.setting.sweeps:
            index = descended_blocks(leaf.columns, index, leaf.stats, codebook, bits, lmbda, sweeps=group.setting.sweeps)
        found.append(index)
    return tuple(found)


def _cost(group: _Group, chosen: Sequence[jax.Array], codebook: jax.Array, lmbda: float) -> float:
    leaves = group.leaves.values()
    lost = sum(float(block_errors(leaf.columns, index, codebook, leaf.stats)) for leaf, index in zip(leaves, chosen, strict=True))
    bits = _lengths(chosen, len(codebook))
    return lost + lmbda * sum(float(bits[index].sum()) for index in chosen)


def solve_blocks(prepared: PreparedBlocks, lmbda: float, *, key: jax.Array, dtypes: Mapping[str, Any]) -> dict[str, Clustered]:
    """Blocks and codebooks at a lmbda, by leaf name.

    Args:
      prepared: from :func:`prepare_blocks`.
      lmbda: of a bit.
      key: of the seeds of k-means.
      dtypes: of the leaves.
    """
    out: dict[str, Clustered] = {}
    for i, group in enumerate(prepared.groups):
        out |= _solved(group, lmbda, jax.random.fold_in(key, i), dtypes)
    return out


def _solved(group: _Group, lmbda: float, key: jax.Array, dtypes: Mapping[str, Any]) -> dict[str, Clustered]:
    setting, a_bit = group.setting, jnp.float32(lmbda)
    leaves = tuple(group.leaves.values())
    codebook, first = start_codebook(leaves, setting.k, lmbda, key=key)
    bits, best, least = _lengths(first, setting.k), (tuple(first), codebook), _cost(group, first, codebook, lmbda)
    for _ in range(setting.passes):
        chosen = _assigned(group, codebook, bits, a_bit)
        if setting.steps:
            codebook = refitted_codebook(leaves, chosen, codebook, steps=setting.steps)
        bits = _lengths(chosen, setting.k)
        if (cost := _cost(group, chosen, codebook, lmbda)) < least:
            best, least = (chosen, codebook), cost
    chosen, codebook = best
    made = _clustered(group, chosen, np.asarray(codebook), dtypes)
    if setting.codebook_bits is None:
        return made
    rounded = quantize_codebooks(made, bits=setting.codebook_bits)
    entries = next(iter(rounded.values())).entries()
    # Entries without use are gone, and others have their numbers.
    bits = _lengths([jnp.asarray(leaf.indices) for leaf in rounded.values()], len(entries))
    kept = {
        name: jnp.asarray(layout.from_indices(rounded[name].indices, group.leaves[name].stats.order), jnp.int32)
        for name, layout in group.layouts.items()
    }
    return _clustered(group, _assigned(group, entries, bits, a_bit, kept), None, dtypes, rounded)


def _clustered(
    group: _Group,
    chosen: Sequence[jax.Array],
    codebook: Any,
    dtypes: Mapping[str, Any],
    like: Mapping[str, Clustered] | None = None,
) -> dict[str, Clustered]:
    """Leaves for the file, of the entries that any leaf of the group uses."""
    first = None if like is None else next(iter(like.values()))
    table = np.asarray(codebook if first is None else first.codebook)
    made = {}
    for (name, layout), leaf, index in zip(group.layouts.items(), group.leaves.values(), chosen, strict=True):
        made[name] = Clustered(
            layout.to_indices(index, leaf.stats.order).astype(index_dtype(len(table))),
            table,
            tuple(dtypes[name].shape),
            dtypes[name].dtype,
            layout.axis_order,
            group=group.group,
            scale=None if first is None else first.scale,
            offset=None if first is None else first.offset,
        )
    return trimmed_codebooks(made)


def block_quant_rd(
    params: Any,
    curvature: Curvature,
    *,
    lmbda: float,
    blocks: Sequence[Rule[BlockConfig]],
    key: jax.Array,
    config: SolverConfig | None = None,
    prepared: PreparedBlocks | None = None,
) -> Any:
    """Quantizes leaves in blocks, and all others by single weights, at one Lagrangian weight of storage. Not traceable.

    Args:
      params: parameters, any pytree, concrete.
      curvature: of the outputs in these parameters (:func:`bqjax.sensitivity.curvature.output_curvature`).
      lmbda: of a bit, in the units of half the squared change of the outputs of an example.
      blocks: which leaves go to blocks; a rule's ``setting`` is :class:`BlockConfig`, and leaves of one ``group`` share a codebook.
      key: a ``jax.random`` key, of the seeds of k-means.
      config: damping, vectors and shifts, as for the scalar solver, which solves all other leaves.
      prepared: from :func:`prepare_blocks` of the same arguments, for several lmbdas.

    Returns:
      The tree with :class:`~bqjax.core.leaves.Clustered` leaves, and what the scalar solver makes of the others.

    Raises:
      ValueError: a lmbda that is negative or not finite; a leaf without curvature, or whose blocks would not lie along the inputs
        of one output; leaves of one group that differ in their setting; more entries than blocks; whatever
        :func:`~bqjax.methods.rate_distortion.solver.bin_and_quant_rd` refuses.
    """
    if not (lmbda >= 0 and math.isfinite(lmbda)):
        raise ValueError(f"lmbda must be finite and not negative, got {lmbda}")
    config = config or SolverConfig()
    prepared = prepared if prepared is not None else prepare_blocks(params, curvature, blocks, config)
    solved = solve_blocks(prepared, lmbda, key=key, dtypes=named_leaves(params))
    return bin_and_quant_rd(params, curvature, lmbda=lmbda, config=config, solved=solved)
