"""D_X and D_Y: the judges that the generators train against; no site ever needs them."""

from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.blocks import blocks


class PatchDiscriminator(nn.Module):
    """D_X or D_Y: image -> a score for each 16-pixel patch (PatchGAN with a space-to-depth stem)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(48, width, 1)
        self.body = blocks(width, 1, norm=False)
        self.merge = nn.Conv2d(4 * width, 2 * width, 1)
        self.deep = blocks(2 * width, 1, norm=False)
        self.out = nn.Conv2d(8 * width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H/16, W/16)."""
        x = self.body(self.stem(functional.pixel_unshuffle(image - 0.5, 4)))
        x = self.deep(functional.gelu(self.merge(functional.pixel_unshuffle(x, 2))))
        out: Tensor = self.out(functional.pixel_unshuffle(x, 2))
        return out
