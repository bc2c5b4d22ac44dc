"""Evaluation of a two-tower model on held-out data: zero-shot classification, retrieval, linear probe."""

from clip_train.evaluate.classification import class_embeds, labels_of, score_metrics, targets_of, zero_shot
from clip_train.evaluate.config import EvaluationConfig
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.linear_probe import linear_probe
from clip_train.evaluate.prompts import (
    Prompts,
    dataset_type,
    is_multi_label,
    read_classnames,
    read_prompts,
    standard_names,
    standard_prompts,
)
from clip_train.evaluate.result import Example, Result
from clip_train.evaluate.retrieval import retrieval
from clip_train.evaluate.targets import AllCaptions, AllLabels
from clip_train.evaluate.task import check_evaluation, evaluate, evaluation_data

__all__ = [
    "AllCaptions",
    "AllLabels",
    "Encoders",
    "EvaluationConfig",
    "Example",
    "Prompts",
    "Result",
    "check_evaluation",
    "class_embeds",
    "dataset_type",
    "evaluate",
    "evaluation_data",
    "is_multi_label",
    "labels_of",
    "linear_probe",
    "read_classnames",
    "read_prompts",
    "retrieval",
    "score_metrics",
    "standard_names",
    "standard_prompts",
    "targets_of",
    "zero_shot",
]
