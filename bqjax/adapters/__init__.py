"""Parameters of networks from elsewhere as plain pytrees, and back. Import the module of the library that you use.

=================  ======================================================================================
module             what it has
=================  ======================================================================================
``flax``           parameters and functions of NNX and Linen networks, weights by names, quantized layers
``torch``          PyTorch's names and layouts for NNX models
``optax``          gradient statistics as a link of an optimiser's chain
``safetensors``    weights of safetensors files, whole or one by one
=================  ======================================================================================
"""

__all__: list[str] = []
