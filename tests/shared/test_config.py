from pathlib import Path

import pytest
import yaml

from wardpose.shared.config import find_federation, load_federation
from wardpose.shared.errors import ConfigError
from wardpose.shared.site_config import load_site
from wardpose.shared.yaml_config import to_yaml

FEDERATION = {"name": "f", "sites": ["a", "b"], "rounds": 2}
SITE = {
    "site": "a",
    "cohort": {
        "name": "c",
        "declared_patients": 30,
        "data": {"kind": "ward", "hospital": "north", "patients": 30, "frames_per_patient": 1, "seed": 0},
    },
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "file.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roundz": 3}, r"roundz: unknown key"),
        ({"rounds": "many"}, r"rounds = 'many': input should be a valid integer"),
        ({"rounds": 0}, r"rounds = 0: input should be greater than or equal to 1"),
        ({"privacy": {"epsilon": -1}}, r"privacy\.epsilon = -1: input should be greater than 0"),
        ({"privacy": {"delta": 1.5}}, r"privacy\.delta = 1\.5"),
        ({"mechanism": {"bogus": 1}}, r"mechanism\.bogus: unknown key"),
        ({"privacy": {"options": {"tiers": {}}}}, r"privacy\.options: is now mechanism"),
        ({"privacy": {"sample_rate": 0.1}}, r"privacy\.sample_rate: is now mechanism\.sample_rate"),
        ({"training": {"steps_per_round": 3}}, r"training\.steps_per_round: is now training\.steps"),
        ({"privacy": {"overlap": 5}}, r"privacy\.overlap = 5 .*at most the 2 sites"),
        ({"mechanism": "magic"}, r"mechanism\.name = 'magic': input should be 'none'"),
        ({"sites": []}, r"sites"),
        ({"sites": ["a", "a"]}, r"a stand twice"),
        ({"sites": ["../etc"]}, r"sites\.0\.name = '\.\./etc'"),
        ({"server": {"minimum_sites": 3}}, r"server\.minimum_sites = 3"),
        ({"model": {"input_size": [100, 96]}}, r"model"),
        ({"data": {"private": {"kind": "csv"}}}, r"data\.private"),
        ({"training": {"precision": "float16"}}, r"training\.precision = 'float16': input should be 'float32' or"),
        (
            {"mechanism": {"name": "projected", "projection": {"uplink": "coefficients"}}},
            r'"coefficients" needs optimizer "sgd"',
        ),
    ],
)
def test_a_wrong_federation_is_one_line_naming_file_and_key(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write(tmp_path, FEDERATION | change)
    with pytest.raises(ConfigError, match=message) as caught:
        load_federation(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "", b"\xff\xfe".decode("latin1")])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"file\.yaml"):
        load_federation(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_federation(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="no bundled configuration of that name"):
        find_federation("nowhere")


def test_site_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, SITE))
    assert site.ledger == tmp_path / "ledger.sqlite"
    assert site.state == tmp_path / "state"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"epsilon": -2}}, r"policy\.epsilon = -2"),
        ({"policy": {"mechanisms": ["dp-sgd", "trust-me"]}}, r"policy\.mechanisms\.1 = 'trust-me'"),
        ({"server": 1}, r"server: unknown key"),
        ({"cohort": {"name": "c"}}, r"cohort\.data: missing"),
    ],
)
def test_a_wrong_site_is_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_site(write(tmp_path, SITE | change))


def test_what_is_shown_back_reads_as_the_same_plan(tmp_path: Path) -> None:
    config = load_federation(write(tmp_path, FEDERATION))
    assert load_federation(write(tmp_path, to_yaml(config))) == config


def test_bundled_configurations_are_valid() -> None:
    folder = find_federation("demo").parent
    plans = [path for path in folder.glob("*.yaml") if "sites" in yaml.safe_load(path.read_text())]
    assert len(plans) >= 2
    for path in plans:
        load_federation(path)
