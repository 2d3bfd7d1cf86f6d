"""Models by reference: other libraries' public weights, a function of one's own, or a folder of ours."""

from vitcore.models.references.load import PUBLIC, absolute, load_reference

__all__ = ["PUBLIC", "absolute", "load_reference"]
