"""Tokens are open_clip's, whatever the text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer as Pieces
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from vitcore.errors import RequestError
from vitcore.models import tokenizer
from vitcore.models.tokenizer import Tokenizer
from vitcore.recipe import TextConfig

ODD = [
    "",
    "   ",
    "A dog.",
    "  a  b\tc\nd\r\n",
    "don't I'll WE'RE",
    "café naïve \U0001f600",
    "&lt;b&gt; &amp;amp; &",
    "<end_of_text> in <start_of_text> the middle",
    "\x1b[31mred\x1b[0m a\x00b\x7f",
    "“curly” ‘quotes’ ﬁsh",
    "咖啡 店",
    "Ã© mojibake â€™s",
    "​zero width İ",
    "1234 5.6 -- ___ !?",
    "x" * 500,
    "word " * 200,
]


@pytest.mark.parametrize("context", [2, 3, 16, 77])
def test_clips_tokens_are_open_clips(context: int) -> None:
    chance = random.Random(0)
    noise = ["".join(chr(chance.randint(1, 127)) for _ in range(chance.randint(0, 40))) for _ in range(2000)]
    texts = ODD + noise
    ours, theirs = Tokenizer(TextConfig(context=context)), SimpleTokenizer(context_length=context)
    tokens = ours(texts)
    assert tokens.dtype == torch.int64 and tokens.shape == (len(texts), context)
    assert torch.equal(tokens, theirs(texts))
    assert torch.equal(ours(texts[::-1]), tokens.flip(0)), "what is remembered is what was said"
    assert ours([]).shape == (0, context)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "KEPT_TEXTS", 3)
    ours = Tokenizer(TextConfig())
    ours([f"text {number}" for number in range(10)])
    assert ours._encode.cache_info().currsize == 3


def test_a_vocabulary_that_is_too_small_is_refused() -> None:
    with pytest.raises(RequestError, match=r"has 49408 tokens but the text tower knows 100: .*vocabulary to 49408"):
        Tokenizer(TextConfig(vocabulary=100))


@pytest.fixture
def pieces(tmp_path: Path) -> str:
    """A folder with a tokenizer as SigLIP's: sentence pieces, padded with the id that ends a text."""
    words = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), *((letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    whole = Pieces(Unigram([*words, ("▁a", -1.5), ("▁dog", -2.0)], unk_id=0))
    whole.pre_tokenizer = Metaspace()
    whole.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole.save(str(tmp_path / "tokenizer.json"))
    names = '"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"'
    (tmp_path / "tokenizer_config.json").write_text(f'{{"tokenizer_class": "PreTrainedTokenizerFast", {names}}}')
    return str(tmp_path)


def test_siglips_tokens_are_open_clips(pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "SIGLIP", pieces)
    config = TextConfig(tokenizer="siglip", context=12, vocabulary=40, pooling="last")
    tokens = Tokenizer(config)(ODD)
    assert torch.equal(tokens, HFTokenizer(pieces, 12, clean="canonicalize")(ODD))
    assert tokens[2].tolist() == [29, 30, *[1] * 10], "without capitals and punctuation, ended and padded"
    with pytest.raises(RequestError, match="has 31 tokens"):
        Tokenizer(config.model_copy(update={"vocabulary": 30}))


def test_siglips_tokens_need_the_hub_or_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr(tokenizer, "SIGLIP", "nobody/nothing-like-this")
    with pytest.raises(RequestError, match=r"cannot be had from the hub \(ConnectionError\): bring nobody/nothing"):
        Tokenizer(TextConfig(tokenizer="siglip", pooling="last"))


def unreachable(url: str) -> None:
    raise ConnectionError(url)
