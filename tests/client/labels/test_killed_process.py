"""A real process that drafts, ended as a user or the kernel ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.figures import ward

from wardpose.client.labels.draft import DraftRequest, draft
from wardpose.shared.pose.estimators import open_estimator
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.pose.weights import save_model

COMMAND = "from wardpose.simulation.cli import main; main()"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_draft_is_gone_on_with_and_becomes_the_same_file(tmp_path: Path, how: signal.Signals) -> None:
    source = ward(tmp_path / "a.mkv", lambda n: [(20 + n % 60, 15, 40, 80)], 400, height=96, width=128)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(
        "file,frame,x,y,width,height\n" + "".join(f"a.mkv,{n},{20 + n % 60},15,40,80\n" for n in range(400))
    )
    model, out = tmp_path / "m.safetensors", tmp_path / "parts" / "draft.json"
    save_model(build_model(ModelConfig(weights="random", input_size=(64, 64))), model)
    args = [sys.executable, "-c", COMMAND, "label", "draft", str(source), "--model", str(model), "--format"]
    args += ["label-studio", "--hard", "20", "--frames-to", str(out.parent / "frames"), "--out", str(out)]
    args += ["--boxes", str(boxes)]
    first = subprocess.Popen(args, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 300
    while not list(out.parent.glob(".*/*.people")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(how)
    err = first.communicate(timeout=300)[1]
    assert first.returncode != 0, err
    assert b"Traceback" not in err
    assert not out.exists()

    def drafted(to: Path) -> int:
        request = DraftRequest(
            sources=(source,), out=to, format="label-studio", estimator=open_estimator(str(model)), hard=20,
            frames_to=to.parent / "frames", boxes=boxes,
        )  # fmt: skip
        return draft(request).resumed

    whole = tmp_path / "whole" / "draft.json"
    assert 0 < drafted(out) < 400
    assert drafted(whole) == 0
    ours, theirs = ({str(p.relative_to(at.parent)): p.read_bytes() for p in at.parent.rglob("*") if p.is_file()}
                    for at in (out, whole))  # fmt: skip
    assert ours == theirs
    assert len(ours) == 21
