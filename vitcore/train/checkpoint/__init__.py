"""The state of a training on disk or in a store: committed or absent, written while training goes on."""

from vitcore.train.checkpoint.progress import Progress
from vitcore.train.checkpoint.saver import Saver
from vitcore.train.checkpoint.store import Checkpoint, CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "Progress", "Saver"]
