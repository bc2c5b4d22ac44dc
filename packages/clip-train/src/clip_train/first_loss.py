"""Whether the loss of a run's first step is one that its model, its loss and its batch can have."""

from __future__ import annotations

import math
from collections.abc import Iterator

from clip_train.jsonl import Row
from clip_train.objective import LossConfig


def absurd_first_losses(
    row: Row, config: LossConfig, *, batch_size: int, vocab_size: int, pretrained: bool
) -> Iterator[str]:
    """What is wrong with the losses of a first step, in words: of the contrastive one and of that of captions.

    Args:
        row: of its metrics.
        config: resolved.
        batch_size: pairs that are compared.
        vocab_size: words.
        pretrained: whether the weights were trained before.
    """
    losses = {"caption": row["loss"]} if config.kind == "caption" else {}
    if config.kind != "caption":
        # Of a loss that is no sum, the one part is not told apart.
        losses["contrastive"] = row.get("contrastive_loss", row["loss"] / config.contrastive_weight)
        if config.caption_weight:
            losses["caption"] = row["caption_loss"]
    for name, loss in losses.items():
        kind = "caption" if name == "caption" else config.kind
        chance = chance_loss(kind, batch_size=batch_size, vocab_size=vocab_size)
        if (found := absurd_first_loss(loss, chance=chance, pretrained=pretrained, name=f"{name} loss")) is not None:
            yield found


def absurd_first_loss(loss: float, *, chance: float, pretrained: bool, name: str = "loss") -> str | None:
    """What is wrong with one loss of a first step, in words.

    Args:
        loss: of it.
        chance: what embeddings that know nothing give.
        pretrained: whether the weights were trained before.
        name: of the loss.

    Example:
        >>> absurd_first_loss(5.6, chance=5.5, pretrained=False) is None
        True
        >>> print(absurd_first_loss(5.6, chance=5.5, pretrained=True))
        The first loss, 5.6, is no better than chance (5.5): these weights do not know these pictures or texts. Check \
that image_size, mean, std and tokenizer are those that they were trained with.
    """
    if not math.isfinite(loss):
        return None  # the guard tells
    if pretrained and loss > 0.95 * chance:
        return (
            f"The first {name}, {loss:.3g}, is no better than chance ({chance:.3g}): these weights do not know these "
            "pictures or texts. Check that image_size, mean, std and tokenizer are those that they were trained with."
        )
    if loss > 2 * chance + 1:
        return (
            f"The first {name}, {loss:.3g}, is far above chance ({chance:.3g}): look at the initial logit scale and "
            "bias (model.config.logit_scale_init, logit_bias_init)."
        )
    return None


def chance_loss(kind: str, *, batch_size: int, vocab_size: int) -> float:
    """The loss of embeddings that are all orthogonal, or of words that are all alike.

    That of the sigmoid loss is at the bias by which a pair matches as often as it does, one time in n: whatever bias a
    run begins with, it should not be much worse off.

    Args:
        kind: `sigmoid`, `softmax` or `caption`.
        batch_size: n, the pairs that are compared.
        vocab_size: words.

    Example:
        >>> round(chance_loss("softmax", batch_size=256, vocab_size=0), 3)
        5.545
    """
    match kind:
        case "caption":
            return math.log(vocab_size)
        case "softmax":
            return math.log(batch_size)
        case _:
            negatives = batch_size - 1
            return math.log(batch_size) + (negatives * math.log(batch_size / negatives) if negatives else 0.0)
