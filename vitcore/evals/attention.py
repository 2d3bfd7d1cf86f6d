"""Where a transformer looks: attention rollout, last-block maps, and a figure of the rollout over photographs.

Shape suffixes as in `vitcore.models.vit`; Y and X are rows and columns of the patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from vitcore.evals import style
from vitcore.evals.answers import answering, device_of
from vitcore.models.clip import Clip
from vitcore.models.vit import VisionTransformer
from vitcore.objectives.objective import Normalize

_CELL = 1.9  # inches
_NAME = 18  # characters of a class name over a photograph


def transformer_of(model: nn.Module) -> VisionTransformer | None:
    """The vision transformer in a model: itself, or a CLIP's image tower; None where there is none."""
    tower = model.image if isinstance(model, Clip) else model
    return tower if isinstance(tower, VisionTransformer) else None


def pixels_of(images_BCHW: Tensor) -> Tensor:
    """Images as float in [0, 1], from that or from uint8."""
    return images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW.float()


def attention_of(model: VisionTransformer, images_BCHW: Tensor) -> list[Tensor]:
    """Attention weights of each block, first to last, each (B, A, N, N), on the CPU.

    Args:
        model: left in the mode it is in.
        images_BCHW: uint8, or float in [0, 1]; not normalised, of the model's input size.
    """
    device = device_of(model)
    with answering(model), torch.no_grad():
        maps = model.attention(Normalize(model.config, device)(pixels_of(images_BCHW).to(device)))
    return [map_BANN.float().cpu() for map_BANN in maps]


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, 2005.00928, section 3): how much each input token reaches each output.

    Heads are averaged, half of a block's output is its residual input, and the blocks are multiplied.

    Args:
        maps: softmax weights of each block, first to last, each (B, A, N, N).
    Returns:
        (B, N, N); rows sum to one.
    """
    first = maps[0]
    identity_NN = torch.eye(first.shape[-1], device=first.device, dtype=first.dtype)
    reached_BNN = identity_NN.expand(len(first), -1, -1)
    for map_BANN in maps:
        reached_BNN = (map_BANN.mean(dim=1) + identity_NN) / 2 @ reached_BNN
    return reached_BNN


def rollout_maps(model: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """How much each patch reaches what the head reads, over all blocks (B, Y, X); a map sums to one.

    The head of a ViT reads its class token, DeiT's heads both tokens, a pooling head all patches.

    Args:
        model: left in the mode it is in.
        images_BCHW: uint8, or float in [0, 1]; not normalised.
    """
    reached_BNN = rollout(attention_of(model, images_BCHW))
    read = slice(model.num_read) if model.num_read else slice(model.num_prefix, None)
    patches_BP = reached_BNN[:, read].mean(dim=1)[:, model.num_prefix :]
    shares_BP = patches_BP / patches_BP.sum(dim=1, keepdim=True)
    return shares_BP.view(-1, model.grid, model.grid)


def last_block_maps(model: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """The class token's attention to the patches in the last block, one map a head (B, A, Y, X).

    Where the head reads the patches, their attention is averaged instead.

    Args:
        model: left in the mode it is in.
        images_BCHW: uint8, or float in [0, 1]; not normalised.
    """
    last_BANN = attention_of(model, images_BCHW)[-1]
    read_BAN = last_BANN[:, :, 0] if model.num_read else last_BANN[:, :, model.num_prefix :].mean(dim=2)
    patches_BAP = read_BAN[:, :, model.num_prefix :]
    return patches_BAP.reshape(*patches_BAP.shape[:2], model.grid, model.grid)


def attention_figure(
    model: nn.Module,
    images_BCHW: Tensor,
    *,
    labels: Sequence[int],
    predictions: Sequence[int],
    classes: Sequence[str],
    columns: int = 6,
) -> Figure | None:
    """Photographs, and below each the same under its attention rollout; titles green where the model is right, red
    with what it saw instead where it is not.

    Args:
        model: any; its vision transformer is looked at.
        images_BCHW: uint8, or float in [0, 1]; not normalised, of the model's input size.
        labels: true class of each.
        predictions: predicted class of each.
        classes: names of the classes.
        columns: photographs side by side.
    Returns:
        The figure, bound to no display; None for a model without attention (a CNN), or without photographs.
    """
    tower = transformer_of(model)
    if tower is None or not len(images_BCHW):
        return None
    pixels_BCHW = pixels_of(images_BCHW)
    heat_BHW = enlarged(rollout_maps(tower, images_BCHW), tower.image_size)
    count = len(images_BCHW)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_CELL * columns, 2 * _CELL * rows + 0.5 * rows), dpi=style.DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for place in range(count):
        row, column = 2 * (place // columns), place % columns
        photograph = pixels_BCHW[place].permute(1, 2, 0).clamp(0, 1).numpy()
        _titled(
            axes[row, column], classes[labels[place]], classes[predictions[place]], labels[place] == predictions[place]
        )
        axes[row, column].imshow(photograph)
        axes[row + 1, column].imshow(photograph)
        axes[row + 1, column].imshow(heat_BHW[place].numpy(), cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    return figure


def enlarged(maps_BYX: Tensor, size: int) -> Tensor:
    """Maps at the photographs' size, each stretched to [0, 1]."""
    heat_BHW = F.interpolate(maps_BYX.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False).squeeze(1)
    heat_BHW = heat_BHW - heat_BHW.amin(dim=(1, 2), keepdim=True)
    return heat_BHW / heat_BHW.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat_BHW.dtype).tiny)


def _titled(panel: Axes, true: str, predicted: str, right: bool) -> None:
    true, predicted = (name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in (true, predicted))
    text = true if right else f"{true}\nseen as {predicted}"
    panel.set_title(text, fontsize=style.SMALL, fontfamily=style.FONT, color=style.GREEN if right else style.VERMILION)
