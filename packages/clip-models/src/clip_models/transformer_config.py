"""What the transformers of all towers have in common, as a frozen configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clip_models.field_checks import check_at_least_zero, check_positive, check_probability, check_types

Activation = Literal[
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "sigmoid",
    "tanh",
    "linear",
    "relu2",
    "relu6",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "mish",
    "softplus",
    "soft_sign",
    "log_sigmoid",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
]
Norm = Literal["layernorm", "rmsnorm"]
BlockStyle = Literal["pre_norm", "normformer"]
Initialization = Literal["siglip", "clip"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of transformer blocks.

    A zero stands for "derived from the other fields" and is filled in at construction. What is dropped at random is so
    in training alone: where a key is given.

    Args:
        width: size of the hidden vectors.
        num_layers: number of blocks.
        num_heads: attention heads. 0: width / 64.
        mlp_dim: hidden size of the MLPs. 0: 4 × width.
        activation: of the MLPs; or several, whose outputs, each from its own projection, are multiplied:
            ``("silu", "linear")`` is SwiGLU. ``gelu`` is exact, ``gelu_tanh`` its tanh approximation, ``quick_gelu``
            x·σ(1.702x), ``relu2`` the square of ``relu``; the others are ``jax.nn``'s, with its defaults.
        norm: ``layernorm``, or ``rmsnorm`` without the mean.
        norm_eps: added to the variance (the mean square) in every norm.
        norm_scale: whether norms have a scale. NormFormer's norm after attention always has one.
        norm_bias: whether norms have a bias. None: LayerNorm has, RMSNorm has not.
        block: ``pre_norm``, or ``normformer``, with another norm after attention and one inside the MLP, before its
            last projection.
        use_bias: whether the projections of attention and MLP have biases.
        qk_norm: whether each head's queries and keys are RMS-normalised, with a learnt scale, before rotary positions
            turn them.
        layer_scale: first value of a learnt factor per channel on what each half of a block adds. None: there is none.
        dropout: probability that an element is dropped of the embeddings, and of what each half of a block adds.
        attention_dropout: probability that an attention weight is dropped.
        drop_path: probability that a sample skips a half of the last block (stochastic depth); it grows linearly from
            0 at the first.
        rotary_base: rotary positions turn a head's pair of channels i of n by position · rotary_base^(-i / n).
        initialization: how random weights are drawn: ``siglip`` as in big_vision, ``clip`` as in OpenAI's code.

    References:
        Shazeer, GLU Variants Improve Transformer, 2020. Shleifer et al., NormFormer, 2021. Henry et al., Query-Key
        Normalization for Transformers, 2020. Touvron et al., Going Deeper with Image Transformers (layer scale), 2021.
        Huang et al., Deep Networks with Stochastic Depth, 2016. Su et al., RoFormer (rotary positions), 2021.
    """

    width: int
    num_layers: int
    num_heads: int = 0
    mlp_dim: int = 0
    activation: Activation | tuple[Activation, ...] = "gelu_tanh"
    norm: Norm = "layernorm"
    norm_eps: float = 1e-6
    norm_scale: bool = True
    norm_bias: bool | None = None
    block: BlockStyle = "pre_norm"
    use_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    rotary_base: float = 10000.0
    initialization: Initialization = "siglip"

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "width", "num_layers")
        check_at_least_zero(self, "num_heads", "mlp_dim")
        if not self.num_heads:
            if self.width % 64:
                raise ValueError(
                    f"num_heads defaults to width / 64, but width = {self.width} is not a multiple of 64: "
                    "give num_heads, a divisor of width."
                )
            object.__setattr__(self, "num_heads", self.width // 64)
        if self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads; got width={self.width}, num_heads={self.num_heads}."
            )
        if not self.mlp_dim:
            object.__setattr__(self, "mlp_dim", 4 * self.width)
        self._check_activation()
        if self.norm_bias is None:
            object.__setattr__(self, "norm_bias", self.norm == "layernorm")
        if self.layer_scale is not None and not self.layer_scale > 0:
            raise ValueError(f"layer_scale must be positive, or None for no layer scale; got {self.layer_scale}.")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be positive; got {self.norm_eps}.")
        if not self.rotary_base > 1:
            raise ValueError(f"rotary_base must be above 1; got {self.rotary_base}.")
        check_probability(self, "dropout", "attention_dropout", "drop_path")

    @property
    def head_dim(self) -> int:
        """Size of one head's vectors."""
        return self.width // self.num_heads

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The MLPs' activations, one or several."""
        return self.activation if isinstance(self.activation, tuple) else (self.activation,)

    def _check_activation(self) -> None:
        if isinstance(self.activation, list | tuple):  # JSON has lists
            one_alone = len(self.activation) == 1
            object.__setattr__(self, "activation", self.activation[0] if one_alone else tuple(self.activation))
        if not self.activations:
            raise ValueError("activation must name at least one function; got none.")

    def _check_rotary(self, positions: str) -> None:
        parts = {"rotary": 2, "rotary2d": 4}.get(positions, 1)
        if self.head_dim % parts:
            raise ValueError(
                f"rotary positions turn pairs of a head's channels, of {parts // 2} axes: width / num_heads must be a "
                f"multiple of {parts}; got {self.width} / {self.num_heads} = {self.head_dim}."
            )
