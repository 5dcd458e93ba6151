"""When are two texts the same patient? One person under two spellings would be two privacy units, each with a budget.

* Blanks around an id mean nothing and are cut off, visible or not.
* What a spreadsheet makes of a number is undone: `17.0` and `1.7E+01` are 17, and so is what keeps it from doing so:
  `="0017"` and `'0017` are 0017.
* Ids that then still differ, but only in blanks, case, Unicode form (full-width, accents, kinds of dashes, Cyrillic and
  Greek letters that look Latin) or leading zeros, are refused, naming where they stand, until the site says what is
  meant: `ids: fold` takes them as one patient (under the spelling that comes first), `ids: exact` as several.
* What is no id but a spreadsheet's doing (a date, a rounded number, #N/A, nan) is refused, unless `ids: exact`.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from wardpose.shared.errors import DataError

Ids = Literal["exact", "fold"]
"""What the site says about ids that differ only in how they are written: several patients, or one."""

_WHOLE = re.compile(r"(\d+)[.,]0+")
_KEPT = re.compile(r"=\"([^\"]*)\"|'(\d[^']*)")
_POWER = re.compile(r"(\d)(?:[.,](\d+))?[eE]\+(\d{2,3})")
_DIGITS = re.compile(r"\d+")
_MONTH = (
    r"(?:jan|feb|mar|mär|mrz|apr|may|mai|maj|jun|jul|aug|sep|sept|oct|okt|nov|dec|dez|déc|fév|avr|juin|juil|août|ene|abr|ago"
    r"|dic|gen|mag|giu|lug|set|ott)[a-zäéûç]*\.?"
)
_DATES = re.compile(
    rf"\d{{1,2}}[-. /]+{_MONTH}(?:[-. /,]+\d{{2,4}})?|{_MONTH}[-. /]+\d{{2,4}}"
    r"|\d{1,2}[./]\d{1,2}[./]\d{2,4}|\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?",
    re.IGNORECASE,
)
_ERRORS = re.compile(r"#[A-Z/0?!]+[!?]?|#+")
_NOTHING = {"nan", "none", "null", "nil", "na", "n/a", "n.a.", "-", "--", "?"}
_LOOKALIKES = str.maketrans("авекмнорстухіαβεζηικμνορτυχ", "abekmhopctyxiabezhikmnoptyx")


class PatientError(DataError):
    """It is not certain whose record this is; no record may be left out to get around it."""


@dataclass(frozen=True)
class Mention:
    """An id where it stands.

    Attributes:
        text: cleaned.
        where: in the words of an error, as `row 4`.

    """

    text: str
    where: str


def clean(text: str, ids: Ids | None = None) -> str:
    """Cut blanks off an id and undo what a spreadsheet made of a number (which `exact` leaves)."""
    text = strip(text)
    if ids == "exact":
        return text
    if kept := _KEPT.fullmatch(text):
        return strip(kept[1] or kept[2] or "")
    return plain_number(text)


def strip(text: str) -> str:
    """Cut off blanks and what cannot be seen (no-break and zero-width spaces, byte-order marks) on both sides."""
    start, end = 0, len(text)
    while start < end and _is_blank(text[start]):
        start += 1
    while start < end and _is_blank(text[end - 1]):
        end -= 1
    return text[start:end]


def plain_number(text: str) -> str:
    """Write a whole number as digits: `17.0` and `1.7E+01` are 17; anything else stays."""
    if whole := _WHOLE.fullmatch(text):
        return whole[1]
    if power := _POWER.fullmatch(text):
        digits, whole_digits = power[1] + (power[2] or ""), int(power[3]) + 1
        if len(digits) >= whole_digits and not digits[whole_digits:].strip("0"):
            return digits[:whole_digits]
    return text


def fold(text: str) -> str:
    """Bring a cleaned id to a form that is the same for all its spellings."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = []
    for letter in text:
        if unicodedata.category(letter) == "Pd":
            kept.append("-")
        elif unicodedata.decimal(letter, None) is not None:
            kept.append(str(unicodedata.decimal(letter)))
        elif not _is_blank(letter):
            kept.append(letter)
    folded = "".join(kept).translate(_LOOKALIKES)
    return folded.lstrip("0") or "0" if _DIGITS.fullmatch(folded) else folded


def is_rounded(text: str) -> bool:
    """Tell whether a spreadsheet has written a long number as a power and lost its last digits."""
    return _POWER.fullmatch(text) is not None and plain_number(text) == text


def doubt(text: str) -> str:
    """Say why a cleaned text is hardly a patient's id; empty where it may be one."""
    if text.startswith("="):
        return "a formula of a spreadsheet"
    if _ERRORS.fullmatch(text):
        return "an error that a spreadsheet left"
    if text.casefold() in _NOTHING:
        return "a word for nothing"
    if _DATES.fullmatch(text):
        return "a date that a spreadsheet may have made of it"
    if is_rounded(text):
        return "a number that a spreadsheet has rounded"
    return ""


def same_patients(mentions: Iterable[Mention], ids: Ids | None) -> dict[str, str]:
    """Map every cleaned id to the one it counts under.

    Raises:
        PatientError: an id is doubtful, or several differ only in how they are written, and the site has not said what
            is meant.

    """
    first: dict[str, Mention] = {}
    for mention in mentions:
        first.setdefault(mention.text, mention)
    if ids == "exact":
        return {text: text for text in first}
    spellings: dict[str, list[Mention]] = defaultdict(list)
    for mention in first.values():
        if reason := doubt(mention.text):
            raise PatientError(
                f'{mention.where}: patient "{mention.text}" is {reason}, it seems (allowed: an id, or ids: exact)'
            )
        spellings[fold(mention.text)].append(mention)
    for same in spellings.values():
        if len(same) > 1 and ids is None:
            one, other = same[:2]
            raise PatientError(
                f"{one.where} and {other.where}: patients {one.text!a} and {other.text!a} differ only in how they are "
                "written (allowed: one spelling; or patients.ids: fold for one patient, exact for several)"
            )
    return {mention.text: same[0].text for same in spellings.values() for mention in same}


def _is_blank(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf", "Zs", "Zl", "Zp") or letter == "\u3164"
