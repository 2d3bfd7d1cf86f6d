"""A model as a folder that another library loads as it stands."""

from vitcore.models.export.folders import FORMATS, Exported, Format, export

__all__ = ["FORMATS", "Exported", "Format", "export"]
