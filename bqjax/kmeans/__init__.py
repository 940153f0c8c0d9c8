"""k-means and entropy-constrained quantization of weights: scalars and blocks, weighted, in memory linear in the weights."""

from bqjax.kmeans.assignment import nearest_block
from bqjax.kmeans.codebooks import codebook_gradients, quantize_codebooks, rounded_codebooks, with_codebooks
from bqjax.kmeans.ecvq import ecvq_refine, ecvq_solve
from bqjax.kmeans.scalar import ScalarKMeans, kmeans_scalar, nearest
from bqjax.kmeans.vector import VectorKMeans, kmeans_vector

__all__ = [
    "ScalarKMeans",
    "VectorKMeans",
    "codebook_gradients",
    "ecvq_refine",
    "ecvq_solve",
    "kmeans_scalar",
    "kmeans_vector",
    "nearest",
    "nearest_block",
    "quantize_codebooks",
    "rounded_codebooks",
    "with_codebooks",
]
