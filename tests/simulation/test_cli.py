"""The command line as people and scripts meet it: exit codes, one-line errors, one JSON object."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WARD = {"kind": "ward", "hospital": "north", "patients": 8, "frames_per_patient": 1}
GOOD = {
    "name": "f",
    "rounds": 1,
    "sites": [{"name": "a", "data": WARD}],
    "model": {"input_size": [64, 64], "weights": "random"},
    "privacy": {"delta": 1e-3},
    "mechanism": {"noise_multiplier": 2.0},
}


def wardpose(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("wardpose")), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WARDPOSE_HOME": str(folder / "home")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roundz": 3}, "roundz: unknown key"),
        ({"rounds": "many"}, "rounds = 'many'"),
        ({"privacy": {"epsilon": -1}}, "privacy.epsilon = -1"),
        ({"data": {"test": [{"kind": "lsp", "path": "/nowhere/lspet", "split": "test"}]}}, "/nowhere/lspet"),
        ({"model": {"weights": "/nowhere/weights.safetensors"}}, "/nowhere/weights.safetensors"),
    ],
)
def test_a_wrong_plan_is_one_line_exit_code_2_and_nothing_created(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(GOOD | change))
    result = wardpose("simulate", "plan.yaml", folder=tmp_path)
    lines = result.stderr.splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert message in lines[0]
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml"]


def test_json_is_one_object_with_what_the_summary_promises(tmp_path: Path) -> None:
    import json

    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(GOOD))
    result = wardpose("simulate", "plan.yaml", "--out", "run", "--json", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    promised = (
        "score_name score_initial score_final rounds mechanism unit delta sites epsilon_federation seconds versions"
    )
    assert set(promised.split()) <= set(summary)
    assert {"name", "epsilon_spent", "epsilon_budget", "steps", "bytes_up"} <= set(summary["sites"][0])
    assert {"disjoint", "overlap"} <= set(summary["epsilon_federation"])
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    again = wardpose("simulate", "plan.yaml", "--out", "run", folder=tmp_path)
    assert again.returncode == 2
    assert "holds a run already" in again.stderr
