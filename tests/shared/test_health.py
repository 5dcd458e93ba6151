"""Who answers lives, whatever its certificate is worth; who does not, does not."""

import http.server
import ssl
import threading
from pathlib import Path

from wardpose.server.provision.certificates import create_authority, create_server_certificate
from wardpose.shared.health import healthy


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_expired_or_foreign_certificate_is_no_reason_to_start_a_server_again(tmp_path: Path) -> None:
    own = create_authority(tmp_path / "own", name="own", days=1)
    other = create_authority(tmp_path / "other", name="other", days=1)
    certificate, key = create_server_certificate(tmp_path / "own", tmp_path, hosts=("127.0.0.1",), days=1)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        assert healthy(address, own)
        assert healthy(address, other)
        assert not healthy(address)  # plain HTTP gets no answer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not healthy(address, own, seconds=0.5)
