"""What a pipeline is told: where samples are, and how they are prepared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from clip_data.filters import Filter
from clip_data.formats import FORMATS, Format
from clip_data.image import Interpolation, ResizeMode
from clip_data.text import Padding
from clip_data.transform import Transform, transform_identity

__all__ = ["DataConfig", "Format", "SourceConfig"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One set of shards of one format.

    Args:
        format: ``"tfrecord"``, ``"webdataset"``, ``"parquet"``; ``"csv"`` or ``"tsv"``, tables of image paths and
            captions; ``"folder"``, images beside ``.txt`` files of one stem; ``"class_folder"``, a folder of images for
            each class, whose labels are the classes' ranks in alphabetical order.
        shards: Paths, globs (``*.tfrecord``) and brace lists (``{000..123}.tar``), local, ``file://``, ``gs://`` or
            ``s3://``. Those of the folder formats are local folders.
        weight: Expected share of samples where several sources are mixed; normalised over the sources.
        image_key: Field that holds the image, or its path in a table; ``"auto"`` takes the first present of jpg, jpeg,
            png, webp, image, in a table also image_path, filepath, filename, path and file, and else the first field
            whose bytes begin as an image file does.
        caption_key: Field that holds the caption, or ``"auto"``: the first present of caption, txt, text. Of several
            fields, or of fields with weights, one that is not blank is drawn for each sample, by the pipeline's seed
            and the position; so is one of a field that holds several captions.
        label_key: Field that holds an integer label; None takes ``cls`` or ``label`` where that is an integer.
        filters: Conditions on the metadata that a record must meet; others are replaced, and counted apart.

    Raises:
        ValueError: A value outside what is said above.
    """

    format: Format
    shards: str | tuple[str, ...]
    weight: float = 1.0
    image_key: str = "auto"
    caption_key: str | tuple[str, ...] | dict[str, float] = "auto"
    label_key: str | None = None
    filters: tuple[Filter, ...] = ()

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        for name in ("shards", "caption_key", "filters"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.shards or not all(self.patterns):
            raise ValueError(f"shards must name at least one shard, not {self.shards!r}")
        if not _is_weight(self.weight):
            raise ValueError(f"weight must be a positive number, not {self.weight!r}")
        if self.image_key == "" or self.label_key == "":
            raise ValueError("image_key and label_key must be a field's name, not ''")
        if not self.caption_key or (not isinstance(self.caption_key, str) and not all(self.caption_key)):
            raise ValueError(f"caption_key must name one field or several, not {self.caption_key!r}")
        if isinstance(self.caption_key, dict) and not all(map(_is_weight, self.caption_key.values())):
            raise ValueError(f"the weights of caption_key must be positive numbers, not {self.caption_key!r}")

    @property
    def patterns(self) -> tuple[str, ...]:
        """``shards`` as a tuple."""
        return (self.shards,) if isinstance(self.shards, str) else self.shards


def _is_weight(value: float) -> bool:
    return value > 0 and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a pipeline reads and how it prepares it.

    Args:
        sources: At least one.
        image_size: Side of the images, or their height and width, in pixels. None: texts only; no image is read or
            decoded, a record needs none, and filters know its size from its metadata alone.
        resize_mode: How a picture gets to that size, as in ``decode_image``; or ``"naflex"``, which keeps its aspect
            ratio and cuts it into patches.
        patch_size: Side of a patch, in pixels, with ``"naflex"``.
        max_patches: Length of its sequences, to which every picture is scaled as nearly as whole patches allow. With
            several lengths each batch of a training has one of them, in an order drawn by the seed.
        batch_by: How many samples such a batch holds: ``"tokens"`` keeps to one budget of patches, with
            ``global_batch_size`` samples of the longest sequences and more of the others; with ``"samples"`` each holds
            as many.
        interpolation: Of the resize: ``"bicubic"`` or ``"bilinear"``, always antialiased.
        strict: Whether a JPEG that libjpeg warns about is a damaged one.
        scaled_decoding: Whether a JPEG of twice ``image_size`` or more may be decoded at 1/2, 1/4 or 1/8 first. None
            does so in training, and evaluates on exact pixels.
        tokenizer: A directory or a name on the Hugging Face Hub. None: images only; captions are passed on, and may
            be empty.
        text_length: Tokens of a text.
        lower_case: Whether captions are lower-cased before tokenising.
        canonicalize: Whether their punctuation is removed before it, as in ``Tokenizer``.
        padding: ``"max_length"`` or ``"longest"``, as in ``Tokenizer``.
        pad_id: Token to pad with; None takes the tokenizer's.
        seed: Of the order of samples.
        shuffle: False takes shards and records as they are listed.
        num_epochs: Times that the data are gone through; None goes on for ever.
        block_shards: Shards whose records are mixed at a time. Of a bucket they and the next ones are held in memory.
        num_streams: Parts that an epoch is cut into and that take turns, each with its share of ``block_shards``. With
            a multiple of the number of processes each reads shards of its own; a source of ``block_shards`` or fewer
            shards is not cut.
        empty_caption: What becomes of samples whose caption is missing or blank: ``"drop"`` or ``"keep"``.
        embeddings: Fields that hold a vector, such as another model's embedding of the record, and its length; a batch
            has them as ``embeddings``. A record that lacks one is replaced.
        transform: A pure function that replaces a record, or drops it by None, before it is decoded. A cursor knows it
            by its ``identity``, or its module and name.
        max_bad_fraction: Share of an epoch's samples that may be unusable before the run stops, in [0, 1]. The first 16
            are always allowed, unless it is 0. Within an epoch it is judged over the records of a hundred shards, or
            all, at least: where one shard is bad from end to end, it does not matter how early it comes.
        num_threads: That decode; None is one for each core that the process may use.
        num_workers: Processes that decode, with as many threads in all. 0 decodes in this process, where Python's lock
            ends it near 40,000 images a second.
        executor: ``"threads"`` of Python decode, or ``"tensorflow"`` does (of TFRecord alone, with ``strict=False``),
            with the same batches in the same order; ``"auto"`` takes the faster, which are the threads.
        prefetch: Batches prepared ahead.

    Raises:
        ValueError: A value outside what is said above.
    """

    sources: tuple[SourceConfig, ...]
    image_size: int | tuple[int, int] | None
    resize_mode: ResizeMode | Literal["naflex"] = "squash"
    patch_size: int = 16
    max_patches: int | tuple[int, ...] = 256
    batch_by: Literal["tokens", "samples"] = "tokens"
    interpolation: Interpolation = "bicubic"
    strict: bool = True
    scaled_decoding: bool | None = None
    tokenizer: str | None
    text_length: int
    lower_case: bool = False
    canonicalize: bool = False
    padding: Padding = "max_length"
    pad_id: int | None = None
    seed: int = 0
    shuffle: bool = True
    num_epochs: int | None = None
    block_shards: int = 8
    num_streams: int = 8
    empty_caption: Literal["drop", "keep"] = "drop"
    embeddings: dict[str, int] = field(default_factory=dict)
    transform: Transform | None = None
    max_bad_fraction: float = 0.1
    num_threads: int | None = None
    num_workers: int = 0
    executor: Literal["auto", "threads", "tensorflow"] = "auto"
    prefetch: int = 2

    def __post_init__(self):
        object.__setattr__(self, "sources", tuple(self.sources))
        if not self.sources:
            raise ValueError("sources must hold at least one source; got none")
        if not isinstance(self.max_patches, int):
            object.__setattr__(self, "max_patches", tuple(self.max_patches))
        if not self.patch_lengths or min(self.patch_lengths) < 1:
            raise ValueError(f"max_patches must be a length or several, at least 1, not {self.max_patches!r}")
        if len(self.patch_lengths) > 1 and self.resize_mode == "naflex" and self.evaluates:
            raise ValueError(f"max_patches must be one length in an evaluation, not {self.max_patches!r}")
        if self.image_size is not None and not isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.has_images and (len(self.image_shape) != 2 or min(self.image_shape) < 1):
            raise ValueError(f"image_size must be a side or a height and a width, at least 1, not {self.image_size!r}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {self.num_workers!r}")
        for name in (
            "patch_size",
            "text_length",
            "num_epochs",
            "block_shards",
            "num_streams",
            "num_threads",
            "prefetch",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value!r}")
        choices = {
            "resize_mode": ("squash", "shortest", "longest", "naflex"),
            "batch_by": ("tokens", "samples"),
            "interpolation": ("bicubic", "bilinear"),
            "padding": ("max_length", "longest"),
            "empty_caption": ("drop", "keep"),
            "executor": ("auto", "threads", "tensorflow"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if any(not name or width < 1 for name, width in self.embeddings.items()):
            raise ValueError(f"embeddings must name fields and their lengths, at least 1, not {self.embeddings!r}")
        transform_identity(self.transform)
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must lie in [0, 1], not {self.max_bad_fraction!r}")

    @property
    def has_images(self) -> bool:
        """Whether images are read."""
        return self.image_size is not None

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images; 0 and 0 where there are none."""
        size = self.image_size or 0
        return (size, size) if isinstance(size, int) else size

    @property
    def patch_lengths(self) -> tuple[int, ...]:
        """``max_patches`` as a tuple."""
        return (self.max_patches,) if isinstance(self.max_patches, int) else self.max_patches

    @property
    def decodes_scaled(self) -> bool:
        """Whether large JPEGs are decoded at a fraction of their size."""
        return not self.evaluates if self.scaled_decoding is None else self.scaled_decoding

    @property
    def drops_empty_captions(self) -> bool:
        """Whether a sample needs a caption: where there is a tokenizer, and ``empty_caption`` says so."""
        return self.tokenizer is not None and self.empty_caption == "drop"

    @property
    def evaluates(self) -> bool:
        """Whether every sample comes exactly once an epoch, padded and masked, rather than in full, mixed batches."""
        return not self.shuffle and self.num_epochs is not None
