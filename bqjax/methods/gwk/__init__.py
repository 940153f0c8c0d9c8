"""GWK: gradient-weighted k-means of blocks of weights, at once or in a training loop."""

from bqjax.methods.gwk.cluster import gwk_cluster
from bqjax.methods.gwk.config import GWKConfig, bits_per_weight
from bqjax.methods.gwk.method import GWK
from bqjax.methods.gwk.training import gwk_init, gwk_update, straight_through

__all__ = ["GWK", "GWKConfig", "bits_per_weight", "gwk_cluster", "gwk_init", "gwk_update", "straight_through"]
