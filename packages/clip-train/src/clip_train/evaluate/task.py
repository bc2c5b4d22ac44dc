"""One evaluation from its config: its data, its prompts, its result."""

from __future__ import annotations

import dataclasses
from typing import Any

from clip_data import DataConfig, Pipeline, Tokenizer
from clip_train.evaluate.classification import zero_shot
from clip_train.evaluate.config import EvaluationConfig
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.prompts import read_prompts
from clip_train.evaluate.result import Result
from clip_train.evaluate.retrieval import retrieval


def evaluation_data(config: EvaluationConfig, data: DataConfig, encoders: Encoders) -> Pipeline:
    """The pipeline of one evaluation: every sample once, in order, prepared as the model expects."""
    process_index, process_count = encoders.readers
    # Classification reads no captions: samples without one count too.
    tokenizer = None if config.task == "zeroshot_classification" else data.tokenizer
    return Pipeline(
        dataclasses.replace(data, sources=(config.data,), shuffle=False, num_epochs=1, tokenizer=tokenizer),
        global_batch_size=encoders.batch_size(config.batch_size),
        process_index=process_index,
        process_count=process_count,
    )


def evaluate(
    config: EvaluationConfig, encoders: Encoders, params: Any, data: DataConfig, tokenizer: Tokenizer
) -> Result:
    """Run one evaluation from its config.

    Args:
        config: which.
        encoders: the towers.
        params: of the model.
        data: how samples are prepared; its sources are not read.
        tokenizer: the model's.
    """
    with evaluation_data(config, data, encoders) as pipeline:
        if config.task == "zeroshot_retrieval":
            return retrieval(encoders, params, pipeline, tokenizer, positives=config.positives, name=config.name)
        prompts = read_prompts(config)
        return zero_shot(encoders, params, pipeline, prompts, tokenizer, name=config.name)
