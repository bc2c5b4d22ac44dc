"""What a CLIP model is: frozen configurations of its towers, of the inputs it expects and of how it computes.

They hold only JSON types, so any reader of dataclasses can load them. A zero stands for "derived from the other
fields" and is filled in at construction: a config that exists is complete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from clip_models.field_checks import check_at_least_zero, check_positive, check_probability, check_types
from clip_models.preprocess_config import Interpolation, Padding, PreprocessConfig, ResizeMode, square_or_pair
from clip_models.transformer_config import Activation, Initialization, TransformerConfig

__all__ = [
    "Activation",
    "ClipConfig",
    "ComputeConfig",
    "DecoderConfig",
    "Initialization",
    "Interpolation",
    "Padding",
    "PreprocessConfig",
    "ResizeMode",
    "TextConfig",
    "TransformerConfig",
    "VisionConfig",
]

ImagePositions = Literal["learnt", "factorized", "sincos2d", "rotary"]
VisionPool = Literal["map", "gap", "cls"]
NormPlace = Literal["auto", "hidden", "pooled"]


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """A vision transformer.

    Args:
        image_size: side of the input, or its (height, width), pixels. With sequences of patches (NaFlex) it gives the
            grid that positions are learnt on.
        patch_size: side of a patch, pixels. What is left of ``image_size`` after whole patches, at the right and the
            bottom, is not seen (so400m at 384 pixels has 27 patches of 14 a side).
        flexible: whether images of other sizes, and sequences of patches of any height and width, are accepted: the
            grid of positions is stretched over them, learnt ones by antialiased bilinear interpolation, as in SigLIP 2.
            Without it another size is an error, as it usually is a mistake.
        positions: ``learnt`` one by one; ``factorized`` as the sum of a learnt vector per row and one per column;
            ``sincos2d`` fixed sines and cosines; ``rotary`` turns half of each head's channels by row and half by
            column. Only learnt positions have one for the class token; registers have none.
        pool: how the hidden vectors become one: ``map`` attends to them with learnt probes (SigLIP), ``gap`` averages
            all but the class token, ``cls`` takes a class token put before the patches (CLIP).
        class_token: whether there is a class token. None: where ``pool`` is ``cls``.
        num_queries: probes of ``map``; the pooled vectors of several are concatenated.
        num_registers: learnt tokens put between the class token and the patches, for the blocks to write in.
        keep_registers: whether registers are part of the hidden vectors that pooling sees and ``apply`` returns.
        final_norm: what the last norm is applied to: all ``hidden`` vectors before pooling, or the ``pooled`` one.
            ``auto``: ``pooled`` where ``pool`` is ``cls``, as in CLIP.
        patch_bias: whether the patch projection has a bias.
        embed_norm: whether a norm follows the embeddings (CLIP's ``pre_layrnorm``).
        projection_bias: whether the projection to the shared embedding has a bias.
        patch_dropout: share of the patches that training leaves out, drawn anew for each image.

    References:
        Darcet et al., Vision Transformers Need Registers, 2023. Li et al., FLIP (patch dropout), 2022.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    flexible: bool = False
    positions: ImagePositions = "learnt"
    pool: VisionPool = "map"
    class_token: bool | None = None
    num_queries: int = 1
    num_registers: int = 0
    keep_registers: bool = False
    final_norm: NormPlace = "auto"
    patch_bias: bool = True
    embed_norm: bool = False
    projection_bias: bool = False
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", square_or_pair(self.image_size, "image_size"))
        check_positive(self, "patch_size", "num_queries")
        check_at_least_zero(self, "num_registers")
        check_probability(self, "patch_dropout")
        if min(self.grid) < 1:
            raise ValueError(
                "patch_size must not exceed image_size; "
                f"got patch_size={self.patch_size}, image_size={self.image_size}."
            )
        if self.class_token is None:
            object.__setattr__(self, "class_token", self.pool == "cls")
        if self.final_norm == "auto":
            object.__setattr__(self, "final_norm", "pooled" if self.pool == "cls" else "hidden")
        if self.pool == "cls" and not self.class_token:
            raise ValueError(
                "pool='cls' takes the class token; got class_token=False: leave it out, or pool otherwise."
            )
        if self.num_queries > 1 and self.pool != "map":
            raise ValueError(f"num_queries are the probes of pool='map'; got {self.num_queries} with {self.pool!r}.")
        if self.keep_registers and not self.num_registers:
            raise ValueError("keep_registers keeps registers, but num_registers is 0: give their number.")
        if self.positions == "rotary":
            self._check_rotary("rotary2d")
        if self.positions == "sincos2d" and (self.width % 4 or self.width < 8):
            raise ValueError(f"sincos2d positions need a width that is a multiple of 4, from 8 up; got {self.width}.")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_shape[0] // self.patch_size, self.image_shape[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return math.prod(self.grid)

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the blocks: class token, registers and patches."""
        return bool(self.class_token) + self.num_registers + self.num_patches

    @property
    def pooled_dim(self) -> int:
        """Size of the pooled vector."""
        return self.num_queries * self.width


TextPositions = Literal["learnt", "rotary"]
TextPool = Literal["last", "argmax", "first_eos", "map", "gap"]


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """A transformer over token ids.

    Args:
        vocab_size: number of token ids.
        max_length: longest sequence, tokens.
        positions: ``learnt`` one by one, or ``rotary``, which turns queries and keys.
        causal: whether a token attends only to itself and those before it.
        pool: which hidden vector stands for the text: at the ``last`` position (SigLIP, whose texts are padded to
            ``max_length``), at the largest id (``argmax``, OpenAI's CLIP), at the ``first_eos``; or ``map`` attends to
            all with learnt probes, ``gap`` averages them, both within the attention mask.
        num_queries: probes of ``map``; the pooled vectors of several are concatenated.
        eos_token_id: the id that ``first_eos`` looks for.
        projection_bias: whether the projection to the shared embedding has a bias.
    """

    vocab_size: int
    max_length: int
    positions: TextPositions = "learnt"
    causal: bool = False
    pool: TextPool = "last"
    num_queries: int = 1
    eos_token_id: int | None = None
    projection_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "vocab_size", "max_length", "num_queries")
        if self.pool == "first_eos" and self.eos_token_id is None:
            raise ValueError("pool='first_eos' looks for eos_token_id, which is None: give the tokenizer's.")
        if self.num_queries > 1 and self.pool != "map":
            raise ValueError(f"num_queries are the probes of pool='map'; got {self.num_queries} with {self.pool!r}.")
        _check_token_ids(self, "eos_token_id")
        self._check_rotary(self.positions)

    @property
    def pooled_dim(self) -> int:
        """Size of the pooled vector."""
        return self.num_queries * self.width


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TransformerConfig):
    """A causal transformer that writes a caption, attending to the image tower's hidden vectors in every block.

    Args:
        vocab_size: number of token ids.
        max_length: longest caption, tokens.
        positions: as in :class:`TextConfig`.
        bos_token_id: the id that a caption starts from.
        eos_token_id: the id that ends a caption.
        pad_token_id: the id after the end.
        mask_token_id: the id that stands for every token under parallel prediction. None: there is none.
        parallel_fraction: share of the training captions that are predicted in parallel: all inputs after
            ``bos_token_id`` are ``mask_token_id``, and every position sees every other.
        tied_embedding: whether the logits are products with the token embedding, without weights of their own.

    References:
        Tschannen et al., Image Captioners Are Scalable Vision Learners Too (CapPa), 2023.
    """

    vocab_size: int
    max_length: int
    positions: TextPositions = "learnt"
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    mask_token_id: int | None = None
    parallel_fraction: float = 0.0
    tied_embedding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "vocab_size", "max_length")
        _check_token_ids(self, "bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        self._check_rotary(self.positions)
        if not 0 <= self.parallel_fraction <= 1:
            raise ValueError(f"parallel_fraction must be in [0, 1]; got {self.parallel_fraction}.")
        if self.parallel_fraction and self.mask_token_id is None:
            raise ValueError("parallel prediction puts mask_token_id everywhere, which is None: give an id.")


Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "minimal", "proj", "full", "offload"]
AttentionImplementation = Literal["auto", "xla", "cudnn", "splash"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model runs, as opposed to what it is. Parameters are float32 whatever is said here.

    Args:
        dtype: of the matrix products and the hidden vectors. Norms, softmax and embeddings stay in float32.
        remat: what the backward pass computes again instead of keeping: nothing (``none``), everything but the matrix
            products (``minimal``) or but queries, keys and values (``proj``), or whole blocks (``full``). ``offload``
            is ``minimal`` with the products kept in the host's memory.
        unroll: blocks per iteration of the scan over layers; more compile longer and may run faster on TPU.
        attention: the implementation: XLA's, cuDNN's flash attention on NVIDIA GPUs, splash attention on TPUs;
            ``auto`` takes what suits the backend and the shapes.
        float32_logits: whether products of queries and keys are accumulated, kept and normalised in float32 when
            ``dtype`` is less. Without it XLA's are rounded to ``dtype`` before the float32 softmax, half the bytes; the
            other implementations never round them.
    """

    dtype: Dtype = "float32"
    remat: Remat = "none"
    unroll: int = 1
    attention: AttentionImplementation = "auto"
    float32_logits: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "unroll")


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The towers and what joins them: image and text, or one of them alone, and where wanted a captioning decoder.

    The defaults are SigLIP's. For OpenAI's CLIP see :func:`clip_models.preset`.

    Args:
        vision: the image tower. None: there is none.
        text: the text tower. None: there is none.
        decoder: writes captions of what the image tower sees. None: there is none.
        projection_dim: size of the shared embedding, to which both towers are projected. None: the image tower's
            pooled vector is the embedding, and only text is projected, to its size; the pooled vector of a text tower
            alone is the embedding too.
        logit_scale_init: first value of the parameter ``logit_scale``, the *logarithm* of the multiplier of the cosine
            similarities. It exists where both towers do.
        logit_bias_init: first value of ``logit_bias``, added to the scaled similarities. None: there is no bias.
        preprocess: the inputs that the model expects.
        compute: how it runs.
    """

    vision: VisionConfig | None = None
    text: TextConfig | None = None
    decoder: DecoderConfig | None = None
    projection_dim: int | None = None
    logit_scale_init: float = math.log(10.0)
    logit_bias_init: float | None = -10.0
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        check_types(self)
        if self.vision is None and self.text is None:
            raise ValueError("a model needs a vision tower, a text tower or both; got neither.")
        if self.decoder is not None and self.vision is None:
            raise ValueError("a decoder captions what the vision tower sees; got vision=None.")
        if self.projection_dim is not None:
            check_positive(self, "projection_dim")
        elif self.vision is not None and self.vision.projection_bias:
            raise ValueError("vision.projection_bias is of the projection, and there is none: give projection_dim.")
        self._check_attention()
        object.__setattr__(self, "preprocess", self._complete_preprocess())

    def _check_attention(self) -> None:
        attention, decoder = self.compute.attention, self.decoder
        if attention == "splash" and decoder is not None and decoder.parallel_fraction:
            raise ValueError(
                "attention='splash' masks keys for all queries alike, and parallel prediction does not: use 'auto' or "
                f"'xla', or decoder.parallel_fraction = 0; got {decoder.parallel_fraction}."
            )
        if attention == "cudnn" and self.compute.dtype != "bfloat16":
            raise ValueError(f"attention='cudnn' computes in bfloat16; got dtype={self.compute.dtype!r}.")
        for name in ("vision", "text", "decoder"):
            tower: TransformerConfig | None = getattr(self, name)
            if tower is None or attention in ("auto", "xla"):
                continue
            if tower.attention_dropout:
                raise ValueError(
                    f"attention={attention!r} drops no attention weights: use 'auto' or 'xla', or {name} without "
                    f"attention_dropout; got {tower.attention_dropout}."
                )
            if attention == "cudnn" and (tower.head_dim % 8 or tower.head_dim > 128):
                raise ValueError(
                    "attention='cudnn' needs width / num_heads to be a multiple of 8, at most 128; "
                    f"{name} has {tower.width} / {tower.num_heads} = {tower.head_dim}."
                )

    def _complete_preprocess(self) -> PreprocessConfig:
        """Fills in what follows from the towers, and refuses what contradicts them."""
        given, vision = self.preprocess, self.vision
        changes = {}
        if vision is not None:
            changes["size"] = given.size or vision.image_size
            if changes["size"] != vision.image_size:
                raise ValueError(
                    f"preprocess.size must be vision.image_size = {vision.image_size}, or 0; got {given.size}."
                )
            if given.resize_mode == "naflex":
                if not vision.flexible:
                    raise ValueError("resize_mode='naflex' makes sequences of patches: vision.flexible must be true.")
                changes["max_patches"] = given.max_patches or vision.num_patches
            elif given.max_patches:
                raise ValueError(
                    f"max_patches is the length of naflex sequences; got {given.max_patches} with "
                    f"resize_mode={given.resize_mode!r}."
                )
        if (longest := self.max_text_length) is not None:
            changes["text_length"] = given.text_length or longest
            if changes["text_length"] > longest:
                raise ValueError(
                    f"preprocess.text_length must not exceed the max_length of text and decoder, {longest}; "
                    f"got {given.text_length}."
                )
        return replace(given, **changes)

    @property
    def max_text_length(self) -> int | None:
        """The longest text that both the text tower and the decoder take, tokens. None: there is neither."""
        return min((part.max_length for part in (self.text, self.decoder) if part is not None), default=None)

    @property
    def has_logits(self) -> bool:
        """Whether images and texts are compared: there are both towers, and so ``logit_scale``."""
        return self.vision is not None and self.text is not None

    @property
    def text_projection_dim(self) -> int | None:
        """Size of the text tower's projection. None: there is none."""
        return self.embed_dim if self.projection_dim is not None or self.vision is not None else None

    @property
    def embed_dim(self) -> int:
        """Size of the shared embedding."""
        if self.projection_dim is not None:
            return self.projection_dim
        tower = self.vision or self.text
        return 0 if tower is None else tower.pooled_dim


def _check_token_ids(config: TextConfig | DecoderConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < config.vocab_size:
            raise ValueError(f"{name} must be in [0, vocab_size={config.vocab_size}); got {value}.")
