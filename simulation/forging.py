"""Answers as a hostile site would send them: changed, and signed by its own key all the same."""

import json
from contextlib import suppress

from flwr.app import ConfigRecord, RecordDict

from wardpose.shared.messages import SiteRelease, SiteStatus
from wardpose.shared.signing import Signer
from wardpose.shared.wire import arrays_of, hash_arrays


def signed_again(content: RecordDict, signer: Signer) -> RecordDict:
    """Sign what an answer says now, in place: its arrays' hash is stated anew where it has readable ones.

    Args:
        content: of the answer; anything may be in it.
        signer: the site's key.

    """
    body = content.config_records.get("body")
    text = None if body is None else body.get("json")
    if body is None or not isinstance(text, str):
        return content
    kind = SiteRelease if "arrays" in content.array_records else SiteStatus
    with suppress(Exception):  # whatever cannot be read is sent as it is
        stated = json.loads(text)
        arrays = arrays_of(content)
        if "arrays" in stated:
            text = json.dumps(stated | {"arrays": hash_arrays(arrays)})
    fields = {**body, "json": text, "signature": signer.sign(kind.__name__, text.encode("utf-8", "replace"))}
    content["body"] = ConfigRecord(fields)
    return content
