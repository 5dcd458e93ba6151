"""The model card: what a final model was trained on, what it costs whom, how good it is, and what it is not for.

It lies beside the model as Markdown (`model-card.md`) and in the safetensors' metadata (`card`), with the sentence
about epsilon alone (`epsilon`), which `wardpose export` carries on. It holds nothing that the coordinator's summary
does not: public data, declared facts, charged epsilons.
"""

from typing import Any

from wardpose.shared.config import FederationConfig
from wardpose.shared.status_view import score_label

NAME = "model-card.md"

_UNITS = {
    "patient": "one patient, with all of that patient's frames at a site",
    "record": "one record (one annotated person in one frame)",
    "frame": "one frame, with everybody in it",
}
_NOT_FOR = (
    "Diagnosis, monitoring or any decision about a patient without a person who looks at the frames: it is no medical "
    "device and was not tested as one.",
    "Recognising or following people across cameras or days; the joints it finds can give people away.",
    "Cameras, beds, ages and illnesses unlike those of its sites: `wardpose evaluate` says how good it is on yours.",
    "Confidence as a probability: `wardpose evaluate` measures how far it is from one.",
)


def epsilon_sentence(summary: dict[str, Any]) -> str:
    """Say in one sentence what the model tells about a patient.

    Args:
        summary: what `summarise` returned.

    """
    if summary["not_private"]:
        return f"NOT PRIVATE: {summary['not_private']}. There is no epsilon."
    together = summary["epsilon_federation"]
    alone, overlap = together["disjoint"], together["overlap"]
    if alone is None or overlap is None:
        return "NOT PRIVATE: some site was charged for what has no epsilon."
    if alone == 0:
        return "No site was charged: the model is of public data alone."
    unit = _UNITS.get(summary["unit"], summary["unit"])
    return (
        f"Whoever sees the model and every update, and knows everything about everybody else, can tell whether {unit}, "
        f"took part with odds at most e^{_up(alone)} better than without, except with probability {summary['delta']:g}"
        f" (epsilon {_up(alone)}; {_up(overlap)} for whoever is at {together['overlap_sites']} sites)."
    )


def model_card(summary: dict[str, Any], config: FederationConfig, scores: dict[str, Any] | None) -> str:
    """Write the card as Markdown.

    Args:
        summary: of the run, as `summarise` returned it.
        config: the federation's plan.
        scores: of the final model, as `Scorer.test` returned them.

    """
    lines = [
        f"# {summary['federation']}: pose model of run {summary['run']}",
        "",
        f"**{epsilon_sentence(summary)}**",
        "",
        "## What it is",
        "",
        f"- {config.model.backbone} with a SimCC head: crops of {config.model.input_size[1]} x "
        f"{config.model.input_size[0]} pixels in, the joints of `{config.model.skeleton}` out.",
        f"- First weights: `{config.model.weights}`. Trained by Wardpose {summary['versions'].get('wardpose', '')}.",
        f"- {summary['rounds']} of {summary['rounds_planned']} rounds; the run is {summary['status']}.",
        "",
        "## Data",
        "",
        f"- {len(summary['sites'])} sites; their frames never left them, and how many there are is not known here.",
        *[f"- Public, for training: {_source(source)}." for source in config.data.public],
        *[f"- Public, for the scores below: {_source(source)}." for source in config.data.test],
        "",
        "## Privacy",
        "",
        f"- Mechanism `{summary['mechanism']}`, unit: {_UNITS.get(summary['unit'], summary['unit'])}, delta "
        f"{summary['delta']:g}.",
        "",
        "| site | epsilon charged | its budget | steps | rounds released | at the end |",
        "| --- | --- | --- | --- | --- | --- |",
        *[
            f"| {_cell(site['name'])} | {_number(site['epsilon_spent'])} | {_number(site['epsilon_budget'])} | "
            f"{site['steps']} | {site['rounds_released']} | {_cell(site['status'])} |"
            for site in summary["sites"]
        ],
        "",
        "## Scores",
        "",
        *_scores(summary, scores),
        "",
        "## What it is not for",
        "",
        *[f"- {sentence}" for sentence in _NOT_FOR],
        "",
    ]
    return "\n".join(lines)


def _scores(summary: dict[str, Any], scores: dict[str, Any] | None) -> list[str]:
    if not scores:
        return ["Not measured: the plan names no public test data."]
    low, high = scores["interval"]
    lines = [
        f"{summary['score_name']} on {scores['records']} public records of {scores['patients']} people: "
        f"**{_number(scores['score'])}** (95 % of drawings of these people: {_number(low)} to {_number(high)}); before "
        f"training {_number(summary['score_initial'])}.",
    ]
    if scores["by_group"]:
        groups = [f"| {_cell(name)} | {_number(score)} |" for name, score in scores["by_group"].items()]
        lines += ["", f"| group | {score_label(summary['score_name'])} |", "| --- | --- |", *groups]
    joints = [f"| {name.replace('_', ' ')} | {_number(score)} |" for name, score in scores["per_joint"].items()]
    return [*lines, "", f"| joint | {score_label(summary['score_name'])} |", "| --- | --- |", *joints]


def _source(source: Any) -> str:
    """Name a data set by its kind and the last part of its path, never by where it lies."""
    content = source.model_dump(mode="json", exclude_none=True)
    keys = ("hospital", "split", "patients", "frames_per_patient", "seed")
    named = [f"{key.replace('_', ' ')} {content[key]}" for key in keys if isinstance(content.get(key), str | int)]
    path = content.get("path") or content.get("annotations")
    return ", ".join([content["kind"], *([str(path).rsplit("/", 1)[-1]] if path else []), *named])


def _cell(text: str) -> str:
    """Write a name so that it stays within its cell."""
    return "".join(f"\\{letter}" if letter in "|\\`*_[]<>#" else letter for letter in " ".join(text.split()))


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _up(value: float) -> str:
    """Round up to two places: an epsilon is never said to be less than it is."""
    return f"{-(-value * 100 // 1) / 100:.2f}"
