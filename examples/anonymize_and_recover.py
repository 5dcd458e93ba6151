"""Anonymise a frame so that two named people can bring it back, and nobody else.

python examples/anonymize_and_recover.py
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from wardpose.client.anonymize.request import anonymize, choose_method
from wardpose.client.recovery.keyholders import Credential, NewPerson
from wardpose.client.recovery.vault import Vault, create_vault
from wardpose.shared.anonymize.frame_methods import Recoverer
from wardpose.shared.anonymize.weights_file import bundled
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import RecoveryError

ADA, BEN = "ada's long passphrase", "ben's long passphrase"


def main() -> None:
    """Hide a frame, fail to recover it alone, recover it together, and read who did."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = WardDataset("north", patients=1, frames_per_patient=1, seed=1).frame(0)
        Image.fromarray(frame).save(folder / "frame.png")

        people = [NewPerson(name="ada", passphrase=ADA), NewPerson(name="ben", passphrase=BEN)]
        create_vault(folder / "vault", people, weights_path=bundled("recoverable"), two_persons=True)

        method = choose_method("recoverable", vault=folder / "vault")
        anonymize(folder / "frame.png", folder / "hidden.png", method)
        hidden = read_picture(folder / "hidden.png")
        print(f"hidden: {error(frame, hidden):.0f} grey levels from the original")

        vault = Vault(folder / "vault")
        try:
            vault.unlock([Credential(name="ada", passphrase=ADA)], why="curious")
        except RecoveryError as refused:
            print(f"ada alone: {refused}")

        both = [Credential(name="ada", passphrase=ADA), Credential(name="ben", passphrase=BEN)]
        opened = vault.unlock(both, why="second opinion")
        key = opened.authorise("hidden.png")  # the log has the line before anybody has the key
        back = Recoverer(opened.weights())(hidden, key)
        print(f"ada and ben: {error(frame, back):.1f} grey levels from the original")
        for entry in opened.entries():
            print(f"log {entry.sequence}: {entry.action} by {' and '.join(entry.who)}: {entry.why}")


def error(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference, in grey levels."""
    return float(np.abs(one.astype(float) - other).mean())


if __name__ == "__main__":
    main()
