"""k-means of weights: scalars in one dimension, blocks in ``d``, with weights, entropy costs and memory by tiles."""

from bqjax.kmeans.assignment import nearest_block
from bqjax.kmeans.codebooks import codebook_gradients, quantize_codebooks, with_codebooks
from bqjax.kmeans.scalar import ScalarKMeans, kmeans_scalar, nearest
from bqjax.kmeans.vector import VectorKMeans, kmeans_vector

__all__ = [
    "ScalarKMeans",
    "VectorKMeans",
    "codebook_gradients",
    "kmeans_scalar",
    "kmeans_vector",
    "nearest",
    "nearest_block",
    "quantize_codebooks",
    "with_codebooks",
]
