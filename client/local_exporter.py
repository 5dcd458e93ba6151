"""What a site's exporter shows to the site's own machine alone: what training looked like from inside.

Nothing here was noised or charged for (`telemetry`). `/metrics/local` is answered on loopback only
(`wardpose.shared.status_server`), no shared metric has any of it, and nothing of it is ever sent to the coordinator.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from wardpose.client.telemetry import QUANTILES, TrainingRow, training_rows
from wardpose.shared.exposition import FileCollector, Samples, gauge
from wardpose.shared.files import existing
from wardpose.shared.site_config import load_site

LOCAL_METRICS = {
    "wardpose_local_exporter_up": "1 when every source could be read.",
    "wardpose_local_exporter_source_up": "1 when the source could be read.",
    "wardpose_local_round": "Round of the last training.",
    "wardpose_local_training_timestamp_seconds": "When the last training ended.",
    "wardpose_local_training_seconds": "Duration of its steps.",
    "wardpose_local_loss": "Mean loss of the units that took part in it, in nats.",
    "wardpose_local_clipped_ratio": "Share of their contributions that were clipped.",
    "wardpose_local_gradient_norm": "Norm of a unit's contribution before clipping, by quantile.",
    "wardpose_local_max_grad_norm": "Norm at which contributions are clipped.",
    "wardpose_local_frames_per_second": "Frames that were differentiated in a second.",
    "wardpose_local_gpu_memory_bytes": "Most memory of the GPU that it used.",
    "wardpose_local_anonymiser_frames_per_second": "Frames that the public view took in a second, when it last did.",
    "wardpose_local_disk_free_bytes": "Free bytes of the disk that holds the site's state.",
    "wardpose_local_disk_size_bytes": "Size of that disk.",
}


class LocalExporter:
    """Read a site's own figures for a Prometheus on its own machine.

    Attributes:
        path: the site.yaml.

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def collector(self) -> FileCollector:
        """Return what `serve` needs."""
        return FileCollector({"training": self.training, "disk": self.disk}, prefix="wardpose_local_exporter")

    def training(self) -> Iterable[Metric]:
        """Read the last training.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            DamagedError: the file of the trainings cannot be read.

        """
        rows = training_rows(load_site(self.path).state)
        last = rows[-1] if rows else None
        viewed = next((row.views_per_second for row in reversed(rows) if row.views_per_second is not None), None)
        for name, value in _values(last, viewed).items():
            yield _gauge(name, [({}, value)])
        norms = [] if last is None else list(zip(QUANTILES, last.norms, strict=False))
        yield _gauge("wardpose_local_gradient_norm", [({"quantile": f"{share:g}"}, norm) for share, norm in norms])

    def disk(self) -> Iterable[Metric]:
        """Ask how much room is left.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            OSError: the folder of site.yaml is not there.

        """
        usage = shutil.disk_usage(existing(load_site(self.path).state))
        yield _gauge("wardpose_local_disk_free_bytes", [({}, usage.free)])
        yield _gauge("wardpose_local_disk_size_bytes", [({}, usage.total)])


def _values(last: TrainingRow | None, viewed: float | None) -> dict[str, float | None]:
    row = last
    return {
        "wardpose_local_round": None if row is None else row.round,
        "wardpose_local_training_timestamp_seconds": None if row is None else row.ended,
        "wardpose_local_training_seconds": None if row is None else row.seconds,
        "wardpose_local_loss": None if row is None else row.loss,
        "wardpose_local_clipped_ratio": None if row is None else row.clipped,
        "wardpose_local_max_grad_norm": None if row is None else row.max_grad_norm,
        "wardpose_local_frames_per_second": None if row is None else row.frames_per_second,
        "wardpose_local_gpu_memory_bytes": None if row is None else row.gpu_bytes,
        "wardpose_local_anonymiser_frames_per_second": viewed,
    }


def _gauge(name: str, samples: Samples) -> Metric:
    return gauge(name, LOCAL_METRICS[name], samples)
