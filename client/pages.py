"""What a site's exporter serves, and to whom."""

from collections.abc import Mapping
from pathlib import Path

from wardpose.client.exporter import SiteExporter
from wardpose.client.facts import certificates_of
from wardpose.client.home import open_site_home
from wardpose.client.local_exporter import LocalExporter
from wardpose.client.status import site_status
from wardpose.shared.site_config import load_site
from wardpose.shared.status_server import Pages
from wardpose.shared.status_view import StatusView


def site_pages(site: Path | None, *, home: Path | None = None, local: bool = True) -> Pages:
    """Return what is served of a site.

    Args:
        site: its site.yaml; that of its home when absent.
        home: the home; found as everywhere when absent.
        local: show the machine itself what depends on patients' frames.

    Raises:
        ConfigError: there is no such site, or its site.yaml is wrong.

    """
    certificates: Mapping[str, Path] = {}
    if site is None:
        found = open_site_home(home)
        site, certificates = found.site, certificates_of(found)
    load_site(site)
    path = site

    def status() -> StatusView:
        view = site_status(path, certificates=certificates)
        return view if local else view.shared()

    return Pages(
        metrics=SiteExporter(path, certificates).collector(),
        status=status,
        local=LocalExporter(path).collector() if local else None,
    )
