"""A tokenizer's files go where a model goes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from clip_models import load_config, save_pretrained

WORDS = Path(__file__).parent / "fixtures" / "from_files" / "siglip2_fixed"  # has a tokenizer


@pytest.fixture
def hub(monkeypatch):
    """A Hub of one tokenizer, some/words; answers "cache" and "network" as they are asked, if they have it."""
    asked, have = [], {"cache", "network"}

    def snapshot_download(repo, *, allow_patterns=None, local_files_only=False):
        asked.append(place := "cache" if local_files_only else "network")
        if repo != "some/words" or place not in have:
            raise LocalEntryNotFoundError(f"no {repo}")
        return str(WORDS)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked, have


@pytest.fixture
def model(siglip, random_params):
    """Makes (config, params) of a model that names a tokenizer."""

    def make(tokenizer, **expects):
        preprocess = replace(siglip.preprocess, tokenizer=tokenizer, **expects)
        return replace(siglip, preprocess=preprocess), random_params(siglip)

    return make


@pytest.mark.parametrize("format", ["clip-jax", "huggingface"])
def test_of_a_repository_it_is_taken_from_the_cache(hub, model, tmp_path, format):
    save_pretrained(tmp_path, *model("some/words"), format=format)
    assert hub[0] == ["cache"]
    assert (tmp_path / "tokenizer.json").read_bytes() == (WORDS / "tokenizer.json").read_bytes()
    assert load_config(tmp_path).preprocess.tokenizer == str(tmp_path)


def test_what_others_open_is_fetched_and_ours_names_it(hub, model, tmp_path):
    asked, have = hub
    have.remove("cache")
    save_pretrained(tmp_path / "ours", *model("some/words"))
    assert asked == ["cache"]
    assert load_config(tmp_path / "ours").preprocess.tokenizer == "some/words"
    save_pretrained(tmp_path / "theirs", *model("some/words"), format="huggingface")
    assert asked == ["cache", "cache", "network"]
    assert (tmp_path / "theirs" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["nobody/nothing", "/nowhere/at/all"])
def test_a_model_whose_tokenizer_is_gone_is_saved_with_a_warning(hub, model, tmp_path, name):
    with pytest.warns(UserWarning, match=f"saved without its tokenizer, {name}: .*Or give tokenizer="):
        save_pretrained(tmp_path, *model(name), format="huggingface")
    assert "The tokenizer is not part of this directory" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Path("nope"), "there is no directory nope"),
        ("./nope", "there is no directory ./nope"),
        ("nobody/nothing", "nobody/nothing is not a local directory, and it could not be fetched"),
        (Path(__file__).parent, "a tokenizer's directory has one of tokenizer.json"),
    ],
    ids=str,
)
def test_one_that_is_given_must_be_there(hub, model, tmp_path, tokenizer, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        save_pretrained(tmp_path / "model", *model(None), tokenizer=tokenizer)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("given", [False, True])
def test_our_directory_can_be_moved(model, tmp_path, given):
    words = shutil.copytree(WORDS, tmp_path / "words")
    save_pretrained(tmp_path / "here", *model(None if given else str(words)), tokenizer=words if given else None)
    shutil.rmtree(words)
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_config(tmp_path / "there").preprocess.tokenizer == str(tmp_path / "there")
    assert str(tmp_path) not in (tmp_path / "there" / "config.json").read_text()


def test_the_working_directory_does_not_matter(monkeypatch):
    monkeypatch.chdir(WORDS.parent)
    assert load_config(WORDS.name).preprocess.tokenizer == str(WORDS)


def test_what_hugging_face_s_tokenizer_says_of_texts_comes_back(model, tmp_path):
    config, params = model(str(WORDS), text_length=5, mask_padding=True, lower_case=True)
    save_pretrained(tmp_path, config, params, format="huggingface")
    preprocess = load_config(tmp_path).preprocess
    assert (preprocess.text_length, preprocess.mask_padding) == (5, True)
    contents = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert contents["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no Siglip2Tokenizer
    # longer than the tower's texts, and no mask
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**contents, "model_max_length": int(1e30), "model_input_names": ["input_ids"]})
    )
    preprocess = load_config(tmp_path).preprocess
    assert (preprocess.text_length, preprocess.mask_padding) == (6, False)


@pytest.mark.parametrize(("known", "named"), [("some/words", "some/words"), (str(WORDS), "."), (None, ".")])
def test_open_clip_is_told_no_path_of_this_machine(hub, clip, random_params, tmp_path, known, named):
    config = replace(clip, text=replace(clip.text, norm_eps=1e-5, activation="quick_gelu"))
    config = replace(config, preprocess=replace(config.preprocess, tokenizer=known))
    save_pretrained(tmp_path, config, random_params(config), format="open_clip", tokenizer=None if known else WORDS)
    contents = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert contents["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == named
    assert load_config(tmp_path).preprocess.tokenizer == str(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert load_config(tmp_path).preprocess.tokenizer == (None if named == "." else named)
