"""`clip-finetune text` with `task: embedding`: a text tower learns which sentences mean the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clip_finetune.backbone import load_backbone, tower_alone
from clip_finetune.config import SentencesConfig
from clip_finetune.embedder import Embedder, Embedding, measured
from clip_finetune.features import cache_directory, labelled_features
from clip_finetune.files import claimed
from clip_finetune.samples import Part
from clip_finetune.sentence_pairs import FeaturePairs, SentencePair, SentencePairs, Sentences, read_sentence_pairs
from clip_finetune.task import FAULTS, sources_of, split_of
from clip_finetune.texts import tokenizer_of
from clip_finetune.tune import Epoch, StoppedError, forget_checkpoints, tune
from clip_finetune.wise_ft import best_between
from clip_train.config_file import config_to_json, located
from clip_train.output import Output, write_json
from clip_train.screen import make_console, percent, show_facts, show_table


def embed_sentences(config: SentencesConfig) -> int:
    """Learn as the config's mode says, report before and after on the test pairs, and save the model.

    Started again it continues where an earlier start was cut off.

    Args:
        config: of the task.

    Returns:
        The exit status: 0 when it is finished, 128 plus the signal's number when one stopped it.

    Raises:
        ConfigError: the config asks for what cannot be.
    """
    console = make_console()
    resolved = config_to_json(config)
    output, finished = claimed(config.output_dir, resolved, console)
    if finished:
        return 0
    with located("model"):
        model, params = load_backbone(config.model, tower="text")
        alone = tower_alone(model, "text")
        tokenizer_of(alone)
    parts = _parts(config)
    scored = None
    if config.scored is not None:
        with located("scored", FAULTS):
            pairs = read_sentence_pairs(config.scored, config.positive_key, config.score_key)
            scored = SentencePairs.of(pairs, where=", ".join(config.scored.patterns))
    embedder = Embedder(alone, config.features)
    plain: dict[str, Any] = {"text": params["text"], "head": {}}
    with located("dim"):
        start = plain | {"head": embedder.head(config.dim, projected=config.mode == "probe")}
    facts = [("model", config.model), ("mode", config.mode), ("pairs", f"{len(parts['train'].pairs):,}")]
    show_facts(console, "clip-finetune text", [*facts, ("output", str(output.root))])

    def judged(params: Any) -> dict[str, float]:
        metrics = measured(embedder, params, parts["test"], batch_size=config.batch_size)
        more = {} if scored is None else measured(embedder, params, scored, batch_size=config.batch_size)
        return {**metrics, **more}

    def tell(epoch: Epoch) -> None:
        console.print(f"epoch {epoch.epoch}  loss {epoch.loss:.4f}  validation {_shown(epoch.metrics)}")

    before = judged(plain)
    results: dict[str, Any] = {"task": "sentence_embedding", "mode": config.mode, "before": before}
    tuned = plain
    if config.mode != "zero-shot":
        output.write_config(resolved)
        try:
            tuned, more = _learn(config, embedder, start, parts, output, tell)
        except StoppedError as stopped:
            console.print(f"\n{stopped}")
            return 128 + stopped.signal
        results |= more
    after = judged(tuned)
    output.write_config(resolved)
    embedder.save(output.root / "model", tuned, whole=(model, jax.tree.map(np.asarray, params)))
    write_json(output.results, {**results, "after": after, "num_pairs": len(parts["test"].pairs)})
    forget_checkpoints(output.root)
    shown = [(name, _value(name, before[name]), _value(name, value)) for name, value in after.items()]
    show_table(console, ("test", "before", "after"), shown)
    show_facts(console, "Finished", [("model", str(output.root / "model")), ("results", str(output.results))])
    return 0


def _learn(
    config: SentencesConfig,
    embedder: Embedder,
    start: dict[str, Any],
    parts: dict[Part, SentencePairs],
    output: Output,
    tell: Callable[[Epoch], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    train: SentencePairs | FeaturePairs = parts["train"]
    validation: SentencePairs | FeaturePairs = parts["validation"]
    if config.mode == "probe":
        with located("train", FAULTS):
            train, validation = (_featured(config, embedder, start, pairs) for pairs in (train, validation))
    learner = Embedding(embedder, config.scale, validation, config.batch_size)
    with located("train", FAULTS):
        tuned, epochs = tune(
            learner,
            start,
            train,
            config.tune,
            mode=config.mode,
            num_train=len(parts["train"].pairs),
            directory=output.root,
            seed=config.seed,
            tell=tell,
        )
    results: dict[str, Any] = {"epochs": [dataclasses.asdict(epoch) for epoch in epochs]}
    if config.mode != "wise-ft":
        return tuned, results
    tuned, alpha, curve = best_between(
        start, tuned, config.tune.alphas, lambda params: learner.choice(learner.measure(params))
    )
    return tuned, {**results, "alpha": alpha, "curve": [{"alpha": a, "validation": v} for a, v in curve]}


def _featured(config: SentencesConfig, embedder: Embedder, params: Any, pairs: SentencePairs) -> FeaturePairs:
    """The pairs as the frozen tower reads them, once."""
    made = labelled_features(
        embedder.config,
        {"text": params["text"]},
        Sentences(tuple(pairs.sentences()[0]), pairs.where),
        kind=embedder.features,
        batch_size=config.batch_size,
        cache=cache_directory(config.cache),
    )
    return FeaturePairs(made.features, pairs)


def _parts(config: SentencesConfig) -> dict[Part, SentencePairs]:
    read: dict[Part, tuple[SentencePair, ...]] = {}
    parts: dict[Part, SentencePairs] = {}
    for part, source in sources_of(config).items():
        with located(part if getattr(config, part) else "train", FAULTS):
            own = source is not config.train or not read
            read[part] = read_sentence_pairs(source, config.positive_key) if own else read["train"]
            where = ", ".join(source.patterns)
            parts[part] = SentencePairs.of(read[part], where=where, split=split_of(config, part))
    return parts


def _shown(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {_value(name, value)}" for name, value in metrics.items())


def _value(name: str, value: float) -> str:
    return percent(value) if name.startswith("recall") else f"{value:.4g}"
