"""P: the small pose estimator that trains beside the generators on a CPU."""

from torch import Tensor, nn

from wardpose.shared.anonymize.blocks import LightEncoder, PyramidDecoder
from wardpose.shared.anonymize.generators import CELL


class LightPose(nn.Module):
    """A small P with a SimCC head, for joint training on a CPU: image in 0..1 -> (B, J, 2W), (B, J, 2H)."""

    def __init__(self, joints: int, input_size: tuple[int, int], split_ratio: float = 2.0) -> None:
        super().__init__()
        height, width = input_size
        self.encoder = LightEncoder()
        self.decoder = PyramidDecoder(self.encoder.channels, joints)
        cells = (height // CELL) * (width // CELL)
        self.to_x = nn.Linear(cells, round(width * split_ratio))
        self.to_y = nn.Linear(cells, round(height * split_ratio))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits along x and along y."""
        maps = self.decoder(self.encoder(x)).flatten(2)
        return self.to_x(maps), self.to_y(maps)
