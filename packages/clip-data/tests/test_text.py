import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from transformers import AutoTokenizer

from clip_data import Tokenizer


def test_pads_truncates_and_keeps_the_end(tokenizer_dir):
    tokenizer = Tokenizer(tokenizer_dir, text_length=5)
    ids, mask = tokenizer(["a photo", "A photo of number 1 of number 2", ""])
    assert ids.dtype == mask.dtype == np.int32
    assert ids.tolist() == [[3, 4, 1, 0, 0], [2, 4, 5, 6, 1], [1, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (47, 0)
    assert tokenizer([])[0].shape == (0, 5)


def test_a_length_without_room_for_what_closes_a_text_is_refused(tmp_path):
    clip_tokenizer(tmp_path).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"room for the 2 tokens that open and close each text .*; got 1"):
        Tokenizer(str(tmp_path / "clip"), text_length=1)
    assert Tokenizer(str(tmp_path / "clip"), text_length=2)(["a b"])[0].shape == (1, 2)


def test_options(tokenizer_dir):
    tokenizer = Tokenizer(tokenizer_dir, text_length=9, lower_case=True, padding="longest", pad_id=50)
    assert tokenizer(["A", "A PHOTO"])[0].tolist() == [[3, 1, 50], [3, 4, 1]]
    assert tokenizer.vocab_size == 51


CAPTIONS = [
    "A photo of two DOGS, on_the grass!",
    "  Ünïcode  café \t 東京 — 10% off...",
    "",
    "?!",
    "<|endoftext|> </s> <eos> is only text",
    "a photo of the number " * 9,
]


def clip_tokenizer(folder):
    from transformers import CLIPTokenizer

    symbols = [*map(chr, range(33, 127)), "Ġ", "Ã", "©"]
    words = [*symbols, *[symbol + "</w>" for symbol in symbols], "ph", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[("p", "h")])


def t5_tokenizer(folder):
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁photo", -3.0), ("ph", -3.0)]
    return T5Tokenizer(vocab=[*pieces, *[(chr(n), -4.0) for n in range(33, 127)]], extra_ids=0)


def gemma_tokenizer(folder):
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127)), "ph"]
    words += [f"<0x{n:02X}>" for n in range(256)]
    vocab = {word: i for i, word in enumerate(words)}
    return GemmaTokenizer(vocab=vocab, merges=[("p", "h")], add_bos_token=False, add_eos_token=True)


def siglip_tokenizer(folder):
    import sentencepiece
    from transformers import SiglipTokenizer

    model = io.BytesIO()
    sentences = ["a photo of two dogs on the grass", "the number of cats in a picture", "numbers of photos"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"))


@pytest.mark.parametrize(
    ("make", "opens", "closes"),
    [
        (clip_tokenizer, ["<|startoftext|>"], "<|endoftext|>"),
        (t5_tokenizer, [], "</s>"),
        (gemma_tokenizer, [], "<eos>"),
        (siglip_tokenizer, [], "</s>"),
    ],
)
@pytest.mark.parametrize("length", [16, 64])
def test_ids_are_those_of_transformers(make, opens, closes, length, tmp_path):
    make(tmp_path).save_pretrained(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    options = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
    expected = reference(CAPTIONS, **options, return_tensors="np", return_attention_mask=True)
    tokenizer = Tokenizer(str(tmp_path), text_length=length)
    ids, mask = tokenizer(CAPTIONS)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    for row, number in zip(ids, mask.sum(1), strict=True):
        tokens = reference.convert_ids_to_tokens(row[:number])
        assert (tokens[: len(opens)], tokens[-1]) == (opens, closes)
    np.testing.assert_array_equal(tokenizer([CAPTIONS[-1]])[0], ids[-1:])


def test_canonicalizes_as_siglip_does(tmp_path, monkeypatch):
    tokenizer = siglip_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    seen = []
    ours = Tokenizer(str(tmp_path), text_length=64, lower_case=True, canonicalize=True)
    monkeypatch.setattr(ours, "_encode", lambda texts: seen.extend(texts) or [[1]] * len(texts))
    ours(CAPTIONS)
    # big_vision makes a space of an underscore, transformers nothing
    assert seen == [tokenizer.canonicalize_text(caption.replace("_", " ")) for caption in CAPTIONS]
    assert seen[0] == "a photo of two dogs on the grass"


def test_pads_as_open_clip_does(tmp_path):
    clip_tokenizer(tmp_path).save_pretrained(tmp_path)
    ids, mask = Tokenizer(str(tmp_path), text_length=8, pad_id=0)(["a b", ""])
    assert (ids[mask == 0] == 0).all()
    assert mask.sum(1).tolist() == [4, 2]


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
