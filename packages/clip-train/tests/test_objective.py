import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clip_losses
from clip_models import ClipConfig, DecoderConfig, TextConfig, VisionConfig, caption_logits, init, logical_axes
from clip_sharding import MeshConfig, make_mesh, shardings, strategy, to_global
from clip_train.accumulate import accumulated_value_and_grad
from clip_train.augment import AugmentConfig
from clip_train.distill import distillation_loss
from clip_train.microbatches import join_rows, split_rows
from clip_train.objective import DistillationConfig, LossConfig, clip_objective, first_logits, loss_kind
from clip_train.state import TrainState
from clip_train.step import make_step
from clip_train.teacher import Teacher

VISION = VisionConfig(image_size=16, patch_size=8, width=16, num_layers=1, num_heads=2)
TEXT = TextConfig(vocab_size=24, max_length=6, width=16, num_layers=1, num_heads=2)
DECODER = DecoderConfig(vocab_size=24, max_length=6, width=16, num_layers=1, num_heads=2)
SIGLIP = ClipConfig(vision=VISION, text=TEXT)
CLIP = ClipConfig(vision=VISION, text=TEXT, logit_bias_init=None)
COCA = ClipConfig(vision=VISION, text=TEXT, decoder=DECODER)
CAPPA = ClipConfig(vision=VISION, decoder=DECODER)
TEACHER = DistillationConfig(teacher="unused", weight=0.25)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 7, (16, 1))
    return {
        "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        "input_ids": rng.integers(3, 24, (16, 6), dtype=np.int32),
        "attention_mask": (np.arange(6) < lengths).astype(np.int32),
    }


@functools.cache
def params_of(config, seed=0):
    rng = np.random.default_rng(seed)  # to compile what draws them would take seconds
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def compiled(function, *args):
    """What is compared needs no fast code, and optimising it is most of the time."""
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*args).compile(compiler_options=fast)(*args)


def test_captions_weigh_every_token_alike(batch):
    def both(params, batch):
        loss, _ = clip_objective(CAPPA, LossConfig(kind="caption"))(params, batch, jax.random.key(0))
        pixel_values = batch["image"].astype(jnp.float32) / 127.5 - 1
        logits = caption_logits(CAPPA, params, pixel_values, batch["input_ids"])
        return loss, clip_losses.caption_loss(logits, batch["input_ids"], batch["attention_mask"] > 0)

    loss, expected = compiled(both, params_of(CAPPA), batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def whole_and_accumulated(model, config, arrays):
    """What one step of plain SGD adds, and its metrics: at once, and in four microbatches."""
    mesh, tx, params = make_mesh(MeshConfig(), jax.devices()[:1]), optax.sgd(1.0), params_of(model)
    arrays = to_global(arrays, mesh)
    for num_microbatches in (1, 4):
        step = make_step(clip_objective(model, config, mesh), tx, num_microbatches=num_microbatches)
        state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
        state, metrics = compiled(lambda *args, step=step: step(*args), state, arrays)
        yield jax.tree.map(np.subtract, state.params, params), metrics


@pytest.mark.parametrize("losses", ["three", "captions"])
def test_sums_of_losses_and_captions_alone_accumulate_exactly(batch, losses):
    if losses == "three":
        model, config = COCA, LossConfig(contrastive_weight=0.5, caption_weight=2.0, distillation=TEACHER)
        teacher = np.random.default_rng(1).normal(size=(2, 16, 8)).astype(np.float32)
        batch = {**batch, "teacher_image": teacher[0], "teacher_text": teacher[1]}
        weights = {"contrastive_loss": 0.5, "caption_loss": 2.0, "distillation_loss": 0.25}
    else:
        model, config, weights = CAPPA, LossConfig(), {"loss": 1.0}
    config = replace(config, kind=loss_kind(config, model))
    (whole, metrics), (accumulated, again) = whole_and_accumulated(model, config, batch)
    assert float(again["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    difference = optax.tree.norm(jax.tree.map(np.subtract, accumulated, whole))
    assert difference < 1e-5 * optax.tree.norm(whole)
    total = sum(weight * float(metrics[name]) for name, weight in weights.items())
    assert total == pytest.approx(float(metrics["loss"]), rel=1e-6)


def test_accumulation_replays_dropout_and_is_exact_over_sharded_weights(batch):
    model = replace(
        SIGLIP,
        vision=replace(VISION, dropout=0.3, drop_path=0.2, patch_dropout=0.25),
        text=replace(TEXT, dropout=0.3),
    )
    params, key, num = params_of(model), jax.random.key(3), 4

    def apart(params, batch):
        """The loss of all rows, each encoded with its microbatch's key: no scan, one device."""
        objective = clip_objective(model, LossConfig(kind="sigmoid"))
        parts, keys = jax.tree.map(lambda rows: split_rows(rows, num), batch), jax.random.split(key, num)
        embeds = [objective.encode(params, jax.tree.map(lambda rows, i=i: rows[i], parts), keys[i]) for i in range(num)]
        return objective.loss(jax.tree.map(lambda *rows: join_rows(jnp.stack(rows)), *embeds), params)

    mesh, rules = make_mesh(MeshConfig(data=1, fsdp=2, model=2), jax.devices()[:4]), strategy("fsdp+tensor")
    placed = jax.device_put(params, shardings(rules, mesh, logical_axes(model), params))
    objective = clip_objective(model, LossConfig(kind="sigmoid"), mesh, AugmentConfig(), rules=rules)
    (loss, _), grads = compiled(
        lambda params, batch: accumulated_value_and_grad(objective, num, params, batch, key),
        placed,
        to_global(batch, mesh),
    )
    (expected, _), whole = compiled(jax.value_and_grad(apart, has_aux=True), params, batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    difference = optax.tree.norm(jax.tree.map(np.subtract, jax.tree.map(np.asarray, grads), whole))
    assert difference < 1e-5 * optax.tree.norm(whole)


def test_activations_are_those_of_one_microbatch():
    """By what XLA sets aside: four microbatches of 16 take what one batch of 16 does, and 64 at once far more."""

    def temporary_bytes(batch_size, num_microbatches):
        batch = {"image": np.zeros((batch_size, 16, 16, 3), np.uint8), "input_ids": np.zeros((batch_size, 6), np.int32)}
        tx, params = optax.sgd(1.0), params_of(SIGLIP)
        step = make_step(clip_objective(SIGLIP, LossConfig(kind="sigmoid")), tx, num_microbatches=num_microbatches)
        state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    one, four, at_once = temporary_bytes(16, 1), temporary_bytes(64, 4), temporary_bytes(64, 1)
    kept = 64 * 2 * 16 * 4  # the embeddings of all, and as much again for their gradients
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params_of(SIGLIP)))
    assert four < one + 2 * kept + 2 * parameters
    assert four < 0.6 * at_once


def test_distillation_is_the_divergence_of_softmaxes(monkeypatch):
    rng = np.random.default_rng(0)
    image, text, other_image, other_text = (rng.normal(size=(12, width)) for width in (5, 5, 7, 7))
    x, t = 3.0 * image @ text.T, 2.0 * other_image @ other_text.T
    expected = 0.0
    for student, teacher in ((x, t), (x.T, t.T)):
        log_q = student - np.log(np.exp(student).sum(1, keepdims=True))
        log_p = teacher - np.log(np.exp(teacher).sum(1, keepdims=True))
        expected += (np.exp(log_p) * (log_p - log_q)).sum() / 12 / 2
    both = (image, text, 3.0), (other_image, other_text, 2.0)
    np.testing.assert_allclose(distillation_loss(*both), expected, rtol=1e-5)
    monkeypatch.setattr("clip_train.distill._LOGITS_AT_ONCE", 24)
    np.testing.assert_allclose(distillation_loss(*both, num_devices=2), expected, rtol=1e-5)


def test_a_loss_belongs_to_its_model():
    assert [loss_kind(LossConfig(), model) for model in (SIGLIP, CLIP, CAPPA)] == ["sigmoid", "softmax", "caption"]
    for config, model, message in (
        (LossConfig(kind="softmax"), SIGLIP, "a logit bias, as SigLIP has"),
        (LossConfig(kind="sigmoid"), CLIP, "no logit bias, as CLIP has none"),
        (LossConfig(kind="caption"), SIGLIP, "the model has not both"),
        (LossConfig(kind="caption"), COCA, "leave the text tower untrained"),
        (LossConfig(), COCA, "a decoder, so that caption_weight is above 0"),
        (LossConfig(caption_weight=1.0), SIGLIP, "no decoder, so that caption_weight is 0"),
        (LossConfig(kind="sigmoid"), CAPPA, "the model has no text tower"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_kind(config, model)


def test_scale_and_bias_begin_as_the_loss_wants_them():
    kept = first_logits(SIGLIP, "sigmoid", 256, anew=())
    assert kept.logit_bias_init == SIGLIP.logit_bias_init
    anew = first_logits(SIGLIP, "sigmoid", 256, anew=("logit_bias",))
    assert jax.nn.sigmoid(anew.logit_bias_init) == pytest.approx(1 / 256)
    forced = first_logits(SIGLIP, "softmax", 256, anew=())
    assert forced.logit_bias_init is None
    assert np.exp(forced.logit_scale_init) == pytest.approx(1 / 0.07)


def test_a_teacher_reads_what_its_student_does():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    other = replace(SIGLIP, text=replace(TEXT, vocab_size=25))
    with pytest.raises(ValueError, match="24 ids and 6 tokens; this one knows 25 ids"):
        Teacher(other, {}, SIGLIP, mesh)
