"""What two hospitals might have: frames of drawn patients, COCO keypoints, and a file that says who is on which frame.

python examples/hospital_data.py [FOLDER NAME...]

Each NAME is a folder (without any: a temporary one) with `frames/`, `keypoints.json` and `patients.csv`, as
`wardpose site install --data` takes it.
"""

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from wardpose.shared.data.ward import WardDataset
from wardpose.shared.skeleton import COCO17

PATIENTS, FRAMES = 60, 1


def main(folder: Path) -> None:
    """Draw the ward that is named as the folder is."""
    ward = WardDataset(folder.name, patients=PATIENTS, frames_per_patient=FRAMES, seed=1)
    (folder / "frames").mkdir(parents=True)
    images, people, owners = [], [], []
    for number in range(len(ward)):
        frame, record = ward.frame(number), ward.record(number)
        file = f"{number:04d}.png"
        Image.fromarray(frame).save(folder / "frames" / file)
        images.append({"id": number, "file_name": file, "width": frame.shape[1], "height": frame.shape[0]})
        joints: list[float] = []
        for name in COCO17.joints:  # a ward's patients have no eyes and ears
            at = ward.skeleton.joints.index(name) if name in ward.skeleton.joints else None
            joints += [0, 0, 0] if at is None or not record.visibility[at] else [*record.joints[at].tolist(), 2]
        box = [float(value) for value in record.box]
        people.append(
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3],
             "keypoints": joints}
        )  # fmt: skip
        owners.append(f"{number},{record.patient_id}")
    person = {"id": 1, "name": "person", "keypoints": list(COCO17.joints)}
    content = {"images": images, "annotations": people, "categories": [person]}
    (folder / "keypoints.json").write_text(json.dumps(content))
    (folder / "patients.csv").write_text("\n".join(["record,patient", *owners]) + "\n")
    print(f"{folder}: {len(ward)} frames of {PATIENTS} patients")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        folder, *names = sys.argv[1:] or (temporary, "north")
        for name in names:
            main(Path(folder) / name)
