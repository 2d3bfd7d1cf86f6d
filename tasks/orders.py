"""What a job on a cluster can be asked to do: orders that cross to it as JSON, and are carried out where they arrive.

The same code carries an order out in the process of a flow, where that is connected to Ray itself. It knows no Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from tasks.on_ray.mailbox import Message
from tasks.settings import Settings
from tasks.train_stage import TrainStage, memorise, produce
from vitcore.recipe import Config


class TrainOrder(Config):
    """Train in an MLflow run that is open, and register the model."""

    kind: Literal["train"] = "train"
    stage: TrainStage
    run_id: str
    fresh: bool
    """Register another version even if the identity has one."""
    code: str
    """Commit of the code that was asked; a copy of it cannot know."""

    def carry_out(self, settings: Settings, listener: Callable[[Message], None]) -> dict[str, float]:
        """The validation metrics of the model that was registered; see `tasks.train_stage.produce`."""
        return produce(self.stage, settings, self.run_id, listener, fresh=self.fresh, code=self.code)


class OverfitOrder(Config):
    """Learn one batch by heart and register nothing."""

    kind: Literal["overfit"] = "overfit"
    stage: TrainStage

    def carry_out(self, settings: Settings, listener: Callable[[Message], None]) -> dict[str, float]:
        """How well it was memorised; see `vitcore.train.overfit`."""
        return memorise(self.stage, settings, listener)


Order = Annotated[TrainOrder | OverfitOrder, Field(discriminator="kind")]


class JobRequest(Config):
    """An order and the endpoints it is carried out with: what a job reads."""

    order: Order
    tracking_uri: str
    checkpoints: str
    """URL of the folder for checkpoints; every node has to see it."""
