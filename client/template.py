"""The site.yaml that a hospital starts from."""

from pathlib import Path

from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text
from wardpose.shared.signing import ensure_key_pair

_TEMPLATE = """\
# What this hospital brings and what it allows. Nothing that a server sends can change it.
# Relative paths are relative to this file. Check it with: wardpose site check site.yaml
site: {name}                # as registered with the server

cohort:
  name: {name}-ward-1       # in the ledger; renaming it gives no patient a new budget
  declared_patients: 100    # a round public number near the number of patients; noised sums are divided by it
  data:
    kind: coco              # coco, mpii, lsp or video
    annotations: data/keypoints.json
    images: data/images
    # patients:             # who is on which frame: what unit: patient needs, unless the file of keypoints says it
    #   file: data/patients.csv
    #   ids: fold           # P017 and "p 017" are one patient; exact: two; without it such ids are refused

policy:
  mechanisms: [dp-sgd]      # of dp-sgd, projected, feature, feature-projective; none gives no privacy at all
                            # evaluation: courses may also score networks on these patients, at a declared cost
  unit: patient             # what the guarantee protects: patient (all frames of one), frame (a picture) or record
  epsilon: 4.0              # total budget of each patient over all runs, at this delta
  # epsilon_per_month: 1.0  # of it, in one calendar month
  # studies: {{my-study: 2.0}} # of it, by each federation; others may then charge nothing
  delta: 1.0e-5             # below 1 / patients
  minimum_noise_multiplier: 0.5
  maximum_sample_rate: 0.2
  maximum_steps_per_round: 200
  minimum_declared_patients: 50
  # maximum_...             # every other bound, with its default and what it protects: wardpose site policy site.yaml
  # distributed_noise: true # secure aggregation may be ordered: all sites' noise together protects each one's patients
  # federations: [my-study] # only these may order; a name, which is no proof of who asks
  # code_hash: ...          # only this code may run (printed by: wardpose site check)

node_key: node.key          # signs the ledger and every answer; its public half, node.pub, goes to the coordinator
coordinator_key: coordinator.pub  # from the coordinator: only what this key signed is carried out
ledger: ledger.sqlite       # back it up like a medical record: a lost ledger is a lost budget
state: state                # caches of frames and the local journal; as confidential as the frames
device: auto
answer_seconds: 300         # answers leave at whole multiples of this; longer than a round, it hides how long one took

# node_key: node.key        # for secure aggregation: the SuperNode's key,
# peers: {{south: south.pub, east: east.pub}} # and the other sites' public ones, from these sites

# public_view:              # the declared map phi of feature mechanisms
#   kind: blur
#   strength: 12
"""


def write_template(folder: Path, name: str) -> Path:
    """Write a commented site.yaml, and a key of the site where there is none yet; returns the file's path.

    Raises:
        ConfigError: there is one already.

    """
    path = folder / "site.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already (allowed: a folder without a site.yaml)")
    ensure_key_pair(folder / "node.key", folder / "node.pub")
    write_text(path, _TEMPLATE.format(name=name))
    return path
