"""One federation.yaml becomes an authority and one archive a machine; later, archives one by one.

Everything is made in a folder of its own beside the result, and moved over at the end: whatever goes wrong before, the
result is as it was.
"""

import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wardpose.server.provision.authority import FOLDER, Authority, found_authority, open_authority, revoke
from wardpose.server.provision.certificates import (
    certified_key,
    client_certificate,
    create_client_certificate,
    create_node_key,
    create_secret,
    create_server_certificate,
    requested_key,
    server_certificate,
)
from wardpose.server.provision.kits import Wheel, installed_wheel, server_files, site_files
from wardpose.server.provision.plan import MachinePlan
from wardpose.shared.errors import ConfigError, one_line
from wardpose.shared.files import sha256_file, storage_error, write_bytes
from wardpose.shared.home import LOOPBACK
from wardpose.shared.kits.archive import KitFile, write_archive
from wardpose.shared.kits.request import SiteRequest
from wardpose.shared.kits.seal import SIGNATURE, SIGNER, SUMS, fingerprint_of, public_pem, sealed, signature_of
from wardpose.shared.signing import PublicKey, create_key_pair, load_public_key

_SERVER = "server"
_ALL = "all"
_LOOPBACK = ("localhost", LOOPBACK)

Requests = Mapping[str, tuple[Path, SiteRequest]]
"""What hospitals asked for that made their keys themselves, and from which file, by site."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a call of provision did.

    Attributes:
        out: folder of the archives.
        archives: files that were written, by machine.
        node_keys: fingerprints of the sites' node keys, by site.
        own: sites whose private keys are in no archive, because they are at the site.
        revoked: who was taken back.
        fingerprint: of the key that signs archives.

    """

    out: Path
    archives: Mapping[str, Path]
    node_keys: Mapping[str, str]
    own: tuple[str, ...] = ()
    revoked: str | None = None
    fingerprint: str


def provision(plan: MachinePlan, out: Path, *, requests: Requests | None = None, wheel: Wheel | None = None) -> Made:
    """Found a federation: its authority, and an archive for each machine.

    Args:
        plan: of the federation.
        out: folder of the result; made when missing.
        requests: of hospitals that made their keys themselves.
        wheel: that everybody runs; the one of this installation when absent.

    Raises:
        ConfigError: there is an authority already; a request is of somebody whom the plan does not name.
        StorageError: it cannot be written.

    """
    requests = requests or {}
    _refuse_strangers(plan, requests)
    if (out / FOLDER).exists():
        raise ConfigError(
            f"{out / FOLDER}: exists already, and new keys would lock out every machine (allowed: --add NAME, --revoke "
            "NAME or --renew NAME, or another --out)"
        )
    days = plan.deployment
    with _staged(out) as stage:
        authority = found_authority(stage / FOLDER, name=plan.name, days=days.authority_days)
        bench = _Bench(plan, authority, wheel or installed_wheel(), stage)
        private = {site: bench.keys(site, requests.get(site)) for site in plan.sites}
        archives = [bench.new_server()] + [bench.site(site, private[site]) for site in plan.sites]
        bench.sign(out)
    return _made(out, Authority(out / FOLDER), archives, own=tuple(requests))


def add_site(
    plan: MachinePlan, out: Path, site: str, *, requests: Requests | None = None, wheel: Wheel | None = None
) -> Made:
    """Make the archive of one more hospital, whom the plan names already; everybody else's stays as it is.

    Args:
        plan: of the federation.
        out: folder of the archives.
        site: whom.
        requests: its own, where it made its keys itself.
        wheel: as for `provision`.

    Raises:
        ConfigError: the plan does not name it, or it has an archive.

    """
    requests = requests or {}
    authority = open_authority(out / FOLDER)
    _refuse_strangers(plan, {**requests, site: None}, option="--add")
    for stranger in sorted(set(requests) - {site}):
        raise ConfigError(f"--csr {requests[stranger][0]}: is of {stranger} (allowed: of {site})")
    taken = {known.casefold(): known for known in authority.sites()}
    if site.casefold() in taken:
        raise ConfigError(
            f"--add {site}: {taken[site.casefold()]} has an archive (allowed: a new name; --revoke it first to replace "
            "its key, --renew it to let its certificate hold longer)"
        )
    with _staged(out) as stage:
        shutil.copytree(out / FOLDER, stage / FOLDER)
        bench = _Bench(plan, Authority(stage / FOLDER), wheel or installed_wheel(), stage)
        archive = bench.site(site, bench.keys(site, requests.get(site)))
        bench.sign(out)
    return _made(out, authority, [archive], own=tuple(requests))


def renew(plan: MachinePlan, out: Path, names: Sequence[str], *, wheel: Wheel | None = None) -> Made:
    """Make archives with new certificates for the keys that machines have, and with the wheel of today.

    No private key is in them: they are installed where the keys are.

    Args:
        plan: of the federation.
        out: folder of the archives.
        names: sites, `server`, or `all`.
        wheel: as for `provision`.

    Raises:
        ConfigError: somebody of them has no archive.

    """
    authority = open_authority(out / FOLDER)
    known = [_SERVER, *authority.sites()]
    chosen = known if _ALL in names else list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--renew {one_line(name)}: has no archive (allowed: all, {', '.join(known)})")
    _refuse_strangers(plan, dict.fromkeys(name for name in chosen if name != _SERVER), option="--renew")
    with _staged(out) as stage:
        shutil.copytree(out / FOLDER, stage / FOLDER)
        bench = _Bench(plan, Authority(stage / FOLDER), wheel or installed_wheel(), stage)
        archives = [bench.renewed_server() if name == _SERVER else bench.renewed_site(name) for name in chosen]
        bench.sign(out)
    return _made(out, authority, archives)


def revoke_site(plan: MachinePlan, out: Path, site: str) -> Made:
    """Take a hospital's keys back, and remove its archive; the server is told by `wardpose server revoke`.

    Raises:
        ConfigError: nobody of that name has an archive.

    """
    authority = open_authority(out / FOLDER)
    with _staged(out) as stage:
        shutil.copytree(out / FOLDER, stage / FOLDER)
        revoke(Authority(stage / FOLDER), site)
        _sign(stage, Authority(stage / FOLDER), out, without=site)
    for path in (_archive(out, site), authority.node_key(site), authority.budget_certificate(site)):
        path.unlink(missing_ok=True)
    return _made(out, authority, [], revoked=site)


class _Bench:
    """Where archives are made.

    Attributes:
        plan: of the federation.
        authority: in the folder of what is being made.
        wheel: that goes into each.
        stage: the folder.

    """

    def __init__(self, plan: MachinePlan, authority: Authority, wheel: Wheel, stage: Path) -> None:
        self.plan = plan
        self.authority = authority
        self.wheel = wheel
        self.stage = stage
        self._signer = authority.signer()

    def keys(self, site: str, request: tuple[Path, SiteRequest] | None) -> dict[str, bytes]:
        """Make a site's keys, or take the public halves of its request; returns the private ones by path."""
        if request is not None:
            path, asked = request
            node = asked.node_key(path)
            self._refuse_shared(site, node, path)
            write_bytes(self.authority.node_key(site), f"{node.text}\n".encode())
            key = requested_key(asked.budget.encode(), f"{path}: budget")
            self._certify(site, client_certificate(self.authority.folder, key, name=site, role="site", days=self._days))
            return {}
        with self._work() as work:
            create_node_key(work)
            create_secret(work / "superexec.secret")
            certificate, budget_key = create_client_certificate(
                self.authority.folder, work, name=site, role="site", days=self._days
            )
            self._certify(site, certificate.read_bytes())
            write_bytes(self.authority.node_key(site), (work / "node.pub").read_bytes())
            private = {f"keys/{name}": (work / name).read_bytes() for name in ("node.key", "superexec.secret")}
            return private | {"keys/budget.key": budget_key.read_bytes()}

    def site(self, site: str, private: Mapping[str, bytes]) -> str:
        """Write the archive of a site whose public halves the authority has; returns its name."""
        nodes = self._nodes()
        public = {
            "keys/ca.crt": self.authority.certificate.read_bytes(),
            "keys/coordinator.pub": self.authority.coordinator_key.read_bytes(),
            "keys/node.pub": nodes.pop(site),
            "keys/budget.crt": self.authority.budget_certificate(site).read_bytes(),
        }
        files = site_files(self.plan, site, public=public, private=private, peers=nodes, wheel=self.wheel)
        return self._write(site, files)

    def renewed_site(self, site: str) -> str:
        """Certify a site's key anew, and write its archive."""
        key = certified_key(self.authority.budget_certificate(site))
        self._certify(site, client_certificate(self.authority.folder, key, name=site, role="site", days=self._days))
        return self.site(site, {})

    def new_server(self) -> str:
        """Make the server's and the coordinator's keys, and write the server's archive."""
        with self._work() as work:
            create_server_certificate(self.authority.folder, work, hosts=self._hosts, days=self._days)
            create_secret(work / "superexec.secret")
            create_key_pair(work / "coordinator.key", work / "coordinator.pub")
            write_bytes(self.authority.server_certificate, (work / "server.crt").read_bytes())
            write_bytes(self.authority.coordinator_key, (work / "coordinator.pub").read_bytes())
            private = {f"keys/{name}": (work / name).read_bytes() for name in ("server.key", "superexec.secret")}
            return self._server(private | {"coordinator/coordinator.key": (work / "coordinator.key").read_bytes()})

    def renewed_server(self) -> str:
        """Certify the server's key anew, for the address of today, and write its archive."""
        key = certified_key(self.authority.server_certificate)
        certificate = server_certificate(self.authority.folder, key, hosts=self._hosts, days=self._days)
        write_bytes(self.authority.server_certificate, certificate)
        return self._server({})

    def sign(self, out: Path) -> None:
        """Write the signed list of all archives, those that were made now and those that were there."""
        _sign(self.stage, self.authority, out)

    @property
    def _days(self) -> int:
        return self.plan.deployment.days

    @property
    def _hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.plan.deployment.address, *_LOOPBACK)))

    def _server(self, private: Mapping[str, bytes]) -> str:
        public = {
            "keys/ca.crt": self.authority.certificate.read_bytes(),
            "keys/server.crt": self.authority.server_certificate.read_bytes(),
            "coordinator/coordinator.pub": self.authority.coordinator_key.read_bytes(),
        }
        if self.authority.revoked.exists():
            public["keys/revoked.txt"] = self.authority.revoked.read_bytes()
        files = server_files(self.plan, public=public, private=private, nodes=self._nodes(), wheel=self.wheel)
        return self._write(_SERVER, files)

    def _nodes(self) -> dict[str, bytes]:
        return {site: self.authority.node_key(site).read_bytes() for site in self.authority.sites()}

    def _certify(self, site: str, certificate: bytes) -> None:
        write_bytes(self.authority.budget_certificate(site), certificate)

    def _refuse_shared(self, site: str, key: PublicKey, path: Path) -> None:
        for other in self.authority.sites():
            if load_public_key(self.authority.node_key(other)) == key:
                raise ConfigError(f"{path}: has the node key of {other} (allowed: a key for {site} alone)")

    def _write(self, machine: str, files: Mapping[str, KitFile]) -> str:
        write_archive(_archive(self.stage, machine), f"wardpose-{machine}", sealed(files, self._signer))
        return machine

    @contextmanager
    def _work(self) -> Iterator[Path]:
        """Give a folder for keys that are on the disk only until they are in an archive."""
        folder = self.stage / f".{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _sign(stage: Path, authority: Authority, out: Path, *, without: str = "") -> None:
    archives = {path.name: path for folder in (out, stage) for path in folder.glob("*.tar.gz")}
    archives.pop(f"{without}.tar.gz", None)
    listed = "".join(f"{sha256_file(archives[name])}  {name}\n" for name in sorted(archives)).encode()
    signer = authority.signer()
    write_bytes(stage / SUMS, listed)
    write_bytes(stage / SIGNATURE, signature_of(listed, signer))
    write_bytes(stage / SIGNER, public_pem(signer.public))


def _archive(folder: Path, machine: str) -> Path:
    return folder / f"{machine}.tar.gz"


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Give a folder to make files in, which are moved to `out` when the block ends without an error."""
    stage = out / f".provision-{secrets.token_hex(6)}"
    try:
        new = not out.exists()
        stage.mkdir(parents=True, mode=0o700)
        if new:
            out.chmod(0o700)
    except OSError as error:
        raise storage_error(error, out) from error
    try:
        yield stage
        for path in sorted(path for path in stage.rglob("*") if path.is_file()):
            target = out / path.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.replace(target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if new and not any(out.iterdir()):
            out.rmdir()
        raise
    shutil.rmtree(stage)
    for folder in (out / FOLDER, *(path for path in (out / FOLDER).rglob("*") if path.is_dir())):
        folder.chmod(0o700)


def _refuse_strangers(plan: MachinePlan, names: Mapping[str, object], option: str = "--csr") -> None:
    for name in names:
        if name not in plan.sites:
            raise ConfigError(
                f"{option} {one_line(name)}: is not among sites of federation.yaml (allowed: {', '.join(plan.sites)}; "
                "write it there first)"
            )


def _made(
    out: Path, authority: Authority, machines: Sequence[str], *, own: tuple[str, ...] = (), revoked: str | None = None
) -> Made:
    sites = [machine for machine in machines if machine != _SERVER]
    return Made(
        out=out,
        archives={machine: _archive(out, machine) for machine in machines},
        node_keys={site: load_public_key(authority.node_key(site)).fingerprint for site in sites},
        own=own,
        revoked=revoked,
        fingerprint=fingerprint_of(public_pem(authority.signer().public)),
    )
