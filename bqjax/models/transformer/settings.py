"""What kind of transformer a stack of layers is: widths, heads, norms, positions.

References:
  Vaswani et al. 2017, "Attention is all you need" (arXiv 1706.03762).
  Ainslie et al. 2023 (arXiv 2305.13245): grouped heads. Su et al. 2021 (arXiv 2104.09864): rotary positions.
  Shazeer 2020 (arXiv 2002.05202): gated MLPs. Zhang, Sennrich 2019 (arXiv 1910.07467): RMSNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Rotary", "TransformerConfig"]


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Rotary positions.

    Attributes:
      theta: base of the wavelengths.
      factor: wavelengths are longer by it; 1 for none.
      low, high, trained: of Llama 3's scaling, where given: wavelengths below ``trained / high`` positions stay, those above
        ``trained / low`` grow by ``factor``, and in between it is blended.
    """

    theta: float = 10_000.0
    factor: float = 1.0
    low: float | None = None
    high: float | None = None
    trained: int | None = None


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and kinds of a transformer's layers.

    Attributes:
      width: of the residual stream.
      layers: how many.
      heads: of queries.
      kv_heads: of keys and values; None is ``heads``.
      head_width: of one head; None is ``width / heads``.
      hidden: width inside the MLP.
      norm: ``"layer"`` or ``"rms"``.
      eps: added to a variance.
      activation: a name of :data:`bqjax.models.transformer.layers.ACTIVATIONS`.
      gated: whether the MLP is ``down(act(gate(x)) * up(x))`` rather than ``down(act(up(x)))``.
      pre_norm: whether norms stand before attention and MLP, rather than behind the sum of each with its input.
      causal: whether a position sees only those before it.
      rotary: rotary positions of queries and keys, or None.
      attention_bias: of queries, keys and values.
      output_bias: of attention's output.
      mlp_bias: of the MLP.
      head_norms: whether each head's queries and keys go through a norm.

    Raises:
      ValueError: a size is not positive, heads do not divide, or a name is not known.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    kv_heads: int | None = None
    head_width: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-12
    activation: str = "gelu"
    gated: bool = False
    pre_norm: bool = False
    causal: bool = False
    rotary: Rotary | None = None
    attention_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    head_norms: bool = False

    def __post_init__(self) -> None:
        for what in ("width", "layers", "heads", "hidden", "kv_heads", "head_width"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"{self.heads} heads of queries cannot share {self.kv_heads} of keys and values")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"a width of {self.width} has no {self.heads} equal heads: give head_width")
        if self.norm not in ("layer", "rms"):
            raise ValueError(f'norm must be "layer" or "rms", got {self.norm!r}')
        if self.rotary is not None and self.head_size % 2:
            raise ValueError(f"rotary positions turn pairs: the width of a head must be even, got {self.head_size}")

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads
