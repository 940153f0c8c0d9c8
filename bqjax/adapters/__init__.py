"""Parameters of networks from elsewhere as plain pytrees, and back. Import the module of the library that you use.

=================  ======================================================================================
module             what it has
=================  ======================================================================================
``flax``           parameters and functions of NNX and Linen networks, weights by names, quantized layers
``torch``          PyTorch's names and layouts for NNX models
``optax``          gradient statistics as a link of an optimiser's chain
``safetensors``    weights of safetensors files, whole or one by one
``checkpoints``    those of several files, folders and Orbax
``folder``         what stands beside the weights in a model's folder; ``write_back`` writes the folder again
=================  ======================================================================================
"""

__all__: list[str] = []
