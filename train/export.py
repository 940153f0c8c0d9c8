"""A clustered network as a ``.bq.safetensors`` file, and back into a training state to be scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bqjax import codec
from bqjax.gwk_blocks import bits_per_weight
from bqjax.leaves import decode
from bqjax.tree import named_leaves, replace

__all__ = ["export", "from_file"]

# What training tells quantisers, which no forward pass needs.
_TOLD = ("delta", "progress")


def export(path: Path, state: Any) -> str:
    """Writes kernels as indices and codebooks, and everything else that the forward pass needs as it is.

    Args:
      path: of the file; one that is there is replaced.
      state: a :class:`train.loop.TrainState` of a GWK phase.

    Returns:
      A line about its size: bits per clustered weight by the paper's formula (indices and codebooks of 8 bits), bytes of the
      file (codebooks in float32) and bits per weight of the whole network by them.
    """
    network = replace(state.params["network"], state.clusters.tree)
    tree = {"network": network, "quantizers": state.params["quantizers"], "statistics": _needed(state.rest)}
    info = codec.save(path, tree, force=True)
    weights = sum(leaf.size for leaf in named_leaves(network).values())
    return (
        f"{path}: {bits_per_weight(state.clusters.tree):.3f} bits per clustered weight (formula), {info.file_bytes:,} bytes, "
        f"{8 * info.file_bytes / weights:.3f} bits per weight of all {weights:,}"
    )


def from_file(path: Path, state: Any) -> Any:
    """The state with all that :func:`export` wrote taken from the file.

    Raises:
      ValueError: the file is damaged.
    """
    loaded = codec.load(path)
    clustered = named_leaves(loaded["network"])
    clusters = state.clusters._replace(tree={name: clustered[name] for name in state.clusters.tree})
    params = {"network": decode(loaded["network"]), "quantizers": loaded["quantizers"]}
    statistics = named_leaves(loaded["statistics"])
    return state._replace(params=params, rest=replace(state.rest, statistics), clusters=clusters)


def _needed(rest: Any) -> Any:
    """``rest`` without what training tells quantisers, and without the dicts that are empty then."""
    if not isinstance(rest, Mapping):
        return rest
    kept = {key: _needed(value) for key, value in rest.items() if key not in _TOLD}
    return {key: value for key, value in kept.items() if not (isinstance(value, dict) and not value)}
