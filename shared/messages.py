"""What server and site say to each other; how it travels is `shared/wire.py`.

`RoundOrder` (server -> site) carries the global weights and how to train. `SiteRelease` (site -> server) carries a
noised update and facts that do not depend on any patient's data: they follow from the order, the site's own
configuration and the ledger. `EvaluationOrder` and `EvaluationRelease` are the same for scores on private patients. All
are signed (`seals`).
"""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wardpose.shared.errors import ConfigError, WireError
from wardpose.shared.pose.model import ModelConfig, check_strategy
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import Evaluation, Layout
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.seals import MOST_CHARGES, MOST_RECEIPTS, Digest, Head, Word
from wardpose.shared.secure_aggregation.messages import Delivery
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.settings import (
    LocalTraining,
    refuse_anchor,
    refuse_distributed,
    refuse_ridge,
    refuse_uplink,
)

TRAIN = "train"
EVALUATE = "evaluate"
PREFLIGHT = "query.preflight"
PREFLIGHT_EVALUATION = "query.evaluation"
RECEIPTS = "query.receipts"
SECURE_KEYS, SECURE_SHARES = "query.keys", "query.shares"
SECURE_SURVIVORS, SECURE_UNMASK = "query.survivors", "query.unmask"
SECURE_PARTS = (SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK)
"""Messages of secure aggregation beside the order, in turn."""

PROTOCOL = 3

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Entries = Annotated[int, Field(ge=0, le=2**53)]
Units = Annotated[int, Field(ge=0, le=10**9)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class RoundOrder(_Body):
    """What the server asks of a site in one round.

    Attributes:
        protocol: version of this message.
        course: everything that the run may ask of a site, fixed before its first round.
        round: counted from 1; of the course.
        model: the network, without weights.
        training: how the site trains locally, from the plan.
        weights_hash: SHA-256 of all weights that the round starts from.
        code_hash: SHA-256 of the server's code.
        public_data: identity of the public data that a coefficient uplink refers to.
        resident: SHA-256 of the weights that do not come along, because no round changes them and the site has them
            from an earlier order; absent where all come along. A preflight asks by it whether the site has them.
        secure: of secure aggregation: what the other sites sealed for this one; absent in preflights.

    """

    protocol: int = PROTOCOL
    course: Course
    round: int = Field(ge=1)
    model: ModelConfig
    training: LocalTraining
    weights_hash: Hash
    code_hash: Hash
    public_data: Hash | None = None
    resident: Hash | None = None
    secure: Delivery | None = None

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        if self.protocol != PROTOCOL:
            raise ValueError(f"protocol is {self.protocol}; allowed: {PROTOCOL}")
        if self.model.weights != "random":
            raise ValueError(f'model.weights is "{self.model.weights[:80]}"; allowed: "random", the weights come along')
        if self.training.steps != self.course.steps:
            raise ValueError(f"training.steps is {self.training.steps}; the course declares {self.course.steps}")
        check_strategy(self.model, self.training.strategy)
        refuse_uplink(self.mechanism, self.training)
        refuse_anchor(self.mechanism, self.training)
        refuse_ridge(self.mechanism, self.training)
        refuse_distributed(self.mechanism, self.training)
        if self.secure is not None and self.mechanism.distributed is None:
            raise ValueError("secure: shares come along, but the course declares no distributed noise")
        try:
            self.events()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def run(self) -> str:
        """Identity of the run."""
        return self.course.run

    @property
    def federation(self) -> str:
        """Name of the federation."""
        return self.course.federation

    @property
    def mechanism(self) -> Mechanism:
        """How each gradient is made private."""
        return self.course.mechanism

    @property
    def reads_public_data(self) -> bool:
        """Whether a site needs public data of its own: for a basis, a curvature, an anchor or a judgement."""
        return self.mechanism.reads_public_people or self.judges_view or self.training.anchor is not None

    @property
    def judges_view(self) -> bool:
        """Whether public people decide if the site's public view is used."""
        return self.mechanism.uses_difference and self.mechanism.feature.max_difference is not None

    @property
    def first_step(self) -> int:
        """Noised gradients that the run took before this round: its position in a schedule."""
        return self.course.first_step(self.round)

    def events(self) -> tuple[Event, ...]:
        """Return what the round costs a site; both ledgers reserve exactly this."""
        return self.course.events(self.round)


class SiteAnswer(_Body):
    """What a site says of itself in every answer; signed by its node key.

    Attributes:
        protocol: version of this message.
        site: the site's name.
        key: public half of its node key.
        nonce: of the seal that it answers.
        order: hash of the order that it answers.
        code_hash: SHA-256 of the site's code.
        secure: whether the noise comes from a cryptographically secure generator; `False` is stamped "not private".
        ledger_sequence: entries in the site's ledger.
        ledger_head: hash of the last entry; a later, shorter ledger is thereby found out.
        server_ledger: head of the coordinator's ledger that the site remembers.
        receipts: hashes of the receipts that it has kept.
        words: that nothing was released for charges that the seal asked about; such an order is never carried out.
        epsilon_spent: of the cohort, all runs composed.
        epsilon_budget: of the cohort.
        delta: at which both are stated.

    """

    protocol: int = PROTOCOL
    site: str
    key: Annotated[str, Field(max_length=400)]
    nonce: Digest
    order: Digest
    code_hash: Hash
    secure: bool
    ledger_sequence: Entries
    ledger_head: Hash
    server_ledger: Head
    receipts: Annotated[tuple[Digest, ...], Field(max_length=MOST_RECEIPTS)] = ()
    words: Annotated[tuple[Word, ...], Field(max_length=MOST_CHARGES)] = ()
    epsilon_spent: float = Field(ge=0)
    epsilon_budget: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class ReceiptsOrder(_Body):
    """Nothing is asked: the seal brings receipts, and the answer says which of them were kept.

    Attributes:
        protocol: version of this message.
        run: that has ended.

    """

    protocol: int = PROTOCOL
    run: str


class ReceiptsKept(SiteAnswer):
    """A site's answer to receipts; its attributes are those of every answer."""


class SiteRelease(SiteAnswer):
    """What leaves a site after a round, beside the update itself.

    Attributes:
        run: identity of the run.
        round: counted from 1.
        mechanism: as ordered.
        steps: noised gradients taken; as ordered.
        weights_hash: weights that the update starts from.
        arrays: SHA-256 of the arrays that come along (`hash_arrays`).
        paid: the row of the site's ledger that charged the round. The other attributes are those of every answer.

    """

    run: str
    round: int = Field(ge=1)
    mechanism: Mechanism
    steps: int = Field(ge=1)
    weights_hash: Hash
    arrays: Hash
    paid: Head
    ledger_sequence: Entries = Field(ge=1)


class WeightsWanted(SiteAnswer):
    """A site's answer to an order whose resident weights it lacks: nothing was carried out, and nothing charged.

    It is signed like every answer and names the seal that it answers, which is used up by it: whoever gets the whole
    order under the same charge afterwards may still get no more than one release for it. Its attributes are those of
    every answer.
    """


class EvaluationOrder(_Body):
    """What the server asks of a site in one evaluation on private patients.

    Attributes:
        protocol: version of this message.
        course: of the run; it declares the evaluation.
        number: of this evaluation in the run, counted from 1; a site answers each number once.
        model: the network, without weights.
        weights_hash: SHA-256 of the weights that come along: of one network, or of two that are compared.
        pair: whether there are two.
        code_hash: SHA-256 of the server's code.

    """

    protocol: int = PROTOCOL
    course: Course
    number: int = Field(ge=1, le=1_000_000)
    model: ModelConfig
    weights_hash: Hash
    pair: bool = False
    code_hash: Hash

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        if self.protocol != PROTOCOL:
            raise ValueError(f"protocol is {self.protocol}; allowed: {PROTOCOL}")
        if self.model.weights != "random":
            raise ValueError(f'model.weights is "{self.model.weights[:80]}"; allowed: "random", the weights come along')
        if self.course.evaluation is None:
            raise ValueError("course.evaluation is absent; allowed: what the course declares")
        return self

    @property
    def run(self) -> str:
        """Identity of the run."""
        return self.course.run

    @property
    def evaluation(self) -> Evaluation:
        """What is measured, and under which noise."""
        evaluation = self.course.evaluation
        if evaluation is None:  # refused above
            raise WireError("the course declares no evaluation")
        return evaluation

    @property
    def layout(self) -> Layout:
        """What stands where in the release."""
        return Layout(joints=len(get_skeleton(self.model.skeleton)), pair=self.pair)

    def events(self) -> tuple[Event, ...]:
        """Return what the evaluation costs a site; both ledgers reserve exactly this."""
        return self.course.evaluation_events()


class EvaluationRelease(SiteAnswer):
    """What leaves a site after an evaluation, beside the noised sum itself.

    Attributes:
        run: identity of the run.
        number: of the evaluation, as ordered.
        weights_hash: of the networks that were measured.
        arrays: SHA-256 of the sum that comes along (`hash_arrays`).
        paid: the row of the site's ledger that charged it. The other attributes are those of every answer.

    """

    run: str
    number: int = Field(ge=1)
    weights_hash: Hash
    arrays: Hash
    paid: Head
    ledger_sequence: Entries = Field(ge=1)


class SiteStatus(SiteAnswer):
    """A site's answer to a preflight: it would train this order, and what its ledger says now.

    Attributes:
        declared_units: the numbers of units that its site.yaml declares, by consent tier (the plain tier is ""): what
            noised sums are divided by, hence what decides how long its updates can be.
        resident: whether it has the weights that the order calls so. The other attributes are those of every answer.

    """

    declared_units: dict[str, Units]
    resident: bool = False
