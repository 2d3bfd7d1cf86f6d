"""Texts → token ids, as the text towers of CLIP (2103.00020, section 2.4) and SigLIP (2303.15343) read them.

Legend: S texts, N tokens of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.recipe import TextConfig

KEPT_TEXTS = 1 << 18
"""Texts whose tokens are remembered, the latest ones: 0.1 GB of captions. A caption takes 60 µs to tokenise
and one to find, and comes again every epoch."""
SIGLIP = "timm/ViT-B-16-SigLIP"
"""Where SigLIP's sentence pieces lie in the hub: 32,000 English ones."""

Ids = NDArray[np.int32]


class Tokenizer:
    """The tokenizer a text tower was built for.

    Args:
        config: the text tower.
    Raises:
        RequestError: the tower knows fewer tokens than the tokenizer has, or the tokenizer cannot be had.
    """

    def __init__(self, config: TextConfig) -> None:
        self.context = config.context
        """N"""
        encode, tokens = _clip(config.context) if config.tokenizer == "clip" else _siglip(config.context)
        if tokens > config.vocabulary:
            raise RequestError(
                f"the tokenizer {config.tokenizer} has {tokens} tokens but the text tower knows {config.vocabulary}: "
                f"set model.text.vocabulary to {tokens}"
            )
        self._encode = lru_cache(KEPT_TEXTS)(encode)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 ids [S, N] on the CPU. Longer texts are cut, shorter ones padded: CLIP's with zeros."""
        ids_SN = np.zeros((len(texts), self.context), np.int64)
        for row, text in zip(ids_SN, texts, strict=True):
            ids = self._encode(text)
            row[: len(ids)] = ids
        return torch.from_numpy(ids_SN)


def _clip(context: int) -> tuple[Callable[[str], Ids], int]:
    """CLIP's byte pairs, of lower-cased text between a start and an end; and how many tokens there are."""
    from open_clip.tokenizer import SimpleTokenizer  # seconds that those without texts need not wait

    tokenizer = SimpleTokenizer(context_length=context, clean="lower")
    thorough = tokenizer.clean_fn

    def clean(text: str) -> str:
        """What the tokenizer's own cleaning gives, which repairs encodings and entities: plain ASCII has none."""
        if text.isascii() and text.isprintable() and "&" not in text:
            return " ".join(text.split()).lower()
        cleaned: str = thorough(text)
        return cleaned

    tokenizer.clean_fn = clean
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id

    def encode(text: str) -> Ids:
        inner = tokenizer.encode(text)[: max(context - 2, 0)]
        return np.array([start, *inner, end][-context:], np.int32)

    return encode, tokenizer.vocab_size


def _siglip(context: int) -> tuple[Callable[[str], Ids], int]:
    """SigLIP's sentence pieces, of lower-cased text without punctuation, padded to the context; and how many there are.

    Raises:
        RequestError: they are neither in the hub's local cache nor can the hub be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from open_clip.tokenizer import HFTokenizer

    load = partial(HFTokenizer, SIGLIP, context, clean="canonicalize")
    try:
        try:
            tokenizer = load(local_files_only=True)
        except OSError:
            get_hf_file_metadata(hf_hub_url(SIGLIP, "tokenizer.json"))  # does not retry, as loading does
            tokenizer = load()
    except ImportError:
        raise RequestError("the tokenizer siglip needs transformers: pip install transformers") from None
    except Exception as error:  # the hub's client passes on those of whatever HTTP library it is built on
        raise RequestError(
            f"the tokenizer siglip cannot be had from the hub ({type(error).__name__}): bring {SIGLIP} into its local "
            "cache, or set model.text.tokenizer to 'clip'"
        ) from None

    def encode(text: str) -> Ids:
        ids: Tensor = tokenizer([text])[0]
        return ids.numpy().astype(np.int32)

    return encode, len(tokenizer.tokenizer)
