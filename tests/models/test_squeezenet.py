"""SqueezeNet 1.1 against a network written out with lax, and the published weights on real images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from safetensors.numpy import save_file

from bqjax.adapters.flax import nnx_apply, nnx_params
from bqjax.core.tree import named_leaves
from bqjax.models.squeezenet import IMAGE_SIZE, SqueezeNet, load_squeezenet, squeezenet_inputs
from train.tasks.imagenet_sample import sample_images, squeezenet_task


def abstract(classes=1000):
    return nnx.eval_shape(lambda: SqueezeNet(classes, rngs=nnx.Rngs(0)))


def random_tensors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {name: leaf.shape for name, leaf in named_leaves(nnx_params(abstract())).items()}
    scale = {name: 1 / np.sqrt(max(1, np.prod(shape[:-1]))) for name, shape in shapes.items()}
    return {name: (rng.normal(size=shape) * scale[name]).astype(np.float32) for name, shape in shapes.items()}


def test_parameters():
    sizes = {name: leaf.size for name, leaf in named_leaves(nnx_params(abstract())).items()}
    assert sum(sizes.values()) == 1_235_496
    assert sizes["conv10/kernel"] + sizes["conv10/bias"] == 513_000


def written_out(t, x):
    def conv(x, name, stride=1, padding="SAME"):
        y = lax.conv_general_dilated(x, t[f"{name}/kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.maximum(y + t[f"{name}/bias"][None, None, None], 0)

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")

    x = conv(x, "conv1", 2, "VALID")
    for number in range(2, 10):
        x = pool(x) if number in (2, 4, 6) else x
        x = conv(x, f"fire{number}/squeeze1x1")
        x = jnp.concatenate([conv(x, f"fire{number}/expand{k}x{k}") for k in (1, 3)], -1)
    return conv(x, "conv10").mean((1, 2))


def test_a_file_gives_what_the_network_written_out_gives(tmp_path):
    tensors = random_tensors()
    save_file(tensors, tmp_path / "w.safetensors")
    model = load_squeezenet(tmp_path / "w.safetensors")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 63, 63, 3)), jnp.float32)
    found = jax.jit(nnx_apply(model))(nnx_params(model), x)
    assert found.shape == (2, 1000)
    np.testing.assert_allclose(found, jax.jit(written_out)(tensors, x), rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit(tmp_path):
    tensors = {name: tensor for name, tensor in random_tensors().items() if name != "fire5/expand3x3/bias"}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors does not fit SqueezeNet: fire5/expand3x3/bias is missing"):
        load_squeezenet(tmp_path / "w.safetensors")


def test_inputs_are_blue_green_red_less_their_means():
    image = np.arange(3, dtype=np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(squeezenet_inputs(image)[0, 0, 0], [2 - 104, 1 - 117, 0 - 123])
    for wrong in (image.astype(np.float32), image[0], image[..., :1]):
        with pytest.raises(ValueError, match=r"must be \[n, h, w, 3\] uint8"):
            squeezenet_inputs(wrong)


@pytest.mark.slow
@pytest.mark.data
def test_the_published_weights_give_the_published_answers(data_dir):
    images, labels = sample_images(data_dir, IMAGE_SIZE)
    assert labels.tolist() == list(range(1000))
    model = load_squeezenet(data_dir / "weights" / "squeezenet11.safetensors")
    apply = jax.jit(nnx_apply(model))
    parts = [apply(nnx_params(model), squeezenet_inputs(images[i : i + 50])) for i in range(0, 1000, 50)]
    best = np.argsort(-np.concatenate(parts), axis=1)
    assert abs((best[:, 0] == labels).sum() - 557) <= 1
    assert abs((best[:, :5] == labels[:, None]).any(1).sum() - 788) <= 1


@pytest.mark.slow
@pytest.mark.data
def test_the_halves_of_the_task_share_no_image(data_dir):
    task, other = squeezenet_task(data_dir), squeezenet_task(data_dir, swapped=True)
    halves = [sorted(int(label) for batch in half for label in batch["labels"]) for half in (task.calibration, task.test)]
    assert halves == [list(range(0, 1000, 2)), list(range(1, 1000, 2))]
    np.testing.assert_array_equal(task.test[0]["inputs"], other.calibration[0]["inputs"])
