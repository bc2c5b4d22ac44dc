"""How random weights are drawn: the two published schemes, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from jax.nn import initializers
from jax.nn.initializers import Initializer

from clip_models.config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class TowerInitializers:
    """One initializer for each kind of weight in a tower. Biases not listed are zero, norm scales one."""

    patch: Initializer
    token: Initializer
    class_token: Initializer
    register: Initializer
    image_position: Initializer
    text_position: Initializer
    attention_in: Initializer
    attention_out: Initializer
    fc1: Initializer
    fc2: Initializer
    mlp_bias: Initializer
    probe: Initializer
    projection: Initializer


def tower_initializers(config: TransformerConfig) -> TowerInitializers:
    """Returns the initializers that ``config.initialization`` names.

    ``siglip`` is big_vision's: Xavier-uniform matrices in the blocks and the MAP head, LeCun-normal patch and text
    projections, normal embeddings, registers and positions of standard deviation d^-1/2, MLP biases of 1e-6.

    ``clip`` is OpenAI's, with the scheme of its text tower in the blocks of both: queries, keys and values d^-1/2, the
    outputs of attention and MLP d^-1/2 (2 layers)^-1/2, fc1 (2d)^-1/2, tokens 0.02, text positions 0.01, image
    positions, class token, registers and projections d^-1/2.

    Args:
        config: of the tower.

    Returns:
        The initializers, each called with (key, shape, dtype).

    References:
        https://github.com/google-research/big_vision, models/vit.py and models/proj/image_text/text_transformer.py.
        https://github.com/openai/CLIP, clip/model.py, initialize_parameters.
    """
    width_std = config.width**-0.5
    if config.initialization == "siglip":
        xavier = initializers.xavier_uniform()
        return TowerInitializers(
            patch=initializers.lecun_normal(),
            token=initializers.normal(width_std),
            class_token=initializers.zeros,
            register=initializers.normal(width_std),
            image_position=initializers.normal(width_std),
            text_position=initializers.normal(width_std),
            attention_in=xavier,
            attention_out=xavier,
            fc1=xavier,
            fc2=xavier,
            mlp_bias=initializers.normal(1e-6),
            probe=xavier,
            projection=initializers.lecun_normal(),
        )
    residual_std = width_std * (2 * config.num_layers) ** -0.5
    return TowerInitializers(
        patch=initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
        token=initializers.normal(0.02),
        class_token=initializers.normal(width_std),
        register=initializers.normal(width_std),
        image_position=initializers.normal(width_std),
        text_position=initializers.normal(0.01),
        attention_in=initializers.normal(width_std),
        attention_out=initializers.normal(residual_std),
        fc1=initializers.normal((2 * config.width) ** -0.5),
        fc2=initializers.normal(residual_std),
        mlp_bias=initializers.zeros,
        probe=initializers.normal(width_std),
        projection=initializers.normal(width_std),
    )
