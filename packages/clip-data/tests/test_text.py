import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clip_data import Tokenizer


def test_pads_truncates_and_keeps_the_end(tokenizer_dir):
    tokenizer = Tokenizer(tokenizer_dir, text_length=5)
    ids, mask = tokenizer(["a photo", "A photo of number 1 of number 2", ""])
    assert ids.dtype == mask.dtype == np.int32
    assert ids.tolist() == [[3, 4, 1, 0, 0], [2, 4, 5, 6, 1], [1, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (47, 0)
    assert tokenizer([])[0].shape == (0, 5)


def test_options(tokenizer_dir):
    tokenizer = Tokenizer(tokenizer_dir, text_length=9, lower_case=True, padding="longest", pad_id=50)
    assert tokenizer(["A", "A PHOTO"])[0].tolist() == [[3, 1, 50], [3, 4, 1]]
    assert tokenizer.vocab_size == 51


def test_threads_may_share_one(tokenizer_dir):
    tokenizer = Tokenizer(tokenizer_dir, text_length=8)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: tokenizer([f"number {n % 40}"])[0][0, 1], range(400)))
    assert results == [7 + n % 40 for n in range(400)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"text_length": 0}, "at least 1, not 0"), ({"text_length": 4, "padding": "left"}, "not 'left'")],
)
def test_refuses(options, message, tokenizer_dir):
    with pytest.raises(ValueError, match=message):
        Tokenizer(tokenizer_dir, **options)


def test_says_where_no_tokenizer_is(tmp_path):
    with pytest.raises(ValueError, match=r"there is no tokenizer directory '.*/none'"):
        Tokenizer(str(tmp_path / "none"), text_length=4)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"no tokenizer '.*bare' in the directory"):
        Tokenizer(str(tmp_path / "bare"), text_length=4)


def test_importing_clip_data_is_light():
    code = (
        "import clip_data, sys; print([m for m in ('transformers','tensorflow','pyarrow','jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
