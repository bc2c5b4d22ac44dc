"""`clip-finetune text` with `task: embedding`: a text tower learns which sentences mean the same."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from clip_data import SourceConfig
from clip_finetune.backbone import load_backbone, tower_alone
from clip_finetune.config import SplitConfig, TuneConfig
from clip_finetune.embedder import Embedder, Embedding, measured
from clip_finetune.features import cache_directory, labelled_features
from clip_finetune.files import local_output
from clip_finetune.samples import Part
from clip_finetune.sentence_pairs import FeaturePairs, SentencePairs, Sentences, read_sentence_pairs
from clip_finetune.split import Split
from clip_finetune.task import FAULTS
from clip_finetune.texts import tokenizer_of
from clip_finetune.tune import Epoch, StoppedError, forget_checkpoints, tune
from clip_finetune.wise_ft import best_between
from clip_train.config_file import STRICT, config_to_json, located
from clip_train.output import Output, write_json
from clip_train.screen import make_console, percent, show_facts, show_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencesConfig:
    """Sentence embedding on a checkpoint's text tower.

    Attributes:
        task: says that it is this.
        output_dir: where the model and its results go.
        model: a run's directory, a model's directory, or a name on the Hugging Face Hub.
        train: pairs of sentences that mean the same: a table, or shards; `caption_key` names one sentence's field.
        positive_key: names the other's.
        validation: pairs to make choices by; by default a share of `train`.
        test: pairs to report on; by default a share of `train`.
        scored: pairs with a score of how alike they are, to report on: an STS data set.
        score_key: names the score's field in `scored`.
        split: how large the shares are.
        mode: `zero-shot` learns nothing and measures; `probe` learns a linear projection of features of the frozen
            tower; `full` trains the tower; `lora` small updates to it; `wise-ft` is `full`, and a point between the
            first weights and the tuned ones.
        features: what a vector is made of: the `embedding`, which stays comparable with pictures; the `pooled` vector
            before the projection; the `mean` over the sentence's tokens; or `pooled+mean`.
        dim: width of a linear projection on top, which begins as the identity; by default as wide as the features in
            `probe`, and none else.
        scale: of the cosines in the softmax loss over the sentences of a batch.
        tune: of all modes that learn; `head` and `augment` are of no use here.
        batch_size: sentences encoded at once.
        cache: a directory for the features of frozen towers; `auto` is the user's cache, `null` none.
        seed: of the split and the order of pairs.
    """

    __pydantic_config__ = STRICT

    task: Literal["embedding"]
    output_dir: str
    model: str
    train: SourceConfig
    positive_key: str = "positive"
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    scored: SourceConfig | None = None
    score_key: str = "score"
    split: SplitConfig = SplitConfig()
    mode: Literal["zero-shot", "probe", "full", "lora", "wise-ft"] = "full"
    features: Literal["embedding", "pooled", "mean", "pooled+mean"] = "embedding"
    dim: int | None = None
    scale: float = 20.0
    tune: TuneConfig = TuneConfig()
    batch_size: int = 256
    cache: str | None = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        for name in ("batch_size", "dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        if self.scale <= 0:
            raise ValueError(f"scale is above 0; got {self.scale}")
        if self.dim is not None and self.mode == "zero-shot":
            raise ValueError(f"zero-shot learns nothing, so no projection either; leave dim out, got {self.dim}")


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
    output, resolved = local_output(config.output_dir), config_to_json(config)
    if output.claim(resolved) and output.results.exists():
        console.print(f"This task is finished: {output.results}. To do it again, set another output_dir.")
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
    plain = Embedder(alone, config.features)
    start: dict[str, Any] = {"text": params["text"], "head": {}}
    facts = [("model", config.model), ("mode", config.mode), ("pairs", f"{len(parts['train'].pairs):,}")]
    show_facts(console, "clip-finetune text", [*facts, ("output", str(output.root))])

    def judged(embedder: Embedder, params: Any) -> dict[str, float]:
        metrics = measured(embedder, params, parts["test"], batch_size=config.batch_size)
        more = {} if scored is None else measured(embedder, params, scored, batch_size=config.batch_size)
        return {**metrics, **more}

    def tell(epoch: Epoch) -> None:
        console.print(f"epoch {epoch.epoch}  loss {epoch.loss:.4f}  validation {_shown(epoch.metrics)}")

    before = judged(plain, start)
    results: dict[str, Any] = {"task": "sentence_embedding", "mode": config.mode, "before": before}
    embedder, tuned = plain, start
    if config.mode != "zero-shot":
        output.write_config(resolved)
        try:
            embedder, tuned, more = _learn(config, plain, start, parts, output, tell)
        except StoppedError as stopped:
            console.print(
                f"\nStopped by {stopped.signal.name} after step {stopped.step}, and saved. The same command continues "
                "from there."
            )
            return 128 + stopped.signal
        results |= more
    after = judged(embedder, tuned)
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
    plain: Embedder,
    start: dict[str, Any],
    parts: dict[Part, SentencePairs],
    output: Output,
    tell: Any,
) -> tuple[Embedder, dict[str, Any], dict[str, Any]]:
    sentences, first, second = parts["train"].sentences()
    samples: Any = parts["train"]
    dim = config.dim
    if config.mode == "probe" or dim is not None:
        with located("train", FAULTS):
            features = labelled_features(
                plain.config,
                {"text": start["text"]},
                Sentences(tuple(sentences), parts["train"].where),
                kind=plain.features,
                batch_size=config.batch_size,
                cache=cache_directory(config.cache),
            ).features
        dim = dim or features.shape[1]
        with located("dim"):
            start = {**start, "head": Embedder(plain.config, plain.features, dim).head(features.shape[1])}
        if config.mode == "probe":
            samples = FeaturePairs(features, first, second)
    embedder = Embedder(plain.config, plain.features, dim)
    learner = Embedding(embedder, config.scale, parts["validation"], config.batch_size)
    with located("train", FAULTS):
        tuned, epochs = tune(
            learner,
            start,
            samples,
            config.tune,
            mode=config.mode,
            num_train=len(first),
            directory=output.root,
            seed=config.seed,
            tell=tell,
        )
    results: dict[str, Any] = {"epochs": [dataclasses.asdict(epoch) for epoch in epochs]}
    if config.mode != "wise-ft":
        return embedder, tuned, results
    tuned, alpha, curve = best_between(
        start, tuned, config.tune.alphas, lambda params: learner.choice(learner.measure(params))
    )
    return embedder, tuned, {**results, "alpha": alpha, "curve": [{"alpha": a, "validation": v} for a, v in curve]}


def _parts(config: SentencesConfig) -> dict[Part, SentencePairs]:
    sources: dict[Part, SourceConfig | None] = {"train": None, "validation": config.validation, "test": config.test}
    with located("train", FAULTS):
        ours = read_sentence_pairs(config.train, config.positive_key)
    parts: dict[Part, SentencePairs] = {}
    for part, source in sources.items():
        split = Split(
            part=part,
            validation=0.0 if config.validation else config.split.validation,
            test=0.0 if config.test else config.split.test,
            seed=config.seed,
        )
        with located(part if source else "train", FAULTS):
            pairs = ours if source is None else read_sentence_pairs(source, config.positive_key)
            where = ", ".join((source or config.train).patterns)
            parts[part] = SentencePairs.of(pairs, where=where, split=split if source is None else None)
    return parts


def _shown(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {_value(name, value)}" for name, value in metrics.items())


def _value(name: str, value: float) -> str:
    return percent(value) if name.startswith("recall") else f"{value:.4g}"
