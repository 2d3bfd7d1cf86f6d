"""Masked autoencoder (He et al. 2022, 2111.06377): the pixels of hidden patches are told from the patches shown.

Legend: S slots of a micro-batch, P patches, U shown patches, T prefix tokens, D width of the encoder, W of the decoder,
X = 3 · patch² values of a patch, C channels, H and W (beside H) pixels, Y rows (and columns) of patches, Q pixels along
a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models.block import Block
from vitcore.models.model import Model
from vitcore.models.positions import sincos_position_embedding
from vitcore.models.vit import PatchEmbed, VisionTransformer
from vitcore.objectives.objective import Objective, Terms
from vitcore.recipe import MaeConfig
from vitcore.world import World

INIT_STD = 0.02
PIXEL_EPS = 1e-6
"""Added to the variance of a patch."""
HIDDEN = 0.5
"""What stands for hidden pixels in a picture: grey."""


class Decoder(nn.Module):
    """A narrower transformer that is thrown away after training (section 3, "MAE decoder").

    Args:
        config: width, depth and heads.
        encoder: what it decodes; fixes patches, prefix tokens and width of what comes in.
    """

    positions: Tensor
    """(1, T + P, W); fixed"""

    def __init__(self, config: MaeConfig, encoder: VisionTransformer) -> None:
        super().__init__()
        self._prefix = encoder.num_prefix
        self.enter = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.tell = nn.Linear(config.width, 3 * encoder.config.patch**2)
        positions = sincos_position_embedding(encoder.grid, config.width, prefix=encoder.num_prefix)
        self.register_buffer("positions", positions, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(self, tokens_SND: Tensor, shown_SU: Tensor) -> Tensor:
        """What it tells of every patch (S, P, X), from prefix tokens and shown patches (S, T + U, D)."""
        entered_SNW: Tensor = self.enter(tokens_SND)
        prefix_STW, shown_SUW = entered_SNW[:, : self._prefix], entered_SNW[:, self._prefix :]
        patches = self.positions.shape[1] - self._prefix
        masks_SPW = self.mask_token.to(entered_SNW.dtype).expand(len(tokens_SND), patches, -1)
        placed_SPW = masks_SPW.scatter(1, shown_SU[..., None].expand_as(shown_SUW), shown_SUW)
        decoded_SNW = torch.cat([prefix_STW, placed_SPW], dim=1) + self.positions
        for block in self.blocks:
            decoded_SNW = block(decoded_SNW)
        told_SPX: Tensor = self.tell(self.norm(decoded_SNW[:, self._prefix :]))
        return told_SPX


class Mae(Objective):
    """The mean squared error of the hidden patches' pixels (section 3, "Reconstruction target").

    The encoder sees only what is shown. Which patches those are is drawn for every sample from torch's generator.

    Raises:
        RequestError: the model is no vision transformer over patches of pixels, has a pooling that this leaves
            untrained, or a single patch; or the decoder's width does not fit.
    """

    def __init__(self, config: MaeConfig, model: Model, world: World) -> None:
        encoder = _encoder(model)
        if config.width % config.heads or config.width % 4:
            raise RequestError(
                f"objective.width {config.width} must be divisible by 4 and by the {config.heads} heads of the decoder"
            )
        super().__init__(encoder, world)
        self._config = config
        self.decoder = Decoder(config, encoder).to(world.device)

    @property
    def encoder(self) -> VisionTransformer:
        """The model."""
        assert isinstance(self.model, VisionTransformer)
        return self.model

    def forward(self, inputs: Inputs) -> Terms:
        """See `Objective.forward`."""
        images_SCHW = self.normalize(inputs.images_SCHW)
        told_SPX, hidden_SP = self._tell(images_SCHW)
        target_SPX = to_patches(images_SCHW, self.encoder.config.patch)
        if self._config.normalize_pixels:
            mean_SP1, deviation_SP1 = _moments(target_SPX)
            target_SPX = (target_SPX - mean_SP1) / deviation_SP1
        error_SP = (told_SPX.float() - target_SPX).square().mean(2)
        loss_S = (error_SP * hidden_SP).sum(1) / hidden_SP.sum(1)
        return Terms(loss=(inputs.weights_S * loss_S).sum(), weight=inputs.weights_S.sum(), metrics={})

    def undecayed(self) -> set[str]:
        """The model's, and the mask token."""
        return super().undecayed() | {"decoder.mask_token"}

    @torch.no_grad()
    def reconstruct(self, images_SCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures of what it does, for pixels in [0, 1] (S, C, H, W): with the hidden patches grey, and told.

        Where the network tells patches normalised by their own mean and deviation, these are taken from the
        photograph. Meant for evaluation mode; the mask is drawn from torch's generator, as in training.
        """
        patch = self.encoder.config.patch
        normalised_SCHW = self.normalize(images_SCHW)
        told_SPX, hidden_SP = self._tell(normalised_SCHW)
        if self._config.normalize_pixels:
            mean_SP1, deviation_SP1 = _moments(to_patches(normalised_SCHW, patch))
            told_SPX = told_SPX * deviation_SP1 + mean_SP1
        mean_C11, std_C11 = (
            images_SCHW.new_tensor(value).view(-1, 1, 1) for value in (self.model.config.mean, self.model.config.std)
        )
        told_SCHW = to_images(told_SPX.float(), patch) * std_C11 + mean_C11
        here_S1HW = to_images(hidden_SP[..., None].expand_as(told_SPX), patch)[:, :1] > 0
        masked_SCHW = images_SCHW.masked_fill(here_S1HW, HIDDEN)
        return masked_SCHW, torch.where(here_S1HW, told_SCHW.clamp(0, 1), images_SCHW)

    def _tell(self, images_SCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What is told of all patches (S, P, X) of normalised images, and 1 where a patch was hidden (S, P)."""
        encoder = self.encoder
        tokens_SND = encoder.embed(images_SCHW)
        prefix_STD, patches_SPD = tokens_SND[:, : encoder.num_prefix], tokens_SND[:, encoder.num_prefix :]
        slots, patches, width = patches_SPD.shape
        shown = min(max(1, round(patches * (1 - self._config.mask))), patches - 1)
        order_SP = torch.rand(slots, patches, device=images_SCHW.device).argsort(dim=1)
        shown_SU = order_SP[:, :shown]
        shown_SUD = patches_SPD.gather(1, shown_SU[..., None].expand(-1, -1, width))
        told_SPX: Tensor = self.decoder(encoder.encode(torch.cat([prefix_STD, shown_SUD], dim=1)), shown_SU)
        return told_SPX, images_SCHW.new_ones(slots, patches).scatter(1, shown_SU, 0.0)


def to_patches(images_SCHW: Tensor, patch: int) -> Tensor:
    """Pixels (S, C, H, W) by patch (S, P, X), row by row; inside a patch row, column, channel."""
    slots, channels, height, width = images_SCHW.shape
    cells_SCYQYQ = images_SCHW.reshape(slots, channels, height // patch, patch, width // patch, patch)
    return cells_SCYQYQ.permute(0, 2, 4, 3, 5, 1).reshape(slots, -1, patch * patch * channels)


def to_images(patches_SPX: Tensor, patch: int) -> Tensor:
    """The reverse of `to_patches`, for square images."""
    slots, patches, values = patches_SPX.shape
    side = round(patches**0.5)
    cells_SYYQQC = patches_SPX.reshape(slots, side, side, patch, patch, values // patch**2)
    return cells_SYYQQC.permute(0, 5, 1, 3, 2, 4).reshape(slots, -1, side * patch, side * patch)


def _moments(patches_SPX: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (S, P, 1) of each patch's values."""
    variance_SP1, mean_SP1 = torch.var_mean(patches_SPX, dim=2, keepdim=True)
    return mean_SP1, (variance_SP1 + PIXEL_EPS).sqrt()


def _encoder(model: Model) -> VisionTransformer:
    if not isinstance(model, VisionTransformer) or not isinstance(model.patch_embed, PatchEmbed):
        raise RequestError(
            f"a masked autoencoder needs a vision transformer over patches of pixels, not a {model.config.kind}: "
            "set model.kind to vit"
        )
    if model.config.pooling == "map" or model.config.norm_after_pool:
        raise RequestError(
            "a masked autoencoder trains tokens and leaves their pooling as it is: set model.pooling to token or mean, "
            "and model.norm_after_pool to false"
        )
    if model.grid == 1:
        raise RequestError("a masked autoencoder needs several patches: set model.patch below data.image_size")
    return model
