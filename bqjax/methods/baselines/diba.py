"""DiBA, factorization of matrices into diagonal x binary x diagonal x binary x diagonal, by an alternating solver.

``W' = D1 B1 D2 B2 D3`` with 0/1 matrices ``B1`` ``[m, k]`` and ``B2`` ``[k, n]``: an entry is ``r_i c_j`` times the sum of those
``d_t`` for which ``B1[i, t]`` and ``B2[t, j]`` are both 1. The middle dimension ``k`` decides size and error. Every step has a
closed form:

* one bit of ``B1``, the same one of all rows at once, with all else fixed: 1 if that leaves less of its row than 0 does;
* ``r_i = <w_i, y_i> / |y_i|^2`` for the rows ``y_i`` of ``B1 D2 B2 D3``; columns and ``B2`` likewise, transposed;
* ``d``: least squares over the rank-one terms ``(r * B1[:, t]) (B2[t] * c)^T``.

None of them raises the squared error, up to rounding.

Reference:
  Ono, "DiBA: Diagonal and binary matrix approximation for neural network weight compression", 2026 (arXiv 2605.05994).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bqjax.core.leaves import Factored, mask_zeros
from bqjax.core.leaves.factored import MIDDLE_TOTAL
from bqjax.core.rules import Rule, select
from bqjax.core.tree import check_finite, named_leaves, replace
from bqjax.kmeans.fixed_levels import pruned

__all__ = ["DiBAConfig", "diba_factorize"]

# Terms that start together on what the terms before them left over, and rounds until the next ones do.
_TOGETHER, _START_ROUNDS = 16, 5
# Bits of a row tested one after the other between products of whole matrices.
_BLOCK = 16
_MAX_MIDDLE = 2**16

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True, kw_only=True)
class DiBAConfig:
    """How large the binary matrices are, and how long they are improved.

    Attributes:
      bits: entries of both binary matrices per weight: the middle dimension is ``bits * m n / (m + n)``, rounded, at least 1.
      middle: the middle dimension itself, up to 65,536; None: by ``bits``.
      rounds: each updates ``B1``, ``D1``, ``B2``, ``D3`` and ``D2`` once.
    """

    bits: float = 1.0
    middle: int | None = None
    rounds: int = 20

    def __post_init__(self) -> None:
        if not (self.bits > 0 and math.isfinite(self.bits)):
            raise ValueError(f"bits must be positive and finite, got {self.bits!r}")
        for what, value, low, high in (("middle", self.middle, 1, _MAX_MIDDLE), ("rounds", self.rounds, 0, 10**6)):
            if what == "middle" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
                raise ValueError(f"{what} must be an integer from {low} to {high}, got {value!r}")

    def dimension(self, m: int, n: int) -> int:
        """The middle dimension of an ``[m, n]`` matrix."""
        found = max(1, round(self.bits * m * n / max(m + n, 1))) if self.middle is None else int(self.middle)
        if found > _MAX_MIDDLE:
            raise ValueError(f"bits {self.bits} of a {m} x {n} matrix need a middle dimension of {found}, above {_MAX_MIDDLE}")
        return found


def diba_factorize(
    params: Any, rules: Sequence[Rule[DiBAConfig]] | None = None, *, key: jax.Array, config: DiBAConfig | None = None
) -> Any:
    """Diagonal-binary factorization: replaces matrices by products of diagonal and binary ones.

    ``min |W - D1 B1 D2 B2 D3|^2``. Terms first start by sixteens on what those before leave over, from random bits; then all
    factors are updated in turn, as the module says. The middle diagonal is rounded to whole numbers of 15
    bits at most, and the outer ones are fitted once more. It is a local search: it does not always find a matrix of this form
    again.

    Args:
      params: pytree of arrays.
      rules: which leaves to take, as :func:`bqjax.core.rules.select` reads them; ``setting`` is a config. Without rules,
        floating-point leaves of two or more dimensions are taken; with more than two, as the matrix of the last axis against
        all others.
      key: a JAX random key, for the first bits.
      config: for leaves whose rule has no setting; None is ``DiBAConfig()``.

    Returns:
      The tree with a :class:`bqjax.core.leaves.Factored` for every chosen leaf, diagonals in float32; of pruned leaves, of which
      5 % or more of the weights are zero, within a :class:`bqjax.core.leaves.Masked` (concrete parameters only). Traceable.

    Raises:
      ValueError: leaves of fewer than two dimensions or none of whose entries exist, integer leaves, rules with groups, a middle
        dimension above 65,536, NaN or infinite weights (concrete ones only); whatever :func:`bqjax.core.rules.select` refuses. The
        message names the leaf.

    Example:
      >>> w = np.outer(np.float32([1, -2, 0, 3]), np.float32([0.5, 4, -1]))
      >>> leaf = diba_factorize({"w": w}, key=jax.random.key(0), config=DiBAConfig(middle=1))["w"]
      >>> bool(np.allclose(leaf.decode(), w, rtol=1e-5)), leaf.left.shape, leaf.right.shape
      (True, (4, 1), (1, 3))
    """
    leaves, taken = named_leaves(params), select(params, rules).taken
    new: dict[str, Any] = {}
    for i, (name, rule) in enumerate(taken.items()):
        leaf = leaves[name]
        if rule.group is not None:
            raise ValueError(f"leaf {name!r} is in group {rule.group!r}, but factors are not shared: take group out of the rule")
        if rule.setting is not None and not isinstance(rule.setting, DiBAConfig):
            raise ValueError(f"rule {rule.pattern!r}: the setting must be a DiBAConfig, got {rule.setting!r}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"leaf {name!r} is of integers, {leaf.dtype}: skip it, Rule({name!r}, skip=True)")
        if leaf.ndim < 2 or not leaf.size:
            raise ValueError(f"leaf {name!r} of shape {leaf.shape} is no matrix: skip it, Rule({name!r}, skip=True)")
        check_finite(name, leaf)
        setting = rule.setting or config or DiBAConfig()
        m, n = math.prod(leaf.shape[:-1]), leaf.shape[-1]
        try:
            k = setting.dimension(m, n)
        except ValueError as error:
            raise ValueError(f"leaf {name!r}: {error}") from error
        matrix = jnp.asarray(leaf).astype(jnp.float32).reshape(m, n)
        rows, left, middle, right, columns = _factors(matrix, jax.random.fold_in(key, i), k, int(setting.rounds))
        made = Factored(rows, left, middle, right, columns, leaf.shape, leaf.dtype)
        new[name] = made if (kept := pruned(leaf)) is None else mask_zeros(made, kept)
    return replace(params, new)


class _Factors(NamedTuple):
    rows: jax.Array  # [m]
    left: jax.Array  # [m, k] float32, 0 or 1
    middle: jax.Array  # [k]
    right: jax.Array  # [k, n] float32, 0 or 1
    columns: jax.Array  # [n]


@functools.partial(jax.jit, static_argnames="k")
def _factors(w: jax.Array, key: jax.Array, k: int, rounds: Any) -> tuple[jax.Array, ...]:
    """Rows, left, middle, right and columns as :class:`bqjax.core.leaves.Factored` has them, of ``[m, n]`` float32."""
    largest = jnp.abs(w).max()
    # A power of two: scaling rounds nothing, and squares neither overflow nor vanish.
    scale = jnp.exp2(jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1))))
    w = w / scale
    factors = _start(w, key, k)
    factors = lax.fori_loop(0, rounds, lambda _, factors: _round(w, factors), factors)
    size = jnp.abs(factors.middle)
    # Rounding adds half a unit to each at most.
    unit = jnp.minimum((MIDDLE_TOTAL - k) / jnp.maximum(size.sum(), 1e-30), (2**15 - 1) / jnp.maximum(size.max(), 1e-30))
    whole = jnp.round(factors.middle * unit)
    factors = factors._replace(middle=whole, columns=factors.columns / unit)
    factors = factors._replace(rows=_scales(w, factors.left, _terms(factors), factors.rows))
    turned = _turned(factors)
    columns = _scales(w.T, turned.left, _terms(turned), turned.rows)
    small = jnp.uint8
    return factors.rows * scale, factors.left.astype(small), whole.astype(jnp.int16), factors.right.astype(small), columns


def _turned(f: _Factors) -> _Factors:
    """The factors of the transposed matrix."""
    return _Factors(f.columns, f.right.T, f.middle, f.left.T, f.rows)


def _terms(f: _Factors) -> jax.Array:
    """``[k, n]``: what a set bit of the left matrix adds to its row, in units of the row's scale."""
    return f.middle[:, None] * f.right * f.columns[None]


def _scales(w: jax.Array, bits: jax.Array, terms: jax.Array, before: jax.Array) -> jax.Array:
    """``[m]`` least-squares factors of the rows ``bits @ terms``; of empty ones, as before."""
    product, gram = _matmul(w, terms.T), _matmul(terms, terms.T)
    along = (bits * product).sum(1)
    square = (_matmul(bits, gram) * bits).sum(1)
    return jnp.where(square > 0, along / jnp.where(square > 0, square, 1), before)


def _bits(w: jax.Array, bits: jax.Array, scales: jax.Array, terms: jax.Array) -> jax.Array:
    """``[m, k]``: each bit tested once, the first of all rows first, with what the tests before it chose."""
    k = bits.shape[1]
    block = min(_BLOCK, k)
    # Terms of zero behind the end: their bits stay 0. Bits with the long axis last.
    bits, terms = jnp.pad(bits.T, ((0, -k % block), (0, 0))), jnp.pad(terms, ((0, -k % block), (0, 0)))
    gram = _matmul(terms, terms.T)
    product, square = _matmul(terms, w.T) * scales[None], jnp.square(scales)

    def test_block(i: Any, bits: jax.Array) -> jax.Array:
        gram_block = lax.dynamic_slice_in_dim(gram, i * block, block)
        along = lax.dynamic_slice_in_dim(product, i * block, block)
        own = lax.dynamic_slice_in_dim(gram_block, i * block, block, 1)

        def test(j: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            inner, chosen = state
            others = inner[j] - chosen[j] * own[j, j]
            # |e - s t|^2 < |e|^2 for what the others leave, e.
            new = (2 * (along[j] - square * others) > square * own[j, j]).astype(bits.dtype)
            return inner + own[j][:, None] * (new - chosen[j])[None], chosen.at[j].set(new)

        # Products of each term of the block with the rows as they are.
        start = _matmul(gram_block, bits), lax.dynamic_slice_in_dim(bits, i * block, block)
        return lax.dynamic_update_slice_in_dim(bits, lax.fori_loop(0, block, test, start)[1], i * block, 0)

    return lax.fori_loop(0, terms.shape[0] // block, test_block, bits)[:k].T


def _middle(w: jax.Array, f: _Factors) -> jax.Array:
    """``[k]`` least-squares factors of the rank-one terms, near those before where several sets are as good."""
    left, right = f.rows[:, None] * f.left, f.right * f.columns[None]
    normal = _matmul(left.T, left) * _matmul(right, right.T)
    rest = (_matmul(left.T, w) * right).sum(1) - _matmul(normal, f.middle)
    ridge = 1e-5 * jnp.maximum(jnp.diagonal(normal).mean(), 1e-20)
    # A penalty on the step, not on its end: whatever its size, the error falls.
    damped = normal + ridge * jnp.eye(normal.shape[0], dtype=normal.dtype)
    return f.middle + jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), rest)


def _round(w: jax.Array, f: _Factors, outer: bool = True) -> _Factors:
    """Every factor once; the outer diagonals with ``outer`` only."""
    for turned in (False, True):
        matrix, g = (w.T, _turned(f)) if turned else (w, f)
        terms = _terms(g)
        g = g._replace(left=_bits(matrix, g.left, g.rows, terms))
        if outer:
            g = g._replace(rows=_scales(matrix, g.left, terms, g.rows))
        f = _turned(g) if turned else g
    return f._replace(middle=_middle(w, f))


def _start(w: jax.Array, key: jax.Array, k: int) -> _Factors:
    """Factors of terms that start some at a time on what is left over, under fixed outer diagonals."""
    m, n = w.shape
    together = min(_TOGETHER, k)
    starts = -(-k // together)
    rows, columns = jnp.sqrt(jnp.square(w).mean(1)), jnp.sqrt(jnp.square(w).mean(0))
    whole = jnp.sqrt(jnp.square(w).mean())
    columns = columns / jnp.where(whole > 0, whole, 1)
    # Signs of the rank-one matrix that is nearest in sign, about: bits cannot turn a row over by themselves.
    sign = jnp.where(jax.random.bernoulli(key, shape=(n,)), 1.0, -1.0)
    for _ in range(8):
        turn = jnp.where(_matmul(w, sign * columns) >= 0, 1.0, -1.0)
        sign = jnp.where(_matmul(turn * rows, w) >= 0, 1.0, -1.0)
    rows, columns = rows * turn, columns * sign
    # Of both signs, and so small that at first each term goes its own way: a bit is set where it points along what is left.
    middle = jnp.where(lax.iota(jnp.int32, together) % 2 == 0, 1e-2, -1e-2)

    def start(rest: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        random = jax.random.bernoulli(key, shape=(together, n)).astype(w.dtype)
        f = _Factors(rows, jnp.zeros((m, together), w.dtype), middle, random, columns)
        f = lax.fori_loop(0, _START_ROUNDS, lambda _, f: _round(rest, f, outer=False), f)
        rest = rest - rows[:, None] * _matmul(f.left, _terms(f))
        return rest, (f.left.astype(jnp.uint8), f.middle, f.right.astype(jnp.uint8))

    _, (left, middles, right) = lax.scan(start, w, jax.random.split(jax.random.fold_in(key, 1), starts))
    left = left.transpose(1, 0, 2).reshape(m, -1)[:, :k].astype(w.dtype)
    right = right.reshape(-1, n)[:k].astype(w.dtype)
    return _Factors(rows, left, middles.reshape(-1)[:k], right, columns)
