"""Parametrizations of weights in training: float, pruned, soft k-means, quantized, clustered, or by trained codebooks.

A scheme stands between the numbers that an optimiser moves and the weights that the network sees. :mod:`train.fit` trains
through any of them in the same way, so that only the scheme differs between two results. Weights are dicts by leaf name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bqjax.core.leaves import Clustered, decode, index_dtype
from bqjax.core.rules import Rule
from bqjax.kmeans.codebooks import codebooks, rounded_codebooks, with_codebooks
from bqjax.methods.baselines.deep_compression import share_nonzero
from bqjax.methods.baselines.dkm import DKMConfig, dkm_forward, dkm_harden, dkm_start
from bqjax.methods.baselines.pruning import gradual_pruning
from bqjax.methods.baselines.ptq import PTQConfig, quantize
from bqjax.methods.baselines.weight_sharing import kmeans_share
from bqjax.quantizers import QuantizerConfig, fake_quantize_weights, rounded_weights, start_weights
from train.image import clustering
from train.image.config import GWKPhase
from train.image.transfer import Pruning

__all__ = ["EWGS", "Clusters", "Codebooks", "Plain", "Scheme", "SoftKMeans"]

Weights = dict[str, Any]
Numbers = dict[str, Any]


class Scheme:
    """A way to train weights of which a file needs little. This one leaves them as they are; others override what differs.

    ``numbers`` is what the optimiser moves, a dict of pytrees whose first keys are ``"weights"``, ``"codebooks"`` or
    ``"quantizers"``; ``state`` is what else is carried from step to step.
    """

    @property
    def by_epoch(self) -> bool:
        """Whether weights are replaced after each epoch, by :meth:`replaced`."""
        return False

    def start(self, tree: Weights, key: jax.Array) -> tuple[Numbers, Any]:
        """``(numbers, state)`` to start from: float weights, or the compressed leaves that an earlier scheme ended in."""
        return {"weights": decode(tree)}, None

    def seen(self, numbers: Numbers, state: Any, progress: jax.Array) -> tuple[Weights, Any]:
        """What the network computes with, differentiable in ``numbers``, and the new state. ``progress`` goes from 0 to 1."""
        return numbers["weights"], state

    def follow(self, numbers: Numbers, state: Any, grads: Numbers, progress: jax.Array) -> Any:
        """The state after the optimiser's step, from the new numbers and the gradients of the old ones."""
        return state

    def replaced(self, numbers: Numbers, state: Any, grads: Numbers, key: jax.Array) -> tuple[Numbers, Any]:
        """``(numbers, state)`` after an epoch, where the scheme is one by epoch, from gradients of its last batch."""
        return numbers, state

    def optimizer(self, optimizer: optax.GradientTransformation, total: int) -> optax.GradientTransformation:
        """The optimiser of ``{"scheme": numbers, ...}`` over ``total`` steps."""
        return optimizer

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        """Leaves for the file."""
        return numbers["weights"]


@dataclass(frozen=True, kw_only=True)
class Plain(Scheme):
    """Float weights, which may be pruned step by step; stored by a method that does not train.

    Attributes:
      pruning: which weights become zero, and when; its ``leaves`` are not looked at, all leaves are pruned.
      store: ``None``: float32; an integer: that many values by k-means, zero among them where leaves are pruned; else integers on
        a line.
    """

    pruning: Pruning | None = None
    store: PTQConfig | int | None = None

    def optimizer(self, optimizer: optax.GradientTransformation, total: int) -> optax.GradientTransformation:
        if self.pruning is None:
            return optimizer
        return optax.chain(optimizer, gradual_pruning(self.pruning.schedule(total), [Rule[float]("scheme/weights/*")]))

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        weights = numbers["weights"]
        if self.store is None:
            return weights
        if isinstance(self.store, PTQConfig):
            return quantize(weights, config=self.store)
        return shared(weights, self.store)


def shared(weights: Weights, k: int) -> Weights:
    """k-means of each leaf; where weights are zero, zero is one of the ``k`` values and they keep it."""
    pruned = {name: w for name, w in weights.items() if bool((jnp.asarray(w) == 0).any())}
    whole = {name: w for name, w in weights.items() if name not in pruned}
    return (share_nonzero(pruned, k) if pruned else {}) | (kmeans_share(whole, k) if whole else {})


@dataclass(frozen=True, kw_only=True)
class SoftKMeans(Scheme):
    """DKM, and with ``config.implicit`` IDKM (see :mod:`bqjax.methods.baselines.dkm`)."""

    config: DKMConfig = field(default_factory=DKMConfig)

    def start(self, tree: Weights, key: jax.Array) -> tuple[Numbers, Any]:
        weights = decode(tree)
        return {"weights": weights}, dkm_start(weights, key=key, config=self.config)

    def seen(self, numbers: Numbers, state: Any, progress: jax.Array) -> tuple[Weights, Any]:
        return dkm_forward(numbers["weights"], state, config=self.config)

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        return dkm_harden(numbers["weights"], state, config=self.config)


@dataclass(frozen=True, kw_only=True)
class Clusters(Scheme):
    """Gradient-weighted k-means; ``weighting="none"`` is product quantization.

    By ``phase.schedule`` in every step, on the reconstruction (see :mod:`bqjax.methods.gwk.training`), or after every epoch, which
    weights are then replaced by. The phase's epochs are not looked at.
    """

    phase: GWKPhase

    @property
    def by_epoch(self) -> bool:
        return self.phase.schedule == "epoch"

    def start(self, tree: Weights, key: jax.Array) -> tuple[Numbers, Any]:
        weights = decode(tree)
        return {"weights": weights}, clustering.cluster(weights, None, tuple(weights), self.phase, key)

    def seen(self, numbers: Numbers, state: Any, progress: jax.Array) -> tuple[Weights, Any]:
        weights = numbers["weights"]
        return weights if self.by_epoch else clustering.seen(weights, state), state

    def follow(self, numbers: Numbers, state: Any, grads: Numbers, progress: jax.Array) -> Any:
        return state if self.by_epoch else clustering.follow(state, numbers["weights"], grads["weights"], self.phase, progress)

    def replaced(self, numbers: Numbers, state: Any, grads: Numbers, key: jax.Array) -> tuple[Numbers, Any]:
        weights = numbers["weights"]
        anew = clustering.cluster(weights, grads["weights"], tuple(weights), self.phase, key, start=state)
        return {"weights": clustering.replaced(weights, anew)}, anew

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        return dict(state.tree)


@dataclass(frozen=True, kw_only=True)
class EWGS(Scheme):
    """Learnable intervals with element-wise gradient scaling (see :mod:`bqjax.quantizers`): ``2^weight_bits`` even levels a leaf.

    Inputs of layers stay float. The output scale starts where it leaves the least squared error of the weights.
    """

    config: QuantizerConfig

    def __post_init__(self) -> None:
        bits = self.config.weight_bits
        if bits is None or bits > 8 or self.config.activation_bits is not None or self.config.rounding == "irnet":
            raise ValueError(
                "the scheme quantizes weights, to 1 to 8 bits in an interval, and no activations: give weight_bits, "
                f"activation_bits=None and a rounding other than irnet, got {self.config}"
            )

    def start(self, tree: Weights, key: jax.Array) -> tuple[Numbers, Any]:
        weights, scalars = decode(tree), {}
        for name, w in weights.items():
            start = start_weights(w, self.config)
            unit = fake_quantize_weights(w, start | {"scale": jnp.ones(())}, self.config)
            scalars[name] = start | {"scale": (w * unit).sum() / jnp.square(unit).sum()}
        return {"weights": weights, "quantizers": scalars}, None

    def seen(self, numbers: Numbers, state: Any, progress: jax.Array) -> tuple[Weights, Any]:
        scalars = numbers["quantizers"]
        weights = numbers["weights"].items()
        return {name: fake_quantize_weights(w, scalars[name], self.config, progress=progress) for name, w in weights}, state

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        steps, leaves = 2 ** (self.config.weight_bits or 8) - 1, {}
        for name, w in numbers["weights"].items():
            scalars = numbers["quantizers"][name]
            codes = np.rint(np.asarray(rounded_weights(w, scalars, self.config), np.float32) * steps)
            entries = np.float32(scalars["scale"]) * np.linspace(-1, 1, steps + 1, dtype=np.float32)
            leaves[name] = Clustered(codes.astype(index_dtype(steps + 1)).ravel(), entries[:, None], np.shape(w), w.dtype)
        return leaves


@dataclass(frozen=True, kw_only=True)
class Codebooks(Scheme):
    """Indices are fixed and codebooks are trained, by the sum of the gradients of all weights of an entry.

    Attributes:
      k: values of a leaf, found by k-means; zeros of a pruned leaf are one of them (trained quantization of Deep Compression).
        None: the codebooks that the scheme before it ended in.
      keep_zeros: coordinates of codebooks that are zero stay zero.
      bits: of a number of a codebook, which the network sees rounded; None leaves them as they are.
    """

    k: int | None = None
    keep_zeros: bool = True
    bits: int | None = None

    def start(self, tree: Weights, key: jax.Array) -> tuple[Numbers, Any]:
        if self.k is not None:
            tree = shared(decode(tree), self.k)
        if plain := [name for name, leaf in tree.items() if not isinstance(leaf, Clustered)]:
            raise ValueError(
                f"leaf {plain[0]!r} has no codebook to train: give k, or put the scheme behind one that ends in codebooks"
            )
        return {"codebooks": codebooks(tree)}, tree

    def seen(self, numbers: Numbers, state: Any, progress: jax.Array) -> tuple[Weights, Any]:
        return decode(self.finish(numbers, state)), state

    def finish(self, numbers: Numbers, state: Any) -> Weights:
        books = numbers["codebooks"]
        if self.keep_zeros:
            entries = codebooks(state)
            books = {name: jnp.where(entries[name] == 0, 0, new) for name, new in books.items()}
        return with_codebooks(state, rounded_codebooks(books, bits=self.bits))
