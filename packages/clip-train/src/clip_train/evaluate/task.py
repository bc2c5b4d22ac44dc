"""One evaluation from its config: its data, its prompts, its result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

from clip_data import Batch, DataConfig, Pipeline, SourceConfig, SumCounts, Tokenizer
from clip_train.agreement import sum_counts
from clip_train.evaluate.classification import labels_of, targets_of, zero_shot
from clip_train.evaluate.config import EvaluationConfig
from clip_train.evaluate.encoders import Encoders
from clip_train.evaluate.linear_probe import linear_probe
from clip_train.evaluate.prompts import is_multi_label, read_classnames, read_prompts
from clip_train.evaluate.result import Result
from clip_train.evaluate.retrieval import retrieval
from clip_train.evaluate.targets import AllCaptions, AllLabels


def evaluation_data(
    config: EvaluationConfig,
    data: DataConfig,
    encoders: Encoders,
    source: SourceConfig | None = None,
    *,
    sum_counts: SumCounts | None = None,
) -> Pipeline:
    """The pipeline of one evaluation: every sample once, in order, prepared as the model expects.

    Args:
        config: of the evaluation.
        data: how samples are prepared; its sources are not read.
        encoders: of the model.
        source: another than the one that is evaluated on, such as where a probe learns.
        sum_counts: as for `Pipeline`, where all processes read it at the same time.
    """
    process_index, process_count = encoders.readers
    source = source or config.data
    transform: Any = None
    if config.task == "zeroshot_retrieval":
        transform = AllCaptions(source)
    elif is_multi_label(config.multi_label, config.data):
        transform = AllLabels(source.label_key)
        source = dataclasses.replace(source, label_key=None)  # several labels are no integer
    return Pipeline(
        # Texts are encoded apart from the pictures; samples without a caption count too.
        dataclasses.replace(data, sources=(source,), shuffle=False, num_epochs=1, tokenizer=None, transform=transform),
        global_batch_size=encoders.batch_size(config.batch_size),
        process_index=process_index,
        process_count=process_count,
        sum_counts=sum_counts,
    )


def check_evaluation(config: EvaluationConfig, data: DataConfig, encoders: Encoders) -> None:
    """Read the prompts and one batch, so that what is missing is found before the training and not after it.

    Raises:
        ValueError: class names, templates or labels are missing, or do not belong together.
        OSError: the samples cannot be read.
        DataError: they cannot be used.
    """
    for source in filter(None, (config.data, config.train, config.validation)):
        with evaluation_data(config, data, encoders, source) as pipeline:
            if config.task == "zeroshot_retrieval":
                continue
            if config.task == "linear_probe":
                classnames = read_classnames(config.classnames, config.data)
            else:
                classnames = read_prompts(config).classnames
            of = targets_of if is_multi_label(config.multi_label, config.data) else labels_of
            of(next(pipeline), len(classnames))


def evaluate(
    config: EvaluationConfig,
    encoders: Encoders,
    params: Any,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    through: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> Result:
    """Run one evaluation from its config.

    Args:
        config: which.
        encoders: the towers.
        params: of the model.
        data: how samples are prepared; its sources are not read.
        tokenizer: the model's.
        through: passes on the batches of each source, such as to say when they do not come.
    """
    with contextlib.ExitStack() as open_pipelines:

        def read(source: SourceConfig) -> Iterable[Batch]:
            together = functools.partial(sum_counts, gather=encoders.gather_items)
            pipeline = evaluation_data(config, data, encoders, source, sum_counts=together)
            return through(open_pipelines.enter_context(pipeline))

        pipeline = read(config.data)
        if config.task == "zeroshot_retrieval":
            return retrieval(encoders, params, pipeline, tokenizer, positives=config.positives, name=config.name)
        multi_label = is_multi_label(config.multi_label, config.data)
        if config.train is not None:
            return linear_probe(
                encoders,
                params,
                pipeline,
                read(config.train),
                config.probe,
                classnames=read_classnames(config.classnames, config.data),
                validation=None if config.validation is None else read(config.validation),
                multi_label=multi_label,
                name=config.name,
            )
        prompts = read_prompts(config)
        return zero_shot(encoders, params, pipeline, prompts, tokenizer, multi_label=multi_label, name=config.name)
