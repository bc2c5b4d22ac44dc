"""Evaluation of a two-tower model on held-out data: zero-shot classification and retrieval."""

from clip_train.evaluate.classification import labels_of, zero_shot
from clip_train.evaluate.config import EvaluationConfig
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.prompts import Prompts, read_classnames, read_prompts
from clip_train.evaluate.result import Example, Result
from clip_train.evaluate.retrieval import retrieval
from clip_train.evaluate.task import evaluate, evaluation_data

__all__ = [
    "Encoders",
    "EvaluationConfig",
    "Example",
    "Prompts",
    "Result",
    "evaluate",
    "evaluation_data",
    "labels_of",
    "read_classnames",
    "read_prompts",
    "retrieval",
    "zero_shot",
]
