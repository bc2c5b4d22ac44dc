import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_data.tfrecord import write_examples
from clip_train.batches import GlobalBatches
from clip_train.config import TrainConfig
from clip_train.config_file import ConfigError, read_config
from clip_train.setup import prepare, resolve

EMBEDS = np.random.default_rng(0).normal(size=(2, 16, 5)).astype(np.float32)


@pytest.fixture
def taught(squares):
    """A config that learns from embeddings in the records, whose scale is left to be set."""
    Image.new("RGB", (16, 16), (200, 30, 30)).save(png := io.BytesIO(), "PNG")
    records = [
        {
            "key": str(n),
            "png": png.getvalue(),
            "caption": "a red square",
            "of_image": EMBEDS[0, n].tolist(),
            "of_text": EMBEDS[1, n].tolist(),
        }
        for n in range(16)
    ]
    write_examples(str(squares / "taught.tfrecord"), records)
    config = json.loads((squares / "config.json").read_text())
    config |= {"data": {"train": [{"format": "tfrecord", "shards": "taught.tfrecord"}]}, "global_batch_size": 8}
    config["loss"] = {"distillation": {"columns": {"image": "of_image", "text": "of_text", "width": 5}}}
    (squares / "taught.json").write_text(json.dumps(config))
    return squares / "taught.json"


def test_embeddings_of_the_records_teach(taught):
    setup = prepare(*resolve(read_config(TrainConfig, taught, ["loss.distillation.scale=20"])))
    keys = {}
    with setup.pipeline as pipeline:
        batches = GlobalBatches(pipeline, setup.mesh, teacher=setup.teacher(), remember=keys.__setitem__)
        batch = next(batches)
    rows = [int(key) for key in keys[1]]
    image, text = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in EMBEDS[:, rows])
    np.testing.assert_allclose(batch["teacher_image"], 20 * image, rtol=1e-5)
    np.testing.assert_allclose(batch["teacher_text"], text, rtol=1e-5)
    for name, wanted in setup.batch().items():
        assert (batch[name].shape, batch[name].dtype) == (wanted.shape, wanted.dtype)
    assert batch.keys() == setup.batch().keys()
    assert not setup.data.embeddings  # an evaluation needs none


def test_a_teacher_is_one_thing_and_embeddings_have_a_scale(taught):
    with pytest.raises(ConfigError, match="set scale, which is 100 for OpenAI's CLIP"):
        read_config(TrainConfig, taught)
    with pytest.raises(ConfigError, match="and not both"):
        read_config(TrainConfig, taught, ["loss.distillation.scale=20", "loss.distillation.teacher=somebody"])
