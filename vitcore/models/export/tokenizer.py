"""CLIP's byte pairs as the files of Hugging Face's tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

from vitcore.recipe import TextConfig

_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(text: TextConfig, folder: Path) -> None:
    """Write ``vocab.json``, ``merges.txt`` and ``tokenizer_config.json``, which ``CLIPTokenizer`` reads.

    A text tower that knows other tokens than CLIP's has no tokenizer to write.

    Args:
        text: the text tower.
        folder: a folder that exists.
    """
    from open_clip.tokenizer import SimpleTokenizer  # seconds that those without texts need not wait

    tokenizer = SimpleTokenizer()
    if text.vocabulary != len(tokenizer.encoder):
        return
    vocabulary = {token: number for token, number in tokenizer.encoder.items() if number < tokenizer.sot_token_id}
    vocabulary |= {_START: tokenizer.sot_token_id, _END: tokenizer.eot_token_id}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    described = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
        "model_max_length": text.context,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
