"""Integer leaves and the container's coding of them."""

from __future__ import annotations

import numpy as np
import pytest

from bqjax import codec
from bqjax.bin_and_quant import bin_and_quant, gaussian_bins
from bqjax.leaves import decode
from bqjax.related.weight_sharing import kmeans_share
from bqjax.tflite_container import exact, load_model
from bqjax.tree import Rule


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integer_leaves_are_binned_where_a_rule_names_them(dtype, tmp_path):
    limits = np.iinfo(dtype)
    codes = np.random.default_rng(0).integers(limits.min, limits.max + 1, (8, 16)).astype(dtype)
    assert not gaussian_bins({"w": codes})
    rules = [Rule("w")]
    for tree in (bin_and_quant({"w": codes}, gaussian_bins({"w": codes}, 4, rules)), kmeans_share({"w": codes}, 4, rules)):
        assert tree["w"].codebook.dtype == dtype and decode(tree)["w"].dtype == dtype
        codec.save(tmp_path / "w.bq.safetensors", tree, force=True)
        np.testing.assert_array_equal(decode(codec.load(tmp_path / "w.bq.safetensors"))["w"], decode(tree)["w"])


def test_exact_decodes_to_the_codes():
    codes = np.int8([[-128, 127], [0, 0]])
    np.testing.assert_array_equal(exact(codes).decode(), codes)


def test_other_files_are_not_taken_for_a_model(tmp_path):
    codec.save(tmp_path / "w.bq.safetensors", {"w": exact(np.int8([[1, 2]]))})
    with pytest.raises(ValueError, match=r"not a \.tflite model"):
        load_model(tmp_path / "w.bq.safetensors")
