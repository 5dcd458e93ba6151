"""How long G_X and G_Y take beside TinyViT-5M at the same size, in one run on one machine.

The budget of G_X is half of TinyViT's forward time. Rounds are interleaved and the fastest of each counts, so a
neighbour's load cancels out.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from wardpose.shared.anonymize.generators import CodeDecoder, PartConfig, PartGenerator, RecoverableGenerator
from wardpose.shared.pose.model import ModelConfig, build_model

BUDGET = 0.5


def measure(size: tuple[int, int] = (256, 192), *, batch_size: int = 8, rounds: int = 7) -> dict[str, Any]:
    """Return milliseconds a crop and each network's share of TinyViT's time."""
    backbone = build_model(ModelConfig(weights="random", input_size=size)).backbone
    view = PartGenerator(PartConfig()).eval()
    recoverable, recovery = RecoverableGenerator().eval(), CodeDecoder().eval()
    image = torch.rand(batch_size, 3, *size)
    mask = torch.ones(batch_size, 1, *size)
    with torch.inference_mode():
        symbols = recoverable.encode(image)
        works: dict[str, Callable[[], object]] = {
            "tinyvit": lambda: backbone.forward_features(image),
            "public_view": lambda: view(image),
            "recoverable": lambda: recoverable(image, image, mask),
            "recovery": lambda: recovery(symbols),
        }
        best = dict.fromkeys(works, float("inf"))
        for _ in range(rounds):
            for name, work in works.items():
                started = time.perf_counter()
                work()
                best[name] = min(best[name], time.perf_counter() - started)
    share = {name: seconds / best["tinyvit"] for name, seconds in best.items()}
    return {
        "setting": {"size": list(size), "batch_size": batch_size, "rounds": rounds},
        "hardware": {"threads": torch.get_num_threads(), "torch": torch.__version__},
        "rows": [
            {
                "network": name,
                "milliseconds": round(1000 * seconds / batch_size, 2),
                "share_of_tinyvit": round(share[name], 3),
            }
            for name, seconds in best.items()
        ],
        "within_budget": share["public_view"] <= BUDGET and share["recoverable"] <= BUDGET,
    }
