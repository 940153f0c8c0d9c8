"""Makes trained neural networks small, in JAX, and measures what that costs."""

from bqjax._version import __version__
from bqjax.leaves import Affine, Clustered, bits, decode
from bqjax.tree import Rule

__all__ = ["Affine", "Clustered", "Rule", "__version__", "bits", "decode"]
