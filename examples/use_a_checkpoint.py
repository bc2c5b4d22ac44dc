# %% [markdown]
# # Search a folder of pictures with a sentence
#
# A published checkpoint, a folder and a sentence: `python use_a_checkpoint.py MODEL FOLDER SENTENCE`, or cell by cell.
# The first time, the weights come from the Hugging Face Hub; a directory of that format, or of ours, is as good.

# %%
import sys
from pathlib import Path

import jax
import numpy as np

from clip_data import Tokenizer
from clip_models import encode_image, encode_text, load_pretrained, preprocess_images

MODEL, FOLDER, SENTENCE = (
    sys.argv[1:] if len(sys.argv) == 4 else ("google/siglip2-base-patch16-224", "pictures", "a dog in the snow")
)

# %% [markdown]
# ## Load
#
# `config` says what the model is and, as `config.preprocess`, what it expects of pictures and texts. `params` is a
# nested dict of arrays.

# %%
config, params = load_pretrained(MODEL)
print(config.preprocess)

# %% [markdown]
# ## Embed the folder
#
# Batches have one size, so that the encoder is compiled once. A checkpoint of one picture size wants one array; one of
# any size (NaFlex) wants sequences of patches and their shapes.

# %%
BATCH = 16
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
paths = sorted(path for path in Path(FOLDER).rglob("*") if path.suffix.lower() in SUFFIXES)
if not paths:
    sys.exit(f"{FOLDER} has no pictures ({', '.join(sorted(SUFFIXES))})")

embed_images = jax.jit(encode_image, static_argnums=0)
embeds = []
for start in range(0, len(paths), BATCH):
    batch = paths[start : start + BATCH]
    arrays = preprocess_images(config, [*batch, *[batch[-1]] * (BATCH - len(batch))])
    arrays = arrays if isinstance(arrays, dict) else {"pixel_values": arrays}
    embeds.append(np.asarray(embed_images(config, params, **arrays))[: len(batch)])
image_embeds = np.concatenate(embeds)
print(f"{len(paths)} pictures, vectors of {image_embeds.shape[1]} numbers")

# %% [markdown]
# ## Search
#
# Both sides have unit norm: the product is the cosine of their angle.

# %%
tokenizer = Tokenizer.of(config.preprocess)
if tokenizer is None:
    sys.exit(f"{MODEL} has no tokenizer beside it")
input_ids, attention_mask = tokenizer([SENTENCE])
mask = attention_mask if config.preprocess.mask_padding else None  # no published CLIP or SigLIP hides its padding
text_embeds = np.asarray(jax.jit(encode_text, static_argnums=0)(config, params, input_ids, mask))

similarities = (image_embeds @ text_embeds.T)[:, 0]
for index in np.argsort(-similarities)[:5]:
    print(f"{similarities[index]:+.3f}  {paths[index]}")
