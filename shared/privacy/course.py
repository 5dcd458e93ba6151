"""A run's declared course: every private step it may take, fixed and hashed before the first."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.evaluation import Evaluation
from wardpose.shared.privacy.mechanisms import Mechanism

LongName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A name that is also a safe file name, metric label and piece of terminal output."""


class Course(BaseModel):
    """What a run will ask of a site from its first to its last round; each order carries it.

    Its identity goes into both ledgers with the first charge. Orders inside it are accounted as one list that nobody
    could choose by looking at releases (see `filters`); a run that needs another sigma declares another course.

    Examples:
        >>> course = Course(
        ...     run="r1", federation="study", mechanism=Mechanism(noise_multiplier=1.0), steps=10, last_round=20
        ... )
        >>> course.events(3)[0].steps, course.whole()[0].steps, course.first_step(3)
        (10, 200, 20)

    Attributes:
        run: identity of the run; it survives a resume.
        federation: name of the federation.
        mechanism: how each gradient is made private.
        steps: noised gradients a site takes in a round.
        first_round: first round of the course, counted from 1.
        last_round: last round of the course.
        evaluation: how often, and under which noise, the run scores networks on private patients; never when absent.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    run: LongName
    federation: LongName
    mechanism: Mechanism
    steps: int = Field(ge=1, le=1_000_000)
    first_round: int = Field(default=1, ge=1, le=1_000_000)
    last_round: int = Field(ge=1, le=1_000_000)
    evaluation: Evaluation | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is absent: a course without evaluations is written, and hashed, as earlier versions did."""
        values: dict[str, Any] = handler(self)
        if self.evaluation is None:
            values.pop("evaluation", None)
        return values

    @model_validator(mode="after")
    def _can_be_charged(self) -> Self:
        if self.last_round < self.first_round:
            raise ValueError(f"last_round is {self.last_round}; allowed: {self.first_round} or later")
        try:
            self.events(self.first_round)
            self.events(self.last_round)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @cached_property
    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything above."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def first_step(self, round_number: int) -> int:
        """Noised gradients that the run took before a round: its position in a schedule."""
        return (round_number - 1) * self.steps

    def events(self, round_number: int) -> tuple[Event, ...]:
        """Return what a round costs a site; both ledgers reserve exactly this.

        Raises:
            ConfigError: the round is not of this course, or its schedule ends before it.

        """
        if not self.first_round <= round_number <= self.last_round:
            raise ConfigError(f"round {round_number} is not of a course from {self.first_round} to {self.last_round}")
        return self.mechanism.events(self.steps, first=self.first_step(round_number))

    def whole(self) -> tuple[Event, ...]:
        """Return what all evaluations and rounds together cost."""
        return (*self.set_aside(), *self.training())

    def training(self) -> tuple[Event, ...]:
        """Return what all rounds together cost."""
        rounds = self.last_round - self.first_round + 1
        return self.mechanism.events(rounds * self.steps, first=self.first_step(self.first_round))

    def set_aside(self) -> tuple[Event, ...]:
        """Return what all evaluations together cost.

        They are the course's beginning, whenever they are made: they count as charged from the first round on, so that
        what is composed stays a fixed list, and the last evaluation can always be paid (`filters`).
        """
        return () if self.evaluation is None else self._evaluations(self.evaluation.times)

    def evaluation_events(self) -> tuple[Event, ...]:
        """Return what one evaluation costs a site; both ledgers reserve exactly this.

        Raises:
            ConfigError: the course declares none.

        """
        if self.evaluation is None:
            raise ConfigError("the course declares no evaluation")
        return self._evaluations(1)

    def _evaluations(self, times: int) -> tuple[Event, ...]:
        mechanism = self.mechanism
        if self.evaluation is None:
            return ()
        event = self.evaluation.event(
            times,
            unit=mechanism.unit,
            adjacency=mechanism.adjacency,
            noise="discrete-gaussian" if mechanism.discrete else "gaussian",
        )
        return (event,)

    def beginning(self, charged: Mapping[tuple[str, float, float], int]) -> tuple[Event, ...]:
        """Return the shortest beginning of the rounds that has so many steps of each kind.

        Args:
            charged: steps of the course by (noise, sample rate, noise multiplier); no more than it has.

        """
        left, length, passed = dict(charged), 0, 0
        for event in self.training():
            kind = (event.noise, event.sample_rate, event.noise_multiplier)
            taken = min(left.get(kind, 0), event.steps)
            if taken:
                left[kind] -= taken
                length = passed + taken
            passed += event.steps
        return self.mechanism.events(length, first=self.first_step(self.first_round))
