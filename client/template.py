"""The site.yaml that a hospital starts from: by hand, or filled in from its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text
from wardpose.shared.signing import ensure_key_pair

_HEAD = """\
# What this hospital brings and what it allows. Nothing that a server sends can change it.
# Relative paths are relative to this file. Check it with: wardpose site check site.yaml
site: {site}                # as registered with the server

cohort:
  name: {cohort}            # in the ledger; renaming it gives no patient a new budget
  declared_patients: {declared}    # a round public number near the number of patients; noised sums are divided by it
"""

_POLICY = """
policy:
  mechanisms: [dp-sgd]      # of dp-sgd, projected, feature, feature-projective, label-ridge; none gives none
                            # evaluation: courses may also score networks on these patients, at a declared cost
  unit: {unit}             # what the guarantee protects: patient (all frames of one), frame (a picture) or record
  epsilon: 4.0              # total budget of each patient over all runs, at this delta
  # epsilon_per_month: 1.0  # of it, in one calendar month
  # studies: {{my-study: 2.0}} # of it, by each federation; others may then charge nothing
  delta: {delta}             # below 1 / patients
  minimum_noise_multiplier: 0.5
  maximum_sample_rate: 0.2
  maximum_steps_per_round: 200
  minimum_declared_patients: 50
  # maximum_...             # every other bound, with its default and what it protects: wardpose site policy site.yaml
  # distributed_noise: true # secure aggregation may be ordered: all sites' noise together protects each one's patients
  # federations: [my-study] # only these may order; a name, which is no proof of who asks
  # code_hash: ...          # only this code may run (printed by: wardpose site check)

node_key: {node_key}        # signs the ledger and every answer; its public half, node.pub, goes to the coordinator
coordinator_key: {coordinator_key}  # from the coordinator: only what this key signed is carried out
ledger: ledger.sqlite       # back it up like a medical record: a lost ledger is a lost budget
state: state                # caches of frames and the local journal; as confidential as the frames
device: auto
answer_seconds: 300         # answers leave at whole multiples of this; longer than a round, it hides how long one took

# For secure aggregation: the other sites' public keys. Compare their fingerprints with these sites first.
{peers}
# public_view:              # the declared map phi of feature mechanisms
#   kind: blur
#   strength: 12
"""

_EXAMPLE = """\
  data:
    kind: coco              # coco, mpii, lsp, video, cvat or label-studio
    annotations: data/keypoints.json
    images: data/images
    # patients:             # who is on which frame: what unit: patient needs, unless the file of keypoints says it
    #   file: data/patients.csv
    #   ids: fold           # P017 and "p 017" are one patient; exact: two; without it such ids are refused
"""


@dataclass(frozen=True, kw_only=True)
class FilledIn:
    """What a site.yaml says of one hospital.

    Attributes:
        site: its name.
        cohort: name of its cohort.
        declared: patients, a public round number.
        data: the data source, as YAML's values.
        remarks: lines above the data source.
        unit: of the policy.
        delta: of the policy.
        peers: names of the sites whose public keys are in `peers/`.

    """

    site: str
    cohort: str
    declared: int
    data: Mapping[str, Any]
    remarks: Sequence[str] = ()
    unit: str = "patient"
    delta: float = 1e-5
    peers: Sequence[str] = ()


def filled_in(values: FilledIn) -> str:
    """Return a commented site.yaml of a site's home, with the template's policy."""
    data = yaml.safe_dump({"data": dict(values.data)}, sort_keys=False, allow_unicode=True, width=1000)
    lines = [*(f"# {remark}" for remark in values.remarks), *data.splitlines()]
    peers = [f"# peers: {{{', '.join(f'{name}: peers/{name}.pub' for name in values.peers)}}}"] if values.peers else []
    return _HEAD.format(site=values.site, cohort=values.cohort, declared=values.declared) + "".join(
        (
            *(f"  {line}\n" for line in lines),
            _POLICY.format(
                unit=values.unit,
                delta=yaml.safe_dump(values.delta).split()[0],
                node_key="keys/node.key",
                coordinator_key="keys/coordinator.pub",
                peers="".join(f"{line}\n" for line in peers or ("# peers: {south: peers/south.pub}",)),
            ),
        )
    )


def write_template(folder: Path, name: str) -> Path:
    """Write a commented site.yaml, and a key of the site where there is none yet; returns the file's path.

    Raises:
        ConfigError: there is one already.

    """
    path = folder / "site.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already (allowed: a folder without a site.yaml)")
    ensure_key_pair(folder / "node.key", folder / "node.pub")
    text = _HEAD.format(site=name, cohort=f"{name}-ward-1", declared=100) + _EXAMPLE
    text += _POLICY.format(
        unit="patient",
        delta="1.0e-5",
        node_key="node.key",
        coordinator_key="coordinator.pub",
        peers="# peers: {south: south.pub, east: east.pub}\n",
    )
    write_text(path, text)
    return path
