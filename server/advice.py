"""What a coordinator's staff do about what went wrong, in a sentence each, for status page and `watch`."""

from collections.abc import Mapping

from wardpose.server.journal import Ending, Reason
from wardpose.shared.ledger_state import LedgerState
from wardpose.shared.refusals import Refusal

RESUME = "wardpose server resume"

AFTER_RUN: Mapping[str, str] = {
    Ending.BUDGET: "Nothing gives budget back. Plan fewer rounds or more noise, or go on with the other sites.",
    Ending.REFUSED: f"Ask the sites that refused (the table says why), change the plan or their policy, then: {RESUME}",
    Ending.ABSENT: f"See that the missing sites are online (column connection), then: {RESUME}",
    Ending.LEDGER: f"Do not delete any file. Restore the newest backup of the ledger that is named, then: {RESUME}",
    Ending.CONFIGURATION: f"Correct the key that is named, then: {RESUME}",
    Ending.DATA: f"Correct or restore the file that is named, then: {RESUME}",
    Ending.STORAGE: f"Make room, or make the folder writable, then: {RESUME}",
    Ending.DEFECT: f"Report it with `wardpose server log`. To go on from the last finished round: {RESUME}",
    Ending.INTERRUPTED: f"To go on from the last finished round: {RESUME}",
    Ending.KILLED: f"To go on from the last finished round: {RESUME}",
    "": f"`wardpose server log` says more. To go on from the last finished round: {RESUME}",
}
"""Why a run did not complete -> what to do."""

AFTER_REFUSAL: Mapping[int, str] = {
    Refusal.POLICY: "Change the plan, or ask the site for another policy (wardpose site policy).",
    Refusal.BUDGET: "Nothing gives budget back; the run goes on with the others.",
    Refusal.CODE: "Install the same release at both; wardpose site check prints the site's code hash.",
    Refusal.ORDER: "Install the same release at both; if it is the same, somebody alters messages.",
    Refusal.SITE: "Ask the site to run: wardpose site check",
    Refusal.FAILED: "Ask the site to look at its log and to run: wardpose data check",
    Refusal.SEAL: "Compare, by telephone, the fingerprint in wardpose site check with that of wardpose server key.",
    Refusal.APART: "Find out with the site whose ledger was lost or put back, and restore the newest backup there.",
    Refusal.OUTDATED: "Nothing: it is asked again. If it goes on, set the clocks of both sides right.",
}
"""Number of a site's refusal -> what to do."""

AFTER_REJECTION: Mapping[str, str] = {
    Reason.PAYLOAD: "Install the same release at the site; if it has it, ask the site's staff who else uses its key.",
    Reason.SENDER: "Correct `site` in the site's site.yaml: it must be the name that it is registered under.",
    Reason.ORDER: "Nothing, if it was a late answer of an earlier run; else install the same release at the site.",
    Reason.FACTS: "Hold the site's declared patients against server.admission.smallest_cohort of the plan.",
    Reason.ARRAYS: "Install the same release at the site; if it has it, ask the site's staff who else uses its key.",
    Reason.FINITE: "Plan a lower learning rate: the weights ran away at the site.",
    Reason.NORM: "Ask the site whether it declares its patients rightly; see server.admission in the plan.",
    Reason.LEDGER: "Ask the site whether it restored a backup; then: wardpose server accept-ledger SITE --why ...",
    Reason.SIGNATURE: "If the site says that it has a new key: wardpose server accept-key SITE NODE.pub --why ...",
}
"""Why an answer was not believed -> what to do."""

AFTER_STATE: Mapping[LedgerState, str] = {
    "missing": "Stop training and restore the newest backup; what was charged since stays charged.",
    "empty": "Stop training and restore the newest backup; what was charged since stays charged.",
    "locked": "Find the process that holds it (a backup program?); it passes by itself.",
    "broken": "Stop training, keep the file as it is, and restore the newest backup.",
    "rolled-back": "Stop training and restore the newest backup; this one lacks rounds that were paid for.",
}
"""State of a ledger -> what to do."""

RENEW = "wardpose provision federation.yaml --out kits/ --renew"
