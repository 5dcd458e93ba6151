"""Whether the server knows this node's key, asked without any right and without changing anything.

A node comes online by Flower's ActivateNode. The SuperLink first looks its key up and then checks the heartbeat that it
announces; with one that cannot be (0 seconds), a known key is answered "invalid heartbeat" (2003) and an unknown or
revoked one "not activated" (2004), and nobody goes online or offline by it, a SuperNode that is at work included.
`client.contract` holds the order of these two checks against the installed Flower.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from wardpose.client.connection.door import SECONDS, Blocked, Door, within
from wardpose.client.findings import Finding, finding
from wardpose.shared.errors import one_line
from wardpose.shared.flower_codes import SERVER, server_in_words
from wardpose.shared.signing import PublicKey, load_signer

KNOWN, UNKNOWN = 2003, 2004
_IMPOSSIBLE_HEARTBEAT = 0.0
_UNAUTHORIZED, _FORBIDDEN, _SERVER_FAULT = 401, 403, 500
_NOT_HERE = (404, 405)
_BEHIND_DOWN = (502, 503, 504)


def check_registered(door: Door, key: Path) -> Finding:
    """Ask the server whether it knows this node.

    Args:
        door: of the fleet interface; reached and trusted before.
        key: the node's private key.

    """
    signer = load_signer(key)
    try:
        status, content = within(2 * SECONDS, lambda: _ask(door, signer.key))
    except (Blocked, TimeoutError) as error:
        text = str(error) or f"no answer within {2 * SECONDS:.0f} s"
        return finding("registered", "failure", f"{door.address}: {text}")
    return judge(status, content, door, signer.public)


def judge(status: int, content: Mapping[str, Any], door: Door, key: PublicKey) -> Finding:
    """Say what the server's answer means.

    Args:
        status: of HTTP.
        content: of the answer, where it was JSON.
        door: that was asked.
        key: the node's.

    """
    code, where = content.get("code"), door.address
    if code == KNOWN:
        return finding("registered", "ok", f"{where} knows this node's key {key.fingerprint[:16]}")
    if code == UNKNOWN:
        return _failed(
            f"{where} does not know this node's key {key.fingerprint[:16]} (Flower's code 2004): it is not registered, "
            "or was revoked. Send keys/node.pub to the coordinator, who registers it (wardpose server register)"
        )
    if isinstance(code, int) and code in SERVER:
        return _failed(f"{where}: {server_in_words(code)}")
    if status == _UNAUTHORIZED:
        return _failed(
            f"{where} does not believe this node's signature: this clock is wrong (see clock), or something between "
            "changes requests"
        )
    if status == _FORBIDDEN:
        return _failed(f"{where} lets nobody through to the SuperLink (403): the coordinator must pass /v1/fleet/")
    if status in _NOT_HERE:
        return _failed(f"{where} is no SuperLink ({status}): kit.yaml's address or port is another server's")
    if status in _BEHIND_DOWN:
        return _failed(f"{where}: its door is open, but the SuperLink behind it is down ({status}): ask them")
    if status >= _SERVER_FAULT:
        return _failed(
            f"{where}: the SuperLink failed ({status}): try again; if it stays, the coordinator's log says why"
        )
    detail = one_line(content.get("detail", ""), 80)
    return _failed(f"{where} answered what was not expected ({status} {code} {detail}): is it another release?")


def _failed(text: str) -> Finding:
    return finding("registered", "failure", text)


def _ask(door: Door, key: ec.EllipticCurvePrivateKey) -> tuple[int, dict[str, Any]]:
    import httpx
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    public = key.public_key()
    client = FleetHttpClient(
        f"https://{door.address}",
        interceptors=[NodeAuthHttpInterceptor(key, public)],
        verify=door.context(),
        timeout=SECONDS,
    )
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=_IMPOSSIBLE_HEARTBEAT)
    try:
        client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        try:
            content = error.response.json()
        except ValueError:
            content = {}
        return error.response.status_code, content if isinstance(content, dict) else {}
    except (httpx.HTTPError, RuntimeError) as error:  # a RuntimeError: an answer that is no message
        raise Blocked(f"cannot be asked ({one_line(error) or type(error).__name__})") from error
    finally:
        client.close()
    return 200, {}
