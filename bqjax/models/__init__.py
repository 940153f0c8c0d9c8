"""Reference networks, one family a module, in Flax NNX."""

__all__: list[str] = []
