"""Random flips and crops of a batch of images, in JAX, from a key."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

__all__ = ["crop_and_flip"]


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
