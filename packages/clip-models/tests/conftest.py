"""Two tiny models that between them use most options, and their inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_models import ClipConfig, TextConfig, VisionConfig, init

collect_ignore_glob = ["fixtures/*.py", "fixtures/*/*.py"]  # they run in PyTorch's environment


def siglip_config() -> ClipConfig:
    return ClipConfig(
        vision=VisionConfig(image_size=16, patch_size=4, width=24, num_layers=3, num_heads=2),
        text=TextConfig(vocab_size=20, max_length=6, width=20, num_layers=2, num_heads=2, mlp_dim=24),
    )


def clip_config() -> ClipConfig:
    return ClipConfig(
        vision=VisionConfig(
            image_size=16,
            patch_size=8,
            width=24,
            num_layers=2,
            num_heads=3,
            pool="cls",
            patch_bias=False,
            embed_norm=True,
            activation="quick_gelu",
            initialization="clip",
        ),
        text=TextConfig(
            vocab_size=20,
            max_length=6,
            width=16,
            num_layers=3,
            num_heads=2,
            causal=True,
            pool="first_eos",
            eos_token_id=19,
            projection_bias=False,
            initialization="clip",
        ),
        projection_dim=10,
        logit_bias_init=None,
    )


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """The programs are tiny: to optimise them takes longer than to run them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=[siglip_config, clip_config], ids=["siglip", "clip"])
def config(request) -> ClipConfig:
    return request.param()


@pytest.fixture
def siglip() -> ClipConfig:
    return siglip_config()


@pytest.fixture
def clip() -> ClipConfig:
    return clip_config()


@pytest.fixture
def random_params():
    """Makes parameters that are random everywhere: the published schemes have zeros and ones, which hide mistakes."""

    def make(config: ClipConfig):
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
        return jax.tree.map_with_path(
            lambda path, leaf: jnp.asarray(rng.normal(path[-1].key == "scale", 0.2, leaf.shape), jnp.float32), shapes
        )

    return make


@pytest.fixture
def params(config, random_params):
    return random_params(config)


@pytest.fixture
def pixel_values() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype(np.float32)


@pytest.fixture
def input_ids() -> np.ndarray:
    ids = np.random.default_rng(2).integers(0, 18, (4, 6))
    ids[np.arange(4), [2, 5, 3, 4]] = 19
    return ids
