"""Networks for 28 x 28 images: sizes, and pooling against Flax's."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from bqjax.adapters.flax import nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.mnist import MnistConv, _pooled


@pytest.mark.parametrize(("name", "weights"), [("mnist_5x5", 3_274_634), ("mnist_large", 3_131_230), ("mnist_small", 206_922)])
def test_sizes(name, weights):
    model = nnx.eval_shape(lambda: MnistConv(name, rngs=nnx.Rngs(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in named_leaves(nnx_params(model)).values()) == weights


def test_pooling_is_that_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    np.testing.assert_array_equal(_pooled(x), nnx.max_pool(x, (2, 2), strides=(2, 2)))


def test_an_unknown_name():
    with pytest.raises(ValueError, match="no network 'lenet': there are mnist_5x5, "):
        MnistConv("lenet", rngs=nnx.Rngs(0))
