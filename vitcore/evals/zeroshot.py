"""Zero-shot classification (Radford et al. 2021, 2103.00020, section 3.1): class names become texts, and a photograph
belongs to the class whose text it is nearest to.

Legend: N samples, K classes, T templates, E dimension of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitcore import storage
from vitcore.errors import RequestError
from vitcore.evals.answers import Answers
from vitcore.evals.outcomes import Outcomes

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture showing a {}.",
    "a {} seen from nearby.",
    "a {} seen from far away.",
    "a sharp image of a {}.",
    "a blurred image of a {}.",
    "this is a {}.",
)
"""A general ensemble, for photographs of anything: different words, distances and qualities of an image."""


def read_templates(url: str) -> tuple[str, ...]:
    """Templates from a text file, one a line; empty lines do not count.

    Raises:
        RequestError: there is no such file, it is no text, or a line has not one {}.
    """
    try:
        lines = storage.read(url).decode("utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise RequestError(f"there is no file {url}; give a text file with a template such as {{}} a line") from None
    except UnicodeDecodeError:
        raise RequestError(f"{url} is no text; give one template a line, such as: a photo of a {{}}.") from None
    templates = tuple(line.strip() for line in lines if line.strip())
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        what = f"the line {wrong[0]!r} has not one {{}}" if wrong else "it is empty"
        raise RequestError(f"{url} holds no templates ({what}); write one a line, such as: a photo of a {{}}.")
    return templates


def prompts(classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """K · T texts, the templates of the first class first. Underscores of a class name are read as spaces."""
    names = [" ".join(name.replace("_", " ").split()) for name in classes]
    return [template.replace("{}", name) for name in names for template in templates]


def class_embeddings(texts: NDArray[np.float32], classes: int) -> NDArray[np.float32]:
    """One embedding (K, E) of length 1 a class: the mean over its templates of embeddings of length 1, brought back to
    length 1 (section 3.1.4, "we construct the ensemble over the embedding space").

    Args:
        texts: (K · T, E), of `prompts`, of length 1.
        classes: K.
    """
    means_KE = texts.reshape(classes, -1, texts.shape[1]).mean(axis=1)
    lengths_K1 = np.linalg.norm(means_KE, axis=1, keepdims=True)
    return np.asarray(means_KE / np.maximum(lengths_K1, np.finfo(np.float32).tiny), dtype=np.float32)


def zero_shot(images: Answers, class_vectors: NDArray[np.float32], classes: Sequence[str], *, scale: float) -> Outcomes:
    """What photographs belong to: logits are the cosines of the two embeddings times the learned scale.

    Args:
        images: embeddings (N, E) of length 1, of labelled photographs.
        class_vectors: (K, E), of `class_embeddings`.
        classes: K names.
        scale: inverse temperature of the model.
    """
    logits = (scale * (images.values @ class_vectors.T)).astype(np.float32)
    return Outcomes(images.keys, images.labels, logits, tuple(classes), images.skipped)
