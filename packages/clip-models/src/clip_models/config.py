"""What a CLIP model is: frozen configurations of its two towers, of the inputs it expects and of how it computes.

They hold only JSON types, so any reader of dataclasses can load them. A zero stands for "derived from the other
fields" and is filled in at construction: a config that exists is complete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
Initialization = Literal["siglip", "clip"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What both towers have in common: a stack of pre-norm transformer blocks.

    Args:
        width: size of the hidden vectors.
        num_layers: number of blocks.
        num_heads: attention heads. 0: width / 64.
        mlp_dim: hidden size of the MLPs. 0: 4 × width.
        activation: of the MLPs. ``gelu`` is exact, ``gelu_tanh`` its tanh approximation, ``quick_gelu`` x·σ(1.702x).
        norm_eps: added to the variance in every LayerNorm.
        initialization: how random weights are drawn: ``siglip`` as in big_vision, ``clip`` as in OpenAI's code.
    """

    width: int
    num_layers: int
    num_heads: int = 0
    mlp_dim: int = 0
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-6
    initialization: Initialization = "siglip"

    def __post_init__(self) -> None:
        _positive(self, "width", "num_layers")
        _at_least_zero(self, "num_heads", "mlp_dim")
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
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps must be positive; got {self.norm_eps}.")
        _one_of(self, "activation", Activation)
        _one_of(self, "initialization", Initialization)


VisionPool = Literal["map", "gap", "cls"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """A vision transformer on square images.

    Args:
        image_size: side of the input, pixels.
        patch_size: side of a patch, pixels. What is left of ``image_size`` after whole patches, at the right and the
            bottom, is not seen (so400m at 384 pixels has 27 patches of 14 a side).
        pool: how the hidden vectors become one: ``map`` attends to them with a learnt probe (SigLIP), ``gap`` averages
            them, ``cls`` takes a class token put before the patches (CLIP).
        patch_bias: whether the patch projection has a bias.
        embed_norm: whether a LayerNorm follows the embeddings (CLIP's ``pre_layrnorm``).
    """

    image_size: int
    patch_size: int
    pool: VisionPool = "map"
    patch_bias: bool = True
    embed_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "image_size", "patch_size")
        if self.patch_size > self.image_size:
            raise ValueError(
                "patch_size must not exceed image_size; "
                f"got patch_size={self.patch_size}, image_size={self.image_size}."
            )
        _one_of(self, "pool", VisionPool)

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the blocks: the patches, and the class token where there is one."""
        return (self.image_size // self.patch_size) ** 2 + (self.pool == "cls")


TextPool = Literal["last", "argmax", "first_eos"]


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """A transformer over token ids.

    Args:
        vocab_size: number of token ids.
        max_length: longest sequence, tokens.
        causal: whether a token attends only to itself and those before it.
        pool: which hidden vector stands for the text: at the ``last`` position (SigLIP, whose texts are padded to
            ``max_length``), at the largest id (``argmax``, OpenAI's CLIP), at the ``first_eos``.
        eos_token_id: the id that ``first_eos`` looks for.
        projection_bias: whether the projection to the shared embedding has a bias.
    """

    vocab_size: int
    max_length: int
    causal: bool = False
    pool: TextPool = "last"
    eos_token_id: int | None = None
    projection_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "vocab_size", "max_length")
        _one_of(self, "pool", TextPool)
        if self.pool == "first_eos" and self.eos_token_id is None:
            raise ValueError("pool='first_eos' looks for eos_token_id, which is None: give the tokenizer's.")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id must be in [0, vocab_size={self.vocab_size}); got {self.eos_token_id}.")


ResizeMode = Literal["squash", "shortest", "longest"]
Interpolation = Literal["bicubic", "bilinear"]
Padding = Literal["max_length", "longest"]


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The inputs that a model expects; it travels with the weights.

    Args:
        size: side of the square image, pixels. 0: the vision tower's ``image_size``.
        resize_mode: how a picture becomes square: ``squash`` ignores its aspect, ``shortest`` scales the shorter side
            to ``size`` and crops the centre, ``longest`` scales the longer side and pads with black around.
        interpolation: of the resize, always antialiased.
        mean: subtracted from each channel, in [0, 1] units.
        std: each channel is divided by it, in [0, 1] units.
        tokenizer: a Hugging Face tokenizer, by repository name or directory. None: not known.
        text_length: tokens that a text is cut to. 0: the text tower's ``max_length``.
        padding: ``max_length`` pads every text to ``text_length``, ``longest`` to the longest of its batch.
        lower_case: whether texts are lower-cased before the tokenizer sees them.
        mask_padding: whether padding is hidden from attention. Neither CLIP nor SigLIP was trained so: CLIP pools at or
            before the padding, and causally; SigLIP attends to it and pools its last position.
    """

    size: int = 0
    resize_mode: ResizeMode = "squash"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    tokenizer: str | None = None
    text_length: int = 0
    padding: Padding = "max_length"
    lower_case: bool = False
    mask_padding: bool = False

    def __post_init__(self) -> None:
        _at_least_zero(self, "size", "text_length")
        _one_of(self, "resize_mode", ResizeMode)
        _one_of(self, "interpolation", Interpolation)
        _one_of(self, "padding", Padding)
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name} must have one number per channel, red, green, blue; got {getattr(self, name)}."
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel; got {self.std}.")


Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "minimal", "full"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model runs, as opposed to what it is. Parameters are float32 whatever is said here.

    Args:
        dtype: of the matrix products and the hidden vectors. Norms, softmax and embeddings stay in float32.
        remat: what the backward pass computes again instead of keeping: ``none``, everything but the matrix products
            (``minimal``), or whole blocks (``full``).
        unroll: blocks per iteration of the scan over layers; more compile longer and may run faster on TPU.
    """

    dtype: Dtype = "float32"
    remat: Remat = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        _one_of(self, "dtype", Dtype)
        _one_of(self, "remat", Remat)
        _positive(self, "unroll")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Two towers and what joins them.

    The defaults are SigLIP's. For OpenAI's CLIP see :func:`clip_models.preset`.

    Args:
        vision: the image tower.
        text: the text tower.
        projection_dim: size of the shared embedding, to which both towers are projected. None: the image tower's
            pooled vector is the embedding, and only text is projected, to the image tower's width.
        logit_scale_init: first value of the parameter ``logit_scale``, the *logarithm* of the multiplier of the cosine
            similarities.
        logit_bias_init: first value of ``logit_bias``, added to the scaled similarities. None: there is no bias.
        preprocess: the inputs that the model expects.
        compute: how it runs.
    """

    vision: VisionConfig
    text: TextConfig
    projection_dim: int | None = None
    logit_scale_init: float = math.log(10.0)
    logit_bias_init: float | None = -10.0
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if self.projection_dim is not None:
            _positive(self, "projection_dim")
        preprocess = replace(
            self.preprocess,
            size=self.preprocess.size or self.vision.image_size,
            text_length=self.preprocess.text_length or self.text.max_length,
        )
        object.__setattr__(self, "preprocess", preprocess)
        if preprocess.size != self.vision.image_size:
            raise ValueError(
                f"preprocess.size must be vision.image_size = {self.vision.image_size}, or 0; got {preprocess.size}."
            )
        if preprocess.text_length > self.text.max_length:
            raise ValueError(
                f"preprocess.text_length must not exceed text.max_length = {self.text.max_length}; "
                f"got {preprocess.text_length}."
            )

    @property
    def embed_dim(self) -> int:
        """Size of the shared embedding."""
        return self.projection_dim or self.vision.width


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}.")


def _at_least_zero(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must not be negative (0: derived from the others); got {getattr(config, name)}.")


def _one_of(config: Any, name: str, choices: Any) -> None:
    if getattr(config, name) not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {getattr(config, name)!r}.")
