"""Configurations as adversaries, editors and cut transfers leave them: one line that names the file, and no hang."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wardpose.shared.config import load_federation
from wardpose.shared.errors import ConfigError
from wardpose.shared.site_config import load_site

CONFIGS = Path(__file__).parents[2] / "simulation" / "configs"
FEDERATION = (CONFIGS / "demo.yaml").read_text()
SITE = """
site: north
cohort:
  name: ward-7
  declared_patients: 40
  data: {kind: ward, hospital: north, patients: 40, frames_per_patient: 2, seed: 1}
policy:
  mechanisms: [dp-sgd, feature]
  epsilon: 4.0
  delta: 1.0e-3
  tiers: {strict: 1.0}
ledger: ledger.sqlite
state: state
answer_seconds: 1
"""
LOADERS = {"federation": (load_federation, FEDERATION), "site": (load_site, SITE)}


def refusal(kind: str, content: str | bytes, folder: Path) -> str:
    """What is said of it; nothing when it is accepted. Anything but a `ConfigError` of one line fails."""
    path = folder / f"{kind}.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        LOADERS[kind][0](path)
    except ConfigError as error:
        text = str(error)
        assert text.startswith(f"{path}: ")
        assert text.isprintable()
        assert len(text) < 4000
        return text
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml")


@pytest.mark.parametrize("kind", LOADERS)
def test_the_originals_are_accepted(kind: str, folder: Path) -> None:
    content = LOADERS[kind][1]
    assert refusal(kind, content, folder) == ""
    assert refusal(kind, b"\xef\xbb\xbf" + content.encode(), folder) == ""  # as Windows' editor saves it
    assert refusal(kind, content.encode("utf-16"), folder) == ""
    assert refusal(kind, content.replace("\n", "\r\n"), folder) == ""


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kind=st.sampled_from(list(LOADERS)), data=st.data())
def test_cuts_flips_and_insertions(kind: str, data: st.DataObject, folder: Path) -> None:
    content = bytearray(LOADERS[kind][1].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        damage = data.draw(st.sampled_from(["cut", "flip", "insert", "line"]))
        if damage == "cut":
            del content[place:]
        elif damage == "flip" and place < len(content):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "line":
            content[place:place] = b"\n"
        else:
            content[place:place] = data.draw(
                st.sampled_from(
                    [b"&a ", b"*a", b"!!python/object:os.system ", b"!!binary ", b"<<: ", b"? ", b"\x00", b"%"]
                )
            )
    refusal(kind, bytes(content), folder)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4),
    st.sampled_from([10**400, -(10**400), 1e308, 2**63, 2**64, "\0", "../\n", "\x1b[31m", "a" * 5000, [], {}, [{}]]),
)  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(kind=st.sampled_from(list(LOADERS)), value=VALUES, data=st.data())
def test_wrong_values_anywhere_are_named(kind: str, value: object, data: st.DataObject, folder: Path) -> None:
    tree = yaml.safe_load(LOADERS[kind][1])
    place = data.draw(st.sampled_from(places(tree)[1:]))
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    if isinstance(parent, dict) and data.draw(st.integers(0, 4)) == 0:
        parent[data.draw(st.one_of(st.text(max_size=6), st.integers(), st.none()))] = value
    else:
        parent[place[-1]] = value
    refusal(kind, yaml.safe_dump(tree, allow_unicode=True), folder)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(9 * [f'*{chr(97 + i)}'])}]\n" for i in range(12)), "aliases"),
        ("site: &s [*s]\n", "aliases"),
        ("site: &s {a: *s}\n", "aliases"),
        ("[" * 200_000, "nested too deeply"),
        ("{a: " * 5000, "nested too deeply"),
        ("- " * 50_000, "nested too deeply"),
        ("a: " + "x" * 2_000_000, "larger than"),
        ("name: a\nname: b\n", "name: stands twice"),
        ("policy: {epsilon: 1, epsilon: 100}\n", "epsilon: stands twice"),
        ("site: 2001-99-99\n", "is not YAML"),
        ("site: " + "9" * 5000, "is not YAML"),
        ("site: !!python/object/apply:os.system [ls]\n", "is not YAML"),
        ("\ttab: 1", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("", "holds NoneType"),
        ("- a\n- b\n", "holds list"),
        ("? [a, b]\n: c\n", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ('ledger: "a\\0b"\n', ""),
    ],
)  # fmt: skip
def test_bombs_and_accidents(kind: str, content: str | bytes, words: str, folder: Path) -> None:
    assert words in refusal(kind, content, folder)


def test_a_path_is_printable_and_keys_from_elsewhere_are_shown_escaped(folder: Path) -> None:
    assert "ledger" not in refusal("site", SITE, folder)
    assert "is no path" in refusal("site", SITE.replace("ledger.sqlite", '"led\\0ger"'), folder)
    assert r"\x1b[31m\nroot: unknown key" in refusal("site", f'{SITE}"\\x1b[31m\\nroot": 1\n', folder)
    many = SITE + "".join(f"key{i}: 1\n" for i in range(1000))
    assert refusal("site", many, folder).endswith("and 990 more")


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/"])
def test_what_is_no_file_of_text_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{path}: "):
        load_site(Path(path))


@example(text="&a *a: 1")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab01.-:,[]{}&*!|>%@#?'\"\\ \n\t~<", max_size=40))
def test_any_short_text(text: str, folder: Path) -> None:
    assert refusal("site", text, folder)
