"""CIFAR ResNets: their shapes, a block against NumPy, weights that fit or do not, and the published right answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.adapters.torch import torch_name
from bqjax.core.tree import named_leaves
from bqjax.models.resnet import CifarResNet, ResidualBlock, load_resnet, resnet_inputs
from train.tasks.cifar import resnet_task


def abstract(depth, classes=10):
    return nnx.eval_shape(lambda: CifarResNet(depth, classes, rngs=nnx.Rngs(0)))


def random_tensors(model, seed=0):
    """Weights for all parameters and statistics of a model, in PyTorch's names and layout."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, leaf in named_leaves(nnx.to_pure_dict(nnx.state(model))).items():
        shape = leaf.shape if len(leaf.shape) < 2 else (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2])
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:])))
        tensors[torch_name(name)] = (np.abs(rng.normal(size=shape)) if name.endswith("var") else rng.normal(size=shape)) * scale
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def test_parameters():
    for depth, total in ((20, 269_722), (56, 853_018)):
        sizes = {name: leaf.size for name, leaf in named_leaves(nnx_params(abstract(depth))).items()}
        assert sum(sizes.values()) == total
    assert list(sizes)[:2] == ["bn1/bias", "bn1/scale"]
    assert {"conv1/kernel", "layer1/0/conv1/kernel", "layer3/8/bn2/scale", "linear/kernel", "linear/bias"} <= set(sizes)
    assert sizes["layer3/0/conv1/kernel"] == 9 * 32 * 64


@pytest.mark.parametrize("depth", [2, 19, 0, -4])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 2 .*, got {depth}$"):
        CifarResNet(depth, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("cin", "cout"), [(4, 2), (4, 7)])
def test_channels_that_a_shortcut_cannot_add(cin, cout):
    with pytest.raises(ValueError, match=f"cin={cin} and cout={cout}"):
        ResidualBlock(cin, cout, rngs=nnx.Rngs(0))


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    block = ResidualBlock(4, 8, stride=2, rngs=nnx.Rngs(0))
    block.bn2 = jnp.zeros_like  # leaves the shortcut alone
    x = np.random.default_rng(0).uniform(size=(2, 5, 6, 4)).astype(np.float32)
    expected = np.zeros((2, 3, 3, 8), np.float32)
    expected[..., 2:6] = x[:, ::2, ::2]
    np.testing.assert_array_equal(nnx.view(block, use_running_average=True)(jnp.asarray(x)), expected)


def test_convolutions_of_stride_2_pad_on_both_sides():
    """With "SAME" the filter's middle would sit on odd pixels of an even image."""
    block = ResidualBlock(1, 1, stride=2, rngs=nnx.Rngs(0))
    block.conv1.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert block.conv1(x)[0, :, :, 0].tolist() == [[0, 2], [8, 10]]


def test_loads_depth_classes_and_values(tmp_path):
    tensors = random_tensors(abstract(8, 7)) | {"bn1.num_batches_tracked": np.array(3)}
    save_file(tensors, tmp_path / "w.safetensors")
    model = load_resnet(tmp_path / "w.safetensors")
    assert (model.depth, model.linear.out_features) == (8, 7)
    kernel = nnx_params(model)["layer2"][0]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["layer2.0.conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(model.layer3[0].bn2.var[...], tensors["layer3.0.bn2.running_var"])

    # In evaluation mode as it comes: an image's logits do not depend on the others of its batch.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 32, 32, 3)), jnp.float32)
    logits = jax.jit(nnx_apply(model))(nnx_params(model), x)
    assert logits.shape == (3, 7)
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(x)[:1], logits[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.0.bn1.running_mean": None}, r"w\.safetensors does not .*: layer2\.0\.bn1\.running_mean is missing"),
        (
            {"layer2.1.conv1.weight": np.zeros((32, 32, 3, 3), np.float32)},
            r"layer2\.1\.conv1\.weight \(32, .*\) has no place",
        ),
        ({"conv1.weight": np.zeros((3, 3, 3, 16), np.float32)}, r": conv1\.weight has shape \(3, 3, 3, 16\)"),
        ({"linear.bias": np.zeros(9, np.float32)}, r"linear\.weight has shape \(10, 64\) .* needs \(64, 9\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    tensors = {name: tensor for name, tensor in (random_tensors(abstract(8)) | change).items() if tensor is not None}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=message):
        load_resnet(tmp_path / "w.safetensors")


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.safetensors"):
        load_resnet(tmp_path / "none.safetensors")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors does not fit .*conv1\.weight is missing.*; weight \(3,\) has"):
        load_resnet(tmp_path / "other.safetensors")


def test_inputs():
    images = np.array([0, 128, 255] * 3, np.uint8).reshape(1, 1, 3, 3)
    expected = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(resnet_inputs(images), expected, rtol=1e-5)
    assert resnet_inputs(images).dtype == np.float32
    for wrong in (images.astype(np.float32), images[0], images[..., :1]):
        with pytest.raises(ValueError, match=r"must be \[n, h, w, 3\] uint8"):
            resnet_inputs(wrong)


def totals(task, split):
    score = jax.jit(task.score)
    outcomes = [score(task.params, batch) for batch in getattr(task, split)]
    count = sum(float(count) for _, count in outcomes)
    return count, sum(float(s["accuracy"]) for s, _ in outcomes), sum(float(s["loss"]) for s, _ in outcomes) / count


def test_task_without_data(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*resnet20_cifar10\.safetensors"):
        resnet_task(tmp_path)


@pytest.mark.slow
@pytest.mark.data
def test_resnet20_gives_the_published_answers(data_dir):
    task = resnet_task(data_dir)
    assert (task.calibration_name, task.test_name) == ("1,000 CIFAR-10 training images", "10,000 CIFAR-10 test images")
    n, right, loss = totals(task, "test")
    assert n == 10_000
    assert abs(right - 9173) <= 2
    assert loss == pytest.approx(0.37266, abs=2e-4)
    n, right, _ = totals(task, "calibration")
    assert n == 1000
    assert right >= 990  # it was trained on them


@pytest.mark.slow
@pytest.mark.data
def test_resnet56_on_a_part_of_the_test_set(data_dir):
    task = resnet_task(data_dir, depth=56, n_calibration=1, n_test=1000)
    n, right, loss = totals(task, "test")
    assert n == 1000
    # Counted once on this subset, where all 10,000 gave 9339.
    assert abs(right - 930) <= 1
    assert loss == pytest.approx(0.32242, abs=1e-3)


@pytest.mark.slow  # reads CIFAR-10
@pytest.mark.data
def test_subsets_are_fixed_and_nested(data_dir, tmp_path):
    small, large = (resnet_task(data_dir, n_calibration=n, n_test=n + 1) for n in (2, 5))
    for split in ("calibration", "test"):
        a, b = getattr(small, split)[0], getattr(large, split)[0]
        np.testing.assert_array_equal(a["inputs"][:2], b["inputs"][:2])
        np.testing.assert_array_equal(a["labels"][:2], b["labels"][:2])
    assert float(large.test[0]["mask"].sum()) == 6
    for arguments in ({"n_calibration": 0}, {"n_calibration": 50_001}, {"n_test": 10_001}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be from 1 to "):
            resnet_task(data_dir, **arguments)


@pytest.mark.data
def test_a_file_of_another_depth(data_dir, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet56_cifar10.safetensors").symlink_to(
        (data_dir / "weights" / "resnet20_cifar10.safetensors").resolve()
    )
    with pytest.raises(ValueError, match="holds a network of depth 20, not 56"):
        resnet_task(tmp_path, depth=56)
