"""``import:package.module:function``: a model that a function of the user's own returns.

This runs the user's code, which is what it is for. No other reference does, and none is ever taken from a file: a card,
a dataset or a registered version cannot name one.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from vitcore.errors import RequestError
from vitcore.models.asked import Asked
from vitcore.models.pretrained import Pretrained


def load(path: str, file: str) -> Pretrained:
    """What the function at ``package.module:function`` returns.

    Raises:
        RequestError: there is no such function, it is given a file, or it does not return a `Pretrained`.
    """
    module_name, _, function_name = path.partition(":")
    if file or not module_name or not function_name.isidentifier():
        raise RequestError(f"import:{path} names no function; give import:package.module:function")
    function = _function(module_name, function_name)
    returned: Any = function()
    if not isinstance(returned, Pretrained):
        raise RequestError(
            f"import:{path} returns {type(returned).__name__}; let it return what vitcore.models.wrap(network, …) gives"
        )
    return _named(returned, f"import:{path}")


def _function(module_name: str, function_name: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not, and its own words say so best
        raise RequestError(
            f"there is no module {module_name}; put the folder it lies in on PYTHONPATH, on every machine that trains"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RequestError(f"module {module_name} has no function {function_name}")
    return function  # type: ignore[no-any-return]


def _named(model: Pretrained, name: str) -> Pretrained:
    """The same under the name of its reference, where it was given no place to be had again."""
    if not isinstance(model.model, Asked):
        return model
    config = model.model.config.model_copy(update={"name": name})
    model.model.config = config
    return dataclasses.replace(model, card=model.card.model_copy(update={"model": config}))
