"""Exact contrastive losses for CLIP and SigLIP, with memory linear in the batch."""

from clip_losses.caption import caption_loss
from clip_losses.sigmoid import (
    sharded_sigmoid_loss,
    sharded_sigmoid_loss_and_grads,
    sigmoid_loss,
    sigmoid_loss_and_grads,
)
from clip_losses.softmax import (
    sharded_softmax_loss,
    sharded_softmax_loss_and_grads,
    softmax_loss,
    softmax_loss_and_grads,
)

__all__ = [
    "caption_loss",
    "sharded_sigmoid_loss",
    "sharded_sigmoid_loss_and_grads",
    "sharded_softmax_loss",
    "sharded_softmax_loss_and_grads",
    "sigmoid_loss",
    "sigmoid_loss_and_grads",
    "softmax_loss",
    "softmax_loss_and_grads",
]
