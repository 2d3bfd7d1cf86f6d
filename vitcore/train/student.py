"""The model to train: built anew, or carried over from another one to this dataset, resolution and way of learning."""

from __future__ import annotations

from vitcore.errors import RequestError
from vitcore.models import Model, adapt, build, load_reference
from vitcore.models.clip import Clip
from vitcore.recipe import ClipConfig, ContrastConfig, LabelConfig, ParentConfig, Recipe
from vitcore.train.request import TrainRequest


def student(request: TrainRequest, classes: tuple[str, ...]) -> Model:
    """The model of a request.

    Without a parent (`request.init`) it is drawn anew. From a parent of its kind it takes all weights. An image and a
    text model takes any backbone as its image tower, in place of the recipe's; what sees images alone takes the image
    tower of an image and text model.

    Args:
        request: the training.
        classes: of the dataset; a head of another set of classes starts at zero.
    Raises:
        RequestError: there is no parent where one is needed, or it is of another kind.
    """
    recipe = request.recipe
    num_classes = len(classes) if isinstance(recipe.objective, LabelConfig) else 0
    locked = isinstance(recipe.objective, ContrastConfig) and recipe.objective.lock_image
    if request.init is None:
        if isinstance(recipe.model, ParentConfig) or locked:  # locked weights are worth nothing unless trained before
            raise RequestError(f"recipe {recipe.name!r} continues another model; name it with --model")
        return build(recipe.model, num_classes=num_classes, image_size=recipe.data.image_size)
    parent = load_reference(request.init)
    model = parent.model
    if isinstance(recipe.objective, ContrastConfig) and not isinstance(model, Clip):
        return _around(model, recipe, request.init)
    if isinstance(model, Clip) and not isinstance(recipe.objective, ContrastConfig):
        model = model.image
    if not isinstance(recipe.model, ParentConfig) and recipe.model.kind != model.config.kind:
        raise RequestError(
            f"recipe {recipe.name!r} trains a {recipe.model.kind}, but {request.init} is a {model.config.kind}; "
            "take a fine-tuning recipe, or a model of the recipe's kind"
        )
    return adapt(
        model,
        num_classes=num_classes,
        image_size=recipe.data.image_size,
        drop_path=getattr(recipe.model, "drop_path", None),
        pooling=recipe.model.pooling if isinstance(recipe.model, ParentConfig) else None,
        keep_head=parent.card.classes == classes,
    )


def _around(tower: Model, recipe: Recipe, name: str) -> Clip:
    """An image and a text model drawn anew around a given image tower."""
    config = recipe.model
    if not isinstance(config, ClipConfig):
        raise RequestError(
            f"recipe {recipe.name!r} continues an image and text model, but {name} is a {tower.config.kind}; take a "
            "recipe that says what the text tower is"
        )
    image = adapt(tower, num_classes=0, image_size=recipe.data.image_size)
    whole = ClipConfig.model_validate(config.model_dump() | {"image": image.config.model_dump()})
    model = build(whole, num_classes=0, image_size=recipe.data.image_size)
    assert isinstance(model, Clip)
    model.image.load_state_dict(image.state_dict())
    return model
