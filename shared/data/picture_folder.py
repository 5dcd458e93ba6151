r"""Which file does a label mean? Tools write names with other folders, separators and letters than the disk has.

A name is tried as it is; then with the folders before it dropped one by one, since exports name folders of another
machine (`images\bed.jpg`, `/data/upload/1/bed.jpg`, an address), but never one that is there; and each time with
letters of another case or Unicode form, without or with another ending (`0001` or `0001.jpg` for `0001.png`, which
anonymising writes), and as a number that lost its zeros (1 for `0001.png`). What is found must be one file, and two
names never mean one file by such a guess. No name leads out of the folder.
"""

import contextlib
import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from wardpose.shared.data.dataset import ImageFile
from wardpose.shared.data.pictures import PICTURE_ENDINGS, PictureError, is_picture
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import plain_number, strip

_SHOWN = 3


class PictureFolder:
    """A folder of pictures that labels name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = str(root)
        self._found: dict[str, ImageFile] = {}
        self._names: dict[str, str] = {}  # file -> the name by which it was found
        self._guessed: dict[str, str] = {}  # the same, where it was found by a guess
        self._missing: list[str] = []
        self._files: list[str] | None = None
        self._index: dict[str, dict[str, list[str]]] = {}

    def find(self, stated: str) -> ImageFile:
        """Find the file that a label names.

        Raises:
            DataError: there is none, or several fit; names the file.

        """
        if stated not in self._found:
            name = self._resolve(stated)
            self._found[stated] = ImageFile(root=self.root, name=name)
            self._names.setdefault(name, stated)
        return self._found[stated]

    def mention(self, stated: str) -> None:
        """Take note of a picture that is listed, but not needed."""
        try:
            self.find(stated)
        except DataError:
            self._missing.append(stated)

    def notes(self) -> list[str]:
        """Say which names were guessed, which pictures are not there, and which no label names."""
        notes = []
        if self._guessed:
            shown = [f'"{stated}" is {name}' for name, stated in self._guessed.items()]
            notes.append(f"{self.root}: {len(shown)} names are not those of the files ({_some(shown)})")
        if self._missing:
            notes.append(
                f"{self.root}: {len(self._missing)} pictures without a person are missing ({_some(self._missing)})"
            )
        unnamed = self.unnamed()
        if unnamed:
            notes.append(f"{self.root}: {len(unnamed)} pictures are not listed ({_some(unnamed)})")
        return notes

    def unnamed(self) -> list[str]:
        """Pictures of the folder that no label names, by their names in it."""
        return [
            name
            for name in self._listing()
            if name not in self._names
            and (_ending(name) in PICTURE_ENDINGS or (not _ending(name) and is_picture(self.root / name)))
        ]

    def _resolve(self, stated: str) -> str:
        name = str(PurePosixPath(stated))
        if stated and not name.startswith("/") and ".." not in name.split("/") and _is_file(self._root, name):
            if name in self._guessed:
                raise _two_names(self.root, name, self._guessed[name], stated)
            return name
        for parts in _readings(stated):
            for start in range(len(parts)):
                fitting = self._fitting("/".join(parts[start:]))
                if len(fitting) > 1:
                    raise DataError(f'{self.root}: "{stated}" fits {_some(fitting)} (allowed: one picture)')
                if fitting:
                    self._remember(fitting[0], stated)
                    return fitting[0]
                if os.path.isdir(self.root / parts[start]):
                    break  # it is missing there; one of that name elsewhere is another picture
        raise PictureError(f"{self.root / stated}: image is missing (allowed: an existing picture)")

    def _remember(self, name: str, stated: str) -> None:
        if name in self._names:
            raise _two_names(self.root, name, self._names[name], stated)
        self._guessed[name] = stated

    def _fitting(self, name: str) -> list[str]:
        """Files that the name fits by the first way in which it fits any."""
        if not self._index:
            self._index = _index(self._listing())
        keys = {"name": name, "letters": _letters(name), "stem": _letters(name)}
        if _ending(name) in PICTURE_ENDINGS:
            keys["other stem"] = _letters(str(PurePosixPath(name).with_suffix("")))
        digits = plain_number(PurePosixPath(name).name)
        if digits.isascii() and digits.isdigit():
            keys["number"] = str(PurePosixPath(name).with_name(digits.lstrip("0") or "0"))
        for way, key in keys.items():
            if fitting := self._index[way.split()[-1]].get(key):
                return fitting
        return []

    def _listing(self) -> list[str]:
        if self._files is None:
            self._files = []
            for folder, _, names in os.walk(self._root):
                inside = os.path.relpath(folder, self._root).replace(os.sep, "/")
                prefix = "" if inside == "." else f"{inside}/"
                self._files += [prefix + name for name in names if not name.startswith("._")]
            self._files.sort()
        return self._files


def _is_file(root: str, name: str) -> bool:
    return os.path.isfile(f"{root}/{name}")


def _index(files: list[str]) -> dict[str, dict[str, list[str]]]:
    index: dict[str, dict[str, list[str]]] = {way: defaultdict(list) for way in ("name", "letters", "stem", "number")}
    for name in files:
        path = PurePosixPath(name)
        index["name"][name].append(name)
        index["letters"][_letters(name)].append(name)
        if _ending(name) in PICTURE_ENDINGS or not path.suffix:
            index["stem"][_letters(str(path.with_suffix("")))].append(name)
            if path.stem.isascii() and path.stem.isdigit():
                index["number"][str(path.with_name(path.stem.lstrip("0") or "0"))].append(name)
    return index


def _readings(stated: str) -> list[list[str]]:
    """Give the folders and the file that a name may mean, plain and with percent signs decoded."""
    text = strip(stated)
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) or "?d=" in text:
        with contextlib.suppress(ValueError):  # no address after all
            address = urlsplit(text)
            text = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    out = []
    for form in dict.fromkeys((text, unquote(text))):
        parts = [part for part in form.replace("\\", "/").split("/") if part not in ("", ".")]
        if ".." in parts:
            parts = parts[len(parts) - parts[::-1].index("..") :]
        if parts and re.fullmatch(r"[A-Za-z]:", parts[0]):
            parts = parts[1:]
        out.append(parts)
    return out


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _letters(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _two_names(root: Path, name: str, one: str, other: str) -> DataError:
    return DataError(f'{root / name}: "{one}" and "{other}" both mean this picture (allowed: one name)')
