"""Which parameters train: a named set, or a list of names, sets and patterns.

The noise of a step is as long as the square root of the number of parameters that train, and what they can learn grows
far more slowly: under a small epsilon few numbers beat many. Sizes are those of `tiny_vit_5m_224` at 128x96 with 14
joints.

| set | what trains | numbers |
|---|---|---|
| `maps` | the last 1x1 convolution, from features to one map per joint | 4.5 k |
| `film` | scale and shift of every norm of the last stage | 5.8 k |
| `bias-norms` | every bias and norm of the last stage, and `maps` | 17 k |
| `head` | the head | 91 k |
| `last-stage` | the last stage and the head | 2.6 M |
| `last-stage-norms` | the same, and the LayerNorms of earlier stages (the set of arXiv 2504.10190) | 2.6 M |
| `full` | everything | 5.2 M |

A list means whatever one of its members names: `[film, maps]`, or `["head.maps.*", "backbone.stages.3.blocks.1.*"]`,
where `*` stands for any text and `?` for one character of a parameter's name. `{rank: 4, layers: [...], also: [maps]}`
trains an update of low rank in some layers (`low_rank`), and what `also` names as it is. Everything that trains is
clipped, noised and charged together, and nothing else leaves a site.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

ParameterSet = Literal["maps", "film", "bias-norms", "head", "last-stage", "last-stage-norms", "full"]

MOST_PATTERNS = 64
LONGEST_PATTERN = 120

_LAST = "backbone.stages.3"
_NORMS = (f"{_LAST}.*norm.*", f"{_LAST}.*bn.*")
_SETS: dict[str, tuple[str, ...]] = {
    "maps": ("head.maps.*",),
    "film": _NORMS,
    "bias-norms": (*_NORMS, f"{_LAST}.*.bias", f"{_LAST}.*attention_biases", "head.maps.*"),
    "head": ("head.*",),
    "last-stage": (f"{_LAST}.*", "head.*"),
    "last-stage-norms": (f"{_LAST}.*", "head.*", "*norm*"),
    "full": ("*",),
}
_ALLOWED = (
    f"{', '.join(get_args(ParameterSet))}, a list of these and of patterns of parameters' names, or {{rank, layers}}"
)
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.*?-")


def _patterns(value: Any) -> tuple[str, ...]:
    """Refuse what is no short list of short patterns."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"is {type(value).__name__} (allowed: {_ALLOWED})")
    if len(value) > MOST_PATTERNS:
        raise ValueError(f"{len(value)} patterns (allowed: up to {MOST_PATTERNS})")
    for item in value:
        if not isinstance(item, str) or not 0 < len(item) <= LONGEST_PATTERN or not _CHARACTERS.issuperset(item):
            shown = str(item)[:LONGEST_PATTERN]
            raise ValueError(f"{shown!r} is no pattern (allowed: 1 to {LONGEST_PATTERN} letters, digits and . _ - * ?)")
    return tuple(value)


class LowRank(BaseModel):
    """An update of low rank in some layers.

    Attributes:
        rank: of each layer's update.
        layers: patterns of the names of layers, without `.weight`: linear ones and 1x1 convolutions.
        also: sets and patterns of what trains as it is, beside them.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, le=256)
    layers: tuple[str, ...]
    also: tuple[str, ...] = ()

    @field_validator("layers", "also", mode="before")
    @classmethod
    def _short(cls, value: Any) -> tuple[str, ...]:
        return () if value in ([], ()) and value is not None else _patterns(value)


def _strategy(value: Any) -> Any:
    """Refuse what is neither a set nor a short list of short patterns; a list becomes a tuple."""
    if isinstance(value, str):
        if value not in _SETS:
            raise ValueError(f'"{value[:LONGEST_PATTERN]}" is unknown (allowed: {_ALLOWED})')
        return value
    if isinstance(value, LowRank):
        return value
    if isinstance(value, dict):
        return LowRank.model_validate(value)
    return _patterns(value)


Strategy = Annotated[ParameterSet | tuple[str, ...] | LowRank, BeforeValidator(_strategy)]
"""Which parameters train; see the module's docstring."""


def selected(names: Iterable[str], strategy: Strategy) -> tuple[str, ...]:
    """Return those of `names` that train, in their order; of a low-rank strategy those that train as they are.

    Raises:
        ValueError: there is no such set, or a member of a list names nothing.

    """
    every = tuple(names)
    if isinstance(strategy, LowRank):
        return _named(every, strategy.also)
    return _named(every, (strategy,) if isinstance(strategy, str) else _patterns(strategy))


def factored(names: Iterable[str], strategy: Strategy) -> tuple[str, ...]:
    """Return the weights among `names` whose update has low rank.

    Raises:
        ValueError: a pattern names no layer.

    """
    if not isinstance(strategy, LowRank):
        return ()
    if not strategy.layers:
        raise ValueError("layers is empty (allowed: 1 or more patterns of layers)")
    return _named(tuple(names), tuple(f"{layer}.weight" for layer in strategy.layers))


def _named(every: tuple[str, ...], members: tuple[str, ...]) -> tuple[str, ...]:
    chosen: set[str] = set()
    for member in members:
        found = {name for name in every if any(fnmatchcase(name, p) for p in _SETS.get(member, (member,)))}
        if not found:
            raise ValueError(f'"{member}" names no parameter of the network (allowed: {_ALLOWED})')
        chosen |= found
    return tuple(name for name in every if name in chosen)
