"""Random flips, crops and CutMix of a batch of images, in JAX, from a key."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

__all__ = ["crop_and_flip", "cutmix"]


@partial(jax.jit, static_argnames=("pad", "flip"))
def crop_and_flip(key: jax.Array, images: jax.Array, *, pad: int, flip: bool) -> jax.Array:
    """Each image mirrored or not, then moved by up to ``pad`` pixels in each direction; zeros come in.

    Args:
      key: of the draws; one key gives one result, on any number of devices.
      images: ``[n, h, w, c]``.
      pad: pixels that are added on every side before a window of the old size is cut out.
      flip: whether images may be mirrored left to right.

    Returns:
      ``[n, h, w, c]`` of the same dtype.

    Raises:
      ValueError: ``pad`` is negative or the images are not ``[n, h, w, c]``.

    Example:
      >>> crop_and_flip(jax.random.key(0), jnp.ones((2, 4, 4, 1)), pad=1, flip=True).shape
      (2, 4, 4, 1)
    """
    if pad < 0 or images.ndim != 4:
        raise ValueError(f"pad must be at least 0 and images [n, h, w, c], got {pad} and {images.shape}")
    mirror_key, corner_key = jax.random.split(key)
    if flip:
        mirrored = jax.random.bernoulli(mirror_key, 0.5, (images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    corners = jax.random.randint(corner_key, (images.shape[0], 2), 0, 2 * pad + 1)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:]))(
        padded, corners
    )


def cutmix(key: jax.Array, images: jax.Array, *, probability: float) -> tuple[jax.Array, jax.Array]:
    """CutMix: a rectangle of an image is taken from the image before it in the batch (the first takes from the last). Traceable.

    The rectangle has the image's proportions, its area is uniform from nothing to all and its middle anywhere, so that some of it
    may lie outside.

    Args:
      key: of the draws; one key gives one result, on any number of devices.
      images: ``[n, h, w, c]``.
      probability: that an image is mixed, 0 to 1.

    Returns:
      ``[n, h, w, c]`` of the same dtype, and ``[n]`` float32: the share of each image that is its own, 1 where it was not mixed.

    References:
      Yun et al. 2019 (arXiv 1905.04899), with alpha = 1, and a rectangle for each image where theirs is one a batch.

    Example:
      >>> mixed, own = cutmix(jax.random.key(0), jnp.arange(2.0).repeat(64).reshape(2, 8, 8, 1), probability=1.0)
      >>> bool(jnp.all(jnp.abs(mixed - jnp.arange(2.0)[:, None, None, None]).mean((1, 2, 3)) == 1 - own))
      True
    """
    n, height, width, _ = images.shape
    area_key, middle_key, mixed_key = jax.random.split(key, 3)
    side = jnp.sqrt(jax.random.uniform(area_key, (n,)))  # of the rectangle, as a share of the image's
    middles = jax.random.uniform(middle_key, (2, n))
    inside = [
        jnp.abs((jnp.arange(size)[None, :] + 0.5) / size - middle[:, None]) < side[:, None] / 2
        for size, middle in zip((height, width), middles, strict=True)
    ]
    mixed = jax.random.bernoulli(mixed_key, probability, (n,))
    taken = mixed[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
    own = 1 - taken.mean((1, 2), dtype=jnp.float32)
    return jnp.where(taken[..., None], jnp.roll(images, 1, axis=0), images), own
