"""Certificates and TLS: each fault is refused in a message that says what to do."""

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from deliveries import Environment, fault
from failing_server import FailingServer

from runtime.delivery.answers import explain
from runtime.delivery.sender import Endpoint, deliver
from runtime.delivery.spool import Spool
from runtime.errors import CertificateFileError


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "stop", "asks for a client certificate"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "stop", "allow TLS 1.2 or later"),
        (
            "TLSV1_ALERT_INTERNAL_ERROR",
            "busy",
            "TLS with host failed: [SSL: TLSV1_ALERT_INTERNAL_ERROR]",
        ),
    ],
)
def test_what_tls_says(reason: str, kind: str, message: str) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}] words (_ssl.c:1)")
    answer = explain(error, Endpoint("https://host"), None)
    assert answer.kind == kind
    assert message in answer.message


@pytest.fixture(scope="session")
def certify(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a key and a self-signed certificate, in one file."""

    def make(
        name: str = "localhost", begin: str = "20200101000000Z", end: str = "21200101000000Z"
    ) -> Path:
        folder = tmp_path_factory.mktemp("tls")
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=c\n[c]\nnew_certs_dir=.\ndatabase=index.txt\nserial=serial\n"
            "default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
            f"[e]\nsubjectAltName=DNS:{name}\nbasicConstraints=CA:TRUE\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01")
        request = (
            f"openssl req -newkey rsa:2048 -nodes -subj /CN={name} -keyout key.pem -out request"
        )
        sign = (
            "openssl ca -batch -selfsign -notext -config ca.cnf "
            "-keyfile key.pem -in request -out crt.pem"
        )
        for command in (request, f"{sign} -startdate {begin} -enddate {end}"):
            subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        (folder / "both.pem").write_bytes(
            (folder / "key.pem").read_bytes() + (folder / "crt.pem").read_bytes()
        )
        return folder / "both.pem"

    return make


@pytest.fixture(scope="session")
def certificate(certify: Callable[..., Path]) -> Path:
    return certify()


def test_tls_is_verified(certificate: Path, environment: Environment, tmp_path: Path) -> None:
    with FailingServer(certificate=certificate) as server:
        said = fault(Endpoint(server.url), tmp_path)
        assert said.startswith(
            "ServerSetupError: the certificate of localhost is not trusted (self"
        )
        assert "name its issuer's certificate with --ca-file" in said
        assert server.posts == []
        with Spool(tmp_path / "spool") as spool:
            (outcome,) = deliver(spool, Endpoint(server.url, ca_file=str(certificate)))
        assert outcome.status == "delivered"
    (tmp_path / "none.pem").write_bytes(b"no certificate")
    for path in (tmp_path / "none.pem", tmp_path / "missing.pem", tmp_path):
        with pytest.raises(CertificateFileError, match="holds no certificates that can be read"):
            Endpoint("https://host", ca_file=str(path)).trust()


def test_certificates_of_the_environment_that_are_not_there(
    certificate: Path, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/missing/certificates.pem")
    with FailingServer(certificate=certificate) as server:
        said = fault(Endpoint(server.url), tmp_path)
    assert "--ca-file; SSL_CERT_FILE is '/missing/certificates.pem', which cannot be read" in said


def test_a_file_for_tls_keys_that_cannot_be_written(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    said = fault(Endpoint("https://cloud.example"), tmp_path)
    assert said.startswith("CertificateFileError: TLS cannot be set up")
    assert f"SSLKEYLOGFILE is {str(tmp_path / 'missing' / 'keys')!r}: unset it" in said
    with FailingServer() as server, Spool(tmp_path / "spool") as spool:
        (outcome,) = deliver(spool, Endpoint(server.url))
    assert outcome.status == "delivered", "without TLS it does not matter"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"end": "20200102000000Z"},
            "the certificate of localhost has expired: renew it on the server, "
            "or set this device's clock, which says 20",
        ),
        (
            {"begin": "21190101000000Z"},
            "the certificate of localhost is not valid yet: set this device's clock, which says 20",
        ),
        (
            {"name": "other.example"},
            "the certificate of localhost is for another host (Hostname mismatch",
        ),
    ],
    ids=["expired", "not yet valid", "another name"],
)
def test_a_certificate_that_no_ca_file_mends(
    made: dict[str, str],
    message: str,
    certify: Callable[..., Path],
    environment: Environment,
    tmp_path: Path,
) -> None:
    certificate = certify(**made)
    with FailingServer(certificate=certificate) as server:
        said = fault(Endpoint(server.url, ca_file=str(certificate)), tmp_path)
    assert said.startswith(f"ServerSetupError: {message}")
    assert "--ca-file" not in said


def test_a_server_that_wants_a_clients_certificate(
    certificate: Path, environment: Environment, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    # In TLS 1.2 a client is refused before it sends anything.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = FailingServer()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with server:
        said = fault(
            Endpoint(server.url.replace("http:", "https:"), ca_file=str(certificate)), tmp_path
        )
    assert said.startswith("ServerSetupError")
    assert "it asks for a client certificate" in said


def test_tls_to_a_port_without(environment: Environment, tmp_path: Path) -> None:
    with FailingServer() as server:
        said = fault(Endpoint(server.url.replace("http:", "https:")), tmp_path)
    assert said.startswith("ServerSetupError: localhost speaks no TLS on that port")
    assert "write http:// in --url" in said


def test_no_tls_to_a_port_with(certificate: Path, environment: Environment, tmp_path: Path) -> None:
    """Python's server closes the connection. nginx answers 400: test_answers.py has its words."""
    with FailingServer(certificate=certificate) as server:
        said = fault(Endpoint(server.url.replace("https:", "http:"), attempts=1), tmp_path)
    assert "write https:// in --url" in said


def test_ssl_context_verifies_by_default() -> None:
    context = Endpoint("https://host").trust()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
