import json
from pathlib import Path

import yaml
from typer.testing import CliRunner

from wardpose.shared.pose.weights import load_model, read_metadata, state_hash
from wardpose.simulation.cli import app

PLAN = {
    "model": {"input_size": [64, 64], "last_stride": 16, "weights": "random"},
    "data": [{"kind": "ward", "hospital": "public", "patients": 4, "frames_per_patient": 1, "seed": 901}],
    "validation": [{"kind": "ward", "hospital": "west", "patients": 2, "frames_per_patient": 1, "seed": 902}],
    "training": {"epochs": 1, "batch_size": 2},
}


def test_pretrain_writes_weights_that_say_where_they_come_from(tmp_path: Path) -> None:
    config, out = tmp_path / "plan.yaml", tmp_path / "weights" / "public.safetensors"
    config.write_text(yaml.safe_dump(PLAN))
    result = CliRunner().invoke(app, ["pretrain", str(config), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["steps"] == 2
    assert said["state"] == state_hash(load_model(out))
    assert set(said["pck_box_02"]) == {"ward/west"}
    assert list(out.parent.iterdir()) == [out]
    noted = json.loads(read_metadata(out)["public_data"])
    assert noted == said["data"]
    assert noted[0]["records"] == 4
