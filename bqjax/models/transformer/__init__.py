"""Transformers in Flax NNX: one attention, one MLP, one norm, and the encoders, decoders and classifiers made of them.

==================  ======================================================================================
module              what it has
==================  ======================================================================================
``settings``        what kind of transformer it is
``layers``          LayerNorm and RMSNorm, the MLP, rotary positions
``attention``       attention of several heads, grouped and causal where asked for
``blocks``          a layer, and stacks of layers: one by one, or as a ``scan`` over stacked parameters
``language``        BERT-like encoders and Llama-like decoders
``classifiers``     ViT and the keyword-spotting transformer KWT
``pretrained``      checkpoints of Hugging Face as pure functions of their own tensors
``packing``         texts of several lengths in batches of one shape
==================  ======================================================================================
"""

__all__: list[str] = []
