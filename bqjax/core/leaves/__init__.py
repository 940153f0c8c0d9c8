"""Compressed leaves: small structs that stand in a parameter pytree where an array stood.

Each is a registered dataclass (array fields are traced, the rest is static), so a compressed tree goes through
``jax.jit``, ``jax.vmap`` and ``jax.tree.map`` like any other, and :func:`decode` may run inside a network's
forward pass. Constructors do not check their fields, because JAX rebuilds these structs with tracers in them;
``validate()`` does, and everything that makes or reads a leaf calls it.

==================  ======================================================================
:class:`Clustered`  a codebook and an index for every block of weights
:class:`Affine`     integer codes on a line, with scales and zero points
:class:`Residual`   sums of clustered leaves, each for what those before it left over
:class:`Factored`   a matrix as the product of diagonal and binary matrices
:class:`Masked`     one of these, and which of its weights are exactly zero
:class:`Scaled`     a clustered leaf in units that differ from slice to slice by powers of two
==================  ======================================================================
"""

from bqjax.core.leaves.affine import Affine
from bqjax.core.leaves.base import CompressedLeaf, Stream, decode, index_dtype, is_compressed, round_to
from bqjax.core.leaves.clustered import Clustered, trim_codebook
from bqjax.core.leaves.factored import Factored
from bqjax.core.leaves.masked import Masked, mask_zeros
from bqjax.core.leaves.residual import Residual
from bqjax.core.leaves.scaled import Scaled, exponents_of, slice_order
from bqjax.core.leaves.size import bits

__all__ = [
    "Affine",
    "Clustered",
    "CompressedLeaf",
    "Factored",
    "Masked",
    "Residual",
    "Scaled",
    "Stream",
    "bits",
    "decode",
    "exponents_of",
    "index_dtype",
    "is_compressed",
    "mask_zeros",
    "round_to",
    "slice_order",
    "trim_codebook",
]
