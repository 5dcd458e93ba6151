"""The coefficient uplink: m numbers instead of p, decoded with the public frames that both sides know."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.server.scoring import load_arrays, open_all
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import ConfigError, WireError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.basis import choose_frames
from wardpose.shared.training.cohort import build_public
from wardpose.shared.training.local import decode_update
from wardpose.shared.wire import COEFFICIENTS

Arrays = dict[str, NDArray[np.float32]]


class UplinkDecoder:
    """Read what sites send as an update of the trained weights.

    Attributes:
        public_data: identity of the public data that coefficients refer to; `None` where updates travel whole.
        coefficients: m, how many a release holds that has them; `None` where updates travel whole.

    Raises:
        ConfigError: the mechanism's uplink needs public data and the plan has none.

    """

    def __init__(self, config: FederationConfig, mechanism: Mechanism, model: PoseModel, folder: Path) -> None:
        self._strategy = config.training.strategy
        self._mechanism = mechanism
        self._model = model
        self._folder = folder / "cache"
        self._dataset = None
        if mechanism.sends_coefficients:
            self._dataset = open_all(config.data.public, config.model.skeleton)
            if self._dataset is None:
                raise ConfigError("data.public: missing; the coefficient uplink needs the public data of the basis")
        self.public_data = None if self._dataset is None else self._dataset.identity()
        self.coefficients: int | None = None
        if self._dataset is not None and self.public_data is not None:
            _, self.coefficients = choose_frames(self.public_data, len(self._dataset), mechanism.projection, 0)

    def __call__(self, weights: Arrays, received: Arrays) -> Arrays:
        """Return the update, by name.

        Args:
            weights: the global weights that the round started from.
            received: the release's arrays: the update (also where a site's gate refused the basis), or coefficients
                (m,).

        Raises:
            WireError: coefficients that were not ordered, or of another number than the public frames.

        """
        if set(received) != {COEFFICIENTS}:
            return received
        if self._dataset is None:
            raise WireError("the release holds coefficients and the order asked for the update")
        load_arrays(self._model, weights)
        public = build_public(self._dataset, self._model, strategy=self._strategy, cache_folder=self._folder)
        coefficients = torch.from_numpy(np.array(received[COEFFICIENTS], np.float64))
        try:
            update = decode_update(self._model, public, self._mechanism, coefficients, strategy=self._strategy)
        except ConfigError as error:
            raise WireError(str(error)) from error
        return {name: value.numpy() for name, value in update.items()}
