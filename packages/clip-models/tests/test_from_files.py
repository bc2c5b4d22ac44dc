"""From picture files and sentences to embeddings, as AutoProcessor and PyTorch give them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from clip_models import apply, load_pretrained, preprocess_images

FIXTURES = Path(__file__).parent / "fixtures"
PICTURES = [FIXTURES / "pictures" / name for name in ("on_its_side.jpg", "transparent.png", "grey.png")]
SENTENCES = ["a photo of a cat", "Two DOGS, and far too many words to fit", ""]


@pytest.mark.parametrize("name", ["clip", "siglip2_fixed", "siglip2_naflex"])
def test_embeddings_are_those_of_pytorch(name):
    golden = np.load(FIXTURES / "from_files" / name / "golden.npz")
    config, params = load_pretrained(FIXTURES / "from_files" / name)
    arrays = preprocess_images(config, PICTURES)
    arrays = arrays if isinstance(arrays, dict) else {"pixel_values": arrays}
    output = jax.jit(apply, static_argnums=0)(config, params, **arrays, input_ids=golden["input_ids"])
    np.testing.assert_allclose(output.image_embeds, golden["image_embeds"], atol=1e-4)
    np.testing.assert_allclose(output.text_embeds, golden["text_embeds"], atol=1e-4)
    np.testing.assert_allclose(output.logits_per_image, golden["logits_per_image"], atol=1e-3)


@pytest.mark.parametrize("name", ["clip", "siglip2_fixed", "siglip2_naflex"])
def test_the_config_says_how_to_tokenize(name):
    transformers = pytest.importorskip("transformers", reason="it tokenizes, and clip-models does not need it")
    config, _ = load_pretrained(FIXTURES / "from_files" / name)
    preprocess = config.preprocess
    sentences = [sentence.lower() for sentence in SENTENCES] if preprocess.lower_case else SENTENCES
    tokenizer = transformers.AutoTokenizer.from_pretrained(preprocess.tokenizer)
    input_ids = tokenizer(
        sentences, padding=preprocess.padding, max_length=preprocess.text_length, truncation=True, return_tensors="np"
    )["input_ids"]
    np.testing.assert_array_equal(input_ids, np.load(FIXTURES / "from_files" / name / "golden.npz")["input_ids"])
