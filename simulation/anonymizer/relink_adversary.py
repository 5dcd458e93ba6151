"""The relinking attacker inside training: what a public view is hardened against.

The same two networks that a certificate is measured by (`relinking_nets`), one for views and one for frames, learn
beside the generator to tell whose view it is among those of the batch, and the generator pays for what they gain over
guessing. A batch of 8 has 7 others to be told from; the attacker of a certificate has thousands of pairs: what comes
out must be measured (`wardpose anonymizer relink`), and never believed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.generators import enlarge
from wardpose.simulation.anonymizer.relinking_nets import SIZE, Kind, build


class RelinkAdversary(nn.Module):
    """Networks of one kind for views and frames, and their temperature."""

    def __init__(self, kind: Kind = "convolution") -> None:
        super().__init__()
        self.of_view, self.of_frame = build(kind), build(kind)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, shown: Tensor, image: Tensor) -> Tensor:
        """InfoNCE both ways; log B is that of guessing.

        Args:
            shown: part maps (B, 3, h, w) in 0..1.
            image: what they show, (B, 3, H, W) in 0..1.

        """
        seen = functional.normalize(self.of_view(_small(enlarge(shown))).float(), dim=1)
        frames = functional.normalize(self.of_frame(_small(image)).float(), dim=1)
        logits = seen @ frames.T * self.scale.clamp(max=math.log(100.0)).exp()
        target = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    def penalty(self, shown: Tensor, image: Tensor) -> Tensor:
        """Charge the view for what the attacker gains over guessing, in nats; its own weights get no gradient."""
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in own:
            parameter.requires_grad_(False)
        try:
            return functional.relu(math.log(len(shown)) - self(shown, image))
        finally:
            for parameter in own:
                parameter.requires_grad_(True)


def _small(picture: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> the attackers' size, -0.5..0.5."""
    return functional.adaptive_avg_pool2d(picture, SIZE) - 0.5
