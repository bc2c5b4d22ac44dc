import dataclasses
import io
import json

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from clip_data import Pipeline, SourceConfig
from clip_data.tfrecord import write_examples
from clip_models import ClipConfig, PreprocessConfig, VisionConfig, preprocess_images
from clip_sharding import MeshConfig, make_mesh
from clip_train.batches import GlobalBatches
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, read_config
from clip_train.evaluate import Encoders, evaluate
from clip_train.inputs import data_config, image_arrays, image_inputs, pictures_of
from clip_train.objective import clip_objective
from clip_train.setup import prepare, resolve
from clip_train.state import TrainState
from clip_train.step import make_step

SIDES = [(16, 48), (40, 16), (32, 32), (8, 24)]
NAFLEX = {
    "vision": {"image_size": 32, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2, "flexible": True},
    "text": {"vocab_size": 16, "max_length": 6, "width": 32, "num_layers": 1, "num_heads": 2},
    "preprocess": {"tokenizer": "words", "resize_mode": "naflex", "max_patches": 12},
}


def noise():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*side, 3), dtype=np.uint8) for side in SIDES * 3]


@pytest.fixture
def wide(squares):
    """Shards of pictures of several aspects beside the squares, and a config that trains on them."""

    def example(number, pixels):
        Image.fromarray(pixels).save(png := io.BytesIO(), "PNG")
        return {"key": f"{number}", "png": png.getvalue(), "caption": f"a {['red', 'blue'][number % 2]} square"}

    write_examples(squares / "wide.tfrecord", [example(*item) for item in enumerate(noise())])
    source = {"format": "tfrecord", "shards": "wide.tfrecord"}
    config = {
        "output_dir": "wide",
        "model": {"config": NAFLEX},
        "data": {"train": [source]},
        "global_batch_size": 8,
        "train_samples": 16,
        "evaluation": [{"name": "pairs", "task": "zeroshot_retrieval", "data": source}],
    }
    (squares / "wide.json").write_text(json.dumps(config))
    return squares


def test_patches_are_those_of_preprocess_images(wide):
    model = ClipConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=8, num_layers=1, num_heads=1, flexible=True),
        preprocess=PreprocessConfig(resize_mode="naflex", max_patches=12, mean=(0.1, 0.5, 0.9)),
    )
    source = SourceConfig(format="tfrecord", shards=str(wide / "wide.tfrecord"))
    with Pipeline(
        data_config(model, (source,), shuffle=False, num_epochs=1, tokenizer=None), global_batch_size=12
    ) as pipeline:
        batch = next(pipeline)
    inputs = image_inputs(model, image_arrays(batch))
    expected = preprocess_images(model, noise())
    assert inputs.keys() == expected.keys()
    for name in ("pixel_attention_mask", "spatial_shapes"):
        np.testing.assert_array_equal(inputs[name], expected[name])
    levels = np.abs(np.asarray(inputs["pixel_values"]) - expected["pixel_values"]) * 0.5 * 255
    assert levels.max() < 1.01
    assert not np.asarray(inputs["pixel_values"])[expected["pixel_attention_mask"] == 0].any()
    assert [picture.shape[:2] for picture in pictures_of(batch)] == [
        tuple(shape * 8) for shape in expected["spatial_shapes"]
    ]
    np.testing.assert_array_equal(pictures_of(batch)[3][:8, :8].reshape(-1), batch.image[3, 0])


def setup_of(wide, max_patches):
    setup = prepare(*resolve(read_config(TrainConfig, wide / "wide.json", [f"data.max_patches={max_patches}"])))
    setup.pipeline.close()
    return setup


def test_a_model_of_patches_trains_and_is_evaluated(wide):
    config, origin = resolve(read_config(TrainConfig, wide / "wide.json", ["data.max_patches=[12, 6]"]))
    setup, mesh = prepare(config, origin), make_mesh(MeshConfig(), jax.devices()[:1])
    tx = optax.sgd(1e-2)
    step = make_step(clip_objective(setup.model, config.loss, mesh, config.data.augment), tx)
    rng, shapes = np.random.default_rng(0), setup.abstract.params  # to compile what draws them would take seconds
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    state = TrainState(step=np.int32(0), params=params, opt_state=tx.init(params))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    assert setup.model_flops() == sum(setup_of(wide, length).model_flops() for length in (12, 6)) / 2
    assert setup.batch()["image"].shape == (8, 12, 192)
    shapes = []
    with setup.pipeline as pipeline:
        for _, batch in zip(range(2), GlobalBatches(pipeline, mesh), strict=False):
            shapes.append(batch["image"].shape)
            state, metrics = step(state, batch)
            assert np.isfinite(float(metrics["loss"]))
            assert float(metrics["grad_norm"]) > 0
        repeated = GlobalBatches(pipeline, mesh, repeat_first=True)
        first, position = next(repeated), pipeline.cursor()["position"]
        jax.tree.map(np.testing.assert_array_equal, next(repeated), first)
        assert repeated.cursor(2)["position"] == position
    assert sorted(shapes) == [(8, 6, 192), (8, 12, 192)]
    result = evaluate(config.evaluation[0], Encoders(setup.model, mesh), state.params, setup.data, setup.tokenizer)
    assert result.num_samples == 12
    assert [example.image.shape for example in result.examples[:2]] == [(16, 48, 3), (40, 16, 3)]


def test_several_lengths_are_of_patches(wide):
    for lengths, message in ("[12, 6]", "lengths of naflex sequences"), ("[]", "at least 1"):
        changes = ["data.resize_mode=squash", f"data.max_patches={lengths}"]
        with pytest.raises(ConfigError, match=message):
            resolve(read_config(TrainConfig, wide / "wide.json", changes))


def test_patches_are_not_augmented(wide):
    config = read_config(TrainConfig, wide / "wide.json", ['data.augment={"flip": true}'])
    with pytest.raises(ConfigError, match=r"data\.augment: sequences of patches"):
        prepare(*resolve(config))
    config = read_config(TrainConfig, wide / "wide.json", ['data.augment={"flip": true}', "data.resize_mode=squash"])
    setup = prepare(*resolve(config))
    setup.pipeline.close()
    assert (setup.model.preprocess.max_patches, setup.data.patch_size) == (0, 16)


def test_sizes_of_training_and_evaluation(wide):
    flat = ["data.image_size=[16, 32]", "data.resize_mode=squash", 'data.augment={"source_size": 40}']
    setup = prepare(*resolve(read_config(TrainConfig, wide / "wide.json", flat)))
    with setup.pipeline as pipeline:
        assert next(pipeline).image.shape == (8, 40, 40, 3)
    with Pipeline(dataclasses.replace(setup.data, num_epochs=1, shuffle=False), global_batch_size=4) as pipeline:
        assert next(pipeline).image.shape == (4, 16, 32, 3)
