"""The reference, made from the code: commands, configuration, metrics, wire, and what an auditor reads."""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer
from mkdocs.exceptions import PluginError
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wardpose.client import exporter as site_exporter
from wardpose.client import local_exporter
from wardpose.server import exporter as server_exporter
from wardpose.server.coordinator import CoordinatorConfig
from wardpose.shared import messages, seals
from wardpose.shared.config import FederationConfig
from wardpose.shared.privacy import accounting, mechanisms
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import Evaluation
from wardpose.shared.refusals import Refusal
from wardpose.shared.secure_aggregation.messages import Delivery, Session, SignedKeys
from wardpose.shared.site_config import SiteConfig
from wardpose.simulation.cli import app

_PRIVACY = (
    "mechanisms", "units", "sampling", "clipping", "noise", "distributed", "accounting", "composition", "filters",
    "course", "evaluation", "schedules", "budget", "ledger", "chain", "entries", "tally", "membership", "merkle",
)  # fmt: skip


def pages() -> dict[str, str]:
    """Return the pages of the reference by their names."""
    return {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
        "reference/metrics.md": metrics(),
        "reference/wire.md": wire_records(),
        "reference/privacy.md": privacy(),
    }


# Commands


def commands() -> str:
    """Return every command of `wardpose` with its arguments and options."""
    root = typer.main.get_command(app)
    context = click.Context(root, info_name="wardpose")
    parts = [
        "# Commands",
        "Every error that names its cause is one line on standard error and exit code 2.",
        "Shell completion: `wardpose --install-completion`.",
        *_command(root, context, 2),
    ]
    return "\n\n".join(parts) + "\n"


def _command(command: Any, context: Any, level: int) -> Iterator[str]:
    children = command.list_commands(context) if hasattr(command, "list_commands") else []
    if context.parent is not None:
        yield f"{'#' * level} {context.command_path}"
        yield _paragraphs(command.help)
        if not children:
            yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
            yield _table(
                ("argument or option", "meaning", "default"),
                [_parameter(p, command, context) for p in _shown(command, context)],
            )
    for name in children:
        child = command.get_command(context, name)
        if not child.hidden:
            yield from _command(child, click.Context(child, info_name=name, parent=context), min(level + 1, 4))


def _shown(command: Any, context: Any) -> list[Any]:
    return [p for p in command.get_params(context) if "--help" not in p.opts and not getattr(p, "hidden", False)]


def _parameter(parameter: Any, command: Any, context: Any) -> tuple[str, str, str]:
    names = (
        parameter.opts + parameter.secondary_opts
        if parameter.opts[0].startswith("-")
        else [parameter.make_metavar(context)]
    )
    shown = (
        isinstance(parameter.default, str | int | float) and parameter.default is not False and not parameter.required
    )
    return (
        ", ".join(f"`{name}`" for name in names),
        _help(parameter, command),
        f"`{parameter.default}`" if shown else "",
    )


def _help(parameter: Any, command: Any) -> str:
    """Return a parameter's sentence; that of an argument from the function itself, as click drops it."""
    text = getattr(parameter, "help", None)
    if not text:
        hints = typing.get_type_hints(inspect.unwrap(command.callback), include_extras=True)
        text = next((note.help for note in getattr(hints[parameter.name], "__metadata__", ()) if note.help), "")
    return " ".join(text.split())


def _paragraphs(text: str | None) -> str:
    if not text:
        raise PluginError("a command has no sentence that says what it does")
    return inspect.cleandoc(text).replace("\x0c", "")


# Configuration


def configuration() -> str:
    """Return every key of a plan, of a site's file and of the coordinator's."""
    parts = [
        "# Configuration",
        "Unknown keys are refused, and every error names file, key, value and what is allowed. `wardpose simulate PLAN "
        "--show-config` shows a plan with every key and default. Relative paths mean a place beside the file; "
        "`${WARDPOSE_DATA}` is replaced by the folder of real data.",
        "## federation.yaml",
        "The coordinator's plan; in simulation also the hospitals.",
        *_models(FederationConfig),
        "## site.yaml",
        "A hospital's own file. Its policy beats whatever a server asks; `wardpose site policy` shows it knob by knob.",
        *_models(SiteConfig),
        "## coordinator.yaml",
        "Where the ledger is, and what the coordinator lets sites and federations spend; no plan changes it. "
        "Found by `WARDPOSE_COORDINATOR`, else in Wardpose's home.",
        *_models(CoordinatorConfig),
    ]
    return "\n\n".join(parts) + "\n"


def _models(top: type[BaseModel]) -> Iterator[str]:
    """Return one table a model, each where it is first named, and linked to from wherever it is named."""
    ahead, seen = [("", top)], {top}
    while ahead:
        place, model = ahead.pop(0)
        if place:
            yield f"### `{place}` ({model.__name__}) {{ #{top.__name__.lower()}-{model.__name__.lower()} }}"
            yield summary_of(model)
        if model is mechanisms.Mechanism:
            yield "\n".join(re.findall(r"^\|.*\|$", mechanisms.__doc__ or "", re.MULTILINE))
        yield _table(("key", "value", "default", "meaning"), list(_fields(model, f"#{top.__name__.lower()}-")))
        for name, field in model.model_fields.items():
            for inner in _inner_models(field.annotation):
                if inner not in seen:
                    seen.add(inner)
                    ahead.append((f"{place}.{name}".lstrip("."), inner))


def _fields(model: type[BaseModel], places: str) -> Iterator[tuple[str, str, str, str]]:
    meanings = attributes_of(model)
    for name, field in model.model_fields.items():
        if name not in meanings and name != "kind":
            raise PluginError(f"{model.__name__}.{name}: no sentence says what it is")
        yield f"`{name}`", _value(field, places), _default(field), meanings.get(name, "which of the kinds")


def attributes_of(model: type) -> dict[str, str]:
    """Return what docstrings say of each attribute, those of the classes that it is made from included."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
        _, _, section = text.partition("Attributes:\n")
        section = re.split(r"\n\S", section)[0]
        for entry in re.split(r"\n(?=    \w)", "\n" + section):
            name, colon, meaning = entry.strip().partition(":")
            if colon and name.isidentifier():
                found[name] = " ".join(meaning.split())
    return found


def summary_of(model: type) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


def _value(field: FieldInfo, places: str) -> str:
    limits = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(bound, name, None) is not None
    ]
    return ", ".join([_type(field.annotation, places), *limits])


def _type(kind: Any, places: str) -> str:
    """Say what may stand there; `places` is what anchors of models begin with."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(arguments[0], places)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_type(part, places) for part in arguments))
    if origin is tuple:
        return f"list of {_type(arguments[0], places)}"
    if isinstance(kind, type) and issubclass(kind, tuple):  # a named one
        parts = typing.get_type_hints(kind).items()
        return "list of " + ", ".join(f"{name} ({_type(part, places)})" for name, part in parts)
    if origin is dict:
        return f"{_type(arguments[0], places)} → {_type(arguments[1], places)}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[{kind.__name__}]({places}{kind.__name__.lower()})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Path: "path"}
    return names[kind]


def _default(field: FieldInfo) -> str:
    """Write a default as YAML would."""
    if field.is_required():
        return "(must be given)"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "its own defaults" if isinstance(value, BaseModel) else f"`{json.dumps(value, default=str)}`"


def _inner_models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in typing.get_args(kind):
        yield from _inner_models(part)


# Metrics and wire


def metrics() -> str:
    """Return the catalogues of both exporters."""
    parts = [
        "# Metrics",
        "Both exporters read durable files at every scrape: one that restarts shows what it showed before.",
    ]
    for title, module in (("Coordinator", server_exporter), ("Site", site_exporter)):
        command = {"Coordinator": "wardpose server metrics", "Site": "wardpose site metrics"}[title]
        parts += [
            f"## {title}",
            f"`{command}`",
            _table(("metric", "meaning"), [(f"`{n}`", m) for n, m in module.METRICS.items()]),
        ]
    parts += [
        "## Site, for its own machine alone",
        "At `/metrics/local`, on loopback: made of patients' frames, never noised, and never sent to anybody.",
        _table(("metric", "meaning"), [(f"`{n}`", m) for n, m in local_exporter.LOCAL_METRICS.items()]),
    ]
    return "\n\n".join(parts) + "\n"


_WIRE_MODELS: tuple[type[BaseModel], ...] = (
    seals.OrderSeal,
    messages.RoundOrder,
    Course,
    messages.SiteRelease,
    messages.SiteStatus,
    messages.EvaluationOrder,
    Evaluation,
    messages.EvaluationRelease,
    messages.ReceiptsOrder,
    seals.Receipt,
    seals.SignedReceipt,
    seals.Charge,
    seals.Word,
    Session,
    SignedKeys,
    Delivery,
)


def wire_records() -> str:
    """Return the messages between server and site."""
    parts = [
        "# Wire",
        f"Protocol {messages.PROTOCOL}. A message is one Flower `ConfigRecord` named `body` with one text `json`; "
        "where weights or an update come along, also one `ArrayRecord` named `arrays`. Beside an order stands one "
        "record `seal` with the texts `json` (an `OrderSeal`) and `signature`; an answer's `body` holds its "
        "`signature`, too. A key that is not in these tables is refused.",
    ]
    for model in _WIRE_MODELS:
        meanings = attributes_of(messages.SiteRelease) | attributes_of(model)
        fields = [(f"`{name}`", _value(field, ""), meanings[name]) for name, field in model.model_fields.items()]
        parts += [f"## {model.__name__}", summary_of(model), _table(("key", "value", "meaning"), fields)]
    event = [(f"`{name}`", meaning) for name, meaning in attributes_of(accounting.Event).items()]
    parts += ["## Event", summary_of(accounting.Event), _table(("key", "meaning"), event)]
    codes = [(f"`{code.value}`", f"`{code.name}`", code.sentence) for code in Refusal]
    parts += [
        "## Refusal",
        "All that a server hears when a site does not train.",
        _table(("code", "name", "sentence"), codes),
    ]
    text = "\n\n".join(parts) + "\n"
    for name in ("Mechanism", "LocalTraining", "ModelConfig"):  # the plan's own
        text = text.replace(f"({name.lower()})", f"(configuration.md#federationconfig-{name.lower()})")
    for model in _WIRE_MODELS:
        text = text.replace(f"({model.__name__.lower()})", f"(#{model.__name__.lower()})")
    return text


def privacy() -> str:
    """Return the modules that an auditor reads."""
    parts = ["# shared/privacy", "What the claim rests on; every example here is run by the tests."]
    return "\n\n".join([*parts, *(f"::: wardpose.shared.privacy.{name}" for name in _PRIVACY)]) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
