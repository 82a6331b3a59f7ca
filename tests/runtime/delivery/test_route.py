"""The way to the server: URLs, proxies of the environment, certificates; each fault in words that name the culprit."""

import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import httpx
import pytest
from failing_server import FailingServer, status

from runtime.delivery import sender
from runtime.delivery.answers import explain
from runtime.delivery.route import Server
from runtime.delivery.sender import Encoded, deliver
from runtime.delivery.spool import Spool
from runtime.errors import CertificateFileError, ProxySettingError, SendError, ServerUrlError

Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets variables, with no proxy in any other."""

    def use(**variables: str) -> None:
        for name in os.environ:
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    use()
    return use


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    with (
        mock.patch.object(sender, "_FIRST_WAIT", 0.01),
        mock.patch.object(sender, "_LONGEST_WAIT", 0.05),
    ):
        yield


def fault(server: Server, folder: Path) -> str:
    """What a delivery of one image says in the end, of the image or as a whole; the image waits in the spool."""
    said, outcomes = "", []
    with Spool(folder / "spool") as spool:
        try:
            for outcome in deliver(spool, server, [Encoded("image", b"data")]):
                outcomes.append(outcome)
        except SendError as error:
            said = f"{type(error).__name__}: {error}"
        assert len(spool.pending()) == 1
    assert {outcome.status for outcome in outcomes} == {"spooled"}
    said = said or str(outcomes[0].error)
    assert "secret" not in said
    return said


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("HTTPS://Host:443/prefix/", "https://host/prefix/v1/classify?top_k=5"),
        (" http://host\n", "http://host/v1/classify?top_k=5"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/classify?top_k=5"),
        ("https://bücher.example.", "https://xn--bcher-kva.example/v1/classify?top_k=5"),
        ("http://cloud_serve:8000", "http://cloud_serve:8000/v1/classify?top_k=5"),
    ],
)
def test_a_url_in_other_forms(url: str, endpoint: str) -> None:
    assert str(Server(url).endpoint()) == endpoint


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("cloud.example:8000", "'cloud.example:8000' is not a URL of http or https"),
        ("unix:///run/cloud.sock", "is not a URL of http or https"),
        ("http://ho st", "its host has a space"),
        ("http://host:0", "port 0 is not from 1 to 65535"),
        ("http://::1:8000", "'http://::1:8000' is not a URL"),
        ("http://a..b", "a part of its host is empty, or has more than 63 letters"),
        (f"http://{'a' * 70}", "a part of its host is empty, or has more than 63 letters"),
        ("http://.", "is not a URL of http or https"),
        ("me:secret@host:80", "the URL has a password"),
        ("https://me:sec/secret@host", "the URL has a password"),
        ("http://host/#part", "the URL has a password, a query or a fragment"),
    ],
)
def test_a_url_that_is_none_says_why(url: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ServerUrlError) as raised:
        Server(url).endpoint()
    assert why in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "exceptions", "passed_by"),
    [
        ("http://[::1]:8000", "[::1]", True),
        ("http://[::1]:8000", "localhost, ::1", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://[::1]:8000", "[::1]:9000", False),
        ("http://10.1.2.3", "10.0.0.0/8", True),
        ("http://10.1.2.3", "10.1.2", False),
        ("https://a.b.example", ".b.example", True),
        ("https://a.b.example", "*.b.example", True),
        ("https://a.b.example", "b.example:443", True),
        ("https://a.b.example", "https://a.b.example", True),
        ("https://ab.example", "b.example", False),
        ("https://a.example", "x *", True),
        ("https://a.example", "[, ]:, :80", False),
    ],
)
def test_what_passes_by_the_proxy(
    url: str, exceptions: str, passed_by: bool, environment: Environment
) -> None:
    environment(ALL_PROXY="http://proxy:3128", NO_PROXY=exceptions)
    assert (Server(url).proxy() is None) == passed_by


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ALL_PROXY",
            "socks4://me:secret@host",
            "ALL_PROXY is 'socks4://host', which is not a proxy's URL of http, https or socks5",
        ),
        (
            "http_proxy",
            "htp://host",
            "http_proxy is 'htp://host', which is not a proxy's URL of http, https or socks5",
        ),
        (
            "HTTP_PROXY",
            "http://",
            "HTTP_PROXY is 'http://', which is not a proxy's URL of http, https or socks5",
        ),
        ("HTTP_PROXY", "http://:3128", "HTTP_PROXY is 'http://:3128', which is not"),
        (
            "HTTP_PROXY",
            "http://host:99999",
            "HTTP_PROXY is 'http://host:99999', which is not a proxy's URL (port 99999 is not from",
        ),
        (
            "HTTP_PROXY",
            "http://me:secret@host:99999",
            "HTTP_PROXY is 'http://host:99999', which is not a proxy's URL: ",
        ),
        (
            "HTTP_PROXY",
            "me:se@c/secret@host:80",
            "HTTP_PROXY is 'host:80', with a password in which @, /, ? or # is not written as %40",
        ),
        (
            "HTTP_PROXY",
            "http://ho st",
            "HTTP_PROXY is 'http://ho st', which is not a proxy's URL (its host has a space",
        ),
    ],
)
def test_a_proxy_that_is_none_is_named_and_images_are_accepted(
    name: str, value: str, message: str, environment: Environment, tmp_path: Path
) -> None:
    environment(**{name: value})
    said = fault(Server("http://cloud.example"), tmp_path)
    assert said.startswith(f"ProxySettingError: {message}")
    assert (
        "set it to one like http://proxy.example:3128, unset it, or name cloud.example in NO_PROXY"
        in said
    )


def test_socks_without_its_package(environment: Environment, tmp_path: Path) -> None:
    environment(ALL_PROXY="socks5://me:secret@host:1080")
    with mock.patch("importlib.util.find_spec", return_value=None):
        said = fault(Server("http://cloud.example"), tmp_path)
    assert said.startswith(
        "ProxySettingError: ALL_PROXY is 'socks5://host:1080', and SOCKS needs a package"
    )
    with (
        mock.patch("importlib.util.find_spec"),
        mock.patch("httpx.AsyncClient", side_effect=ImportError("socksio")),
        pytest.raises(
            ProxySettingError,
            match=r"cannot use the proxy socks5://host:1080 \(ALL_PROXY\): pip install --upgrade",
        ),
    ):
        Server("http://cloud.example").client()


def test_posts_go_by_way_of_the_proxy(environment: Environment, tmp_path: Path) -> None:
    with FailingServer() as proxy, Spool(tmp_path) as spool:
        environment(HTTP_PROXY=proxy.url.replace("//", "//me:secret@"))
        (outcome,) = deliver(spool, Server("http://cloud.invalid"), [Encoded("image", b"data")])
    assert outcome.status == "delivered"
    assert proxy.posts[0]["path"] == "http://cloud.invalid/v1/classify?top_k=5"
    assert proxy.posts[0]["headers"]["Proxy-Authorization"].startswith("Basic ")


def test_a_token_by_way_of_a_proxy_is_not_hidden(environment: Environment) -> None:
    assert Server("http://localhost").hides_token()
    environment(HTTP_PROXY="http://proxy")
    assert not Server("http://localhost").hides_token()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_asks_for_a_password(
    scheme: str, environment: Environment, tmp_path: Path
) -> None:
    with FailingServer() as proxy:
        proxy.always = status(407, b"who are you?", Server="squid/6")
        environment(ALL_PROXY=proxy.url)
        said = fault(Server(f"{scheme}://cloud.invalid"), tmp_path)
        assert said.startswith("ServerSetupError")
        assert "407" in said
        assert (
            f"write a user and a password into the URL of the proxy {proxy.url} (ALL_PROXY), as in http://USER"
            in said
        )
        environment(ALL_PROXY=proxy.url.replace("//", "//me:secret@"))
        said = fault(Server(f"{scheme}://cloud.invalid"), tmp_path)
        assert (
            f"write the right user and password into the URL of the proxy {proxy.url} (ALL_PROXY)"
            in said
        )


@pytest.mark.parametrize(("code", "kind"), [(403, "ServerSetupError"), (502, "ServerAwayError")])
def test_a_proxy_that_makes_no_tunnel(
    code: int, kind: str, environment: Environment, tmp_path: Path
) -> None:
    with FailingServer() as proxy:
        proxy.always = status(code)
        environment(HTTPS_PROXY=proxy.url)
        said = fault(Server("https://cloud.invalid", attempts=2), tmp_path)
    assert said.startswith(kind)
    assert f"the proxy {proxy.url} (HTTPS_PROXY) answers '{code} " in said


def test_a_proxy_that_is_not_there(environment: Environment, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment(HTTPS_PROXY=f"http://me:secret@127.0.0.1:{port}")
    said = fault(Server("https://cloud.invalid", attempts=1), tmp_path)
    assert (
        f"no connection to the proxy http://127.0.0.1:{port} (HTTPS_PROXY): Connection refused"
        in said
    )
    environment(HTTPS_PROXY="http://nowhere.invalid:3128")
    with mock.patch(
        "socket.getaddrinfo",
        side_effect=socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    ):
        said = fault(Server("https://cloud.example", attempts=1), tmp_path)
    assert (
        "no address of 'nowhere.invalid' of the proxy http://nowhere.invalid:3128 (HTTPS_PROXY) is found: Name or service"
        in said
    )


def test_a_server_behind_a_proxy_names_both(environment: Environment, tmp_path: Path) -> None:
    with FailingServer() as proxy:
        proxy.always = status(503, b"<h1>no route</h1>", Server="squid/6")
        environment(HTTP_PROXY=proxy.url)
        said = fault(Server("http://cloud.invalid", attempts=1), tmp_path)
    assert (
        "no result from http://cloud.invalid/v1/classify?top_k=5: HTTP 503 (squid/6 says 'no route') (by way of the proxy "
        in said
    )
    assert f"{proxy.url} (HTTP_PROXY)" in said


def test_a_name_that_the_dns_does_not_know(environment: Environment, tmp_path: Path) -> None:
    error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    with mock.patch("socket.getaddrinfo", side_effect=error):
        said = fault(Server("http://cloud.example", attempts=1), tmp_path)
    assert said.startswith(
        "ServerAwayError: no result from http://cloud.example/v1/classify?top_k=5: "
    )
    assert (
        "no address of 'cloud.example' is found: Temporary failure in name resolution; what is in the spool waits"
        in said
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ConnectTimeout(""), "no connection to cloud.example:80 within 2 seconds"),
        (httpx.ReadTimeout(""), "no answer within 4 seconds"),
        (
            httpx.RemoteProtocolError("illegal status line: bytearray(b'\\x15\\x03\\x01')"),
            "speaks TLS: write https:// in --url",
        ),
        (
            httpx.RemoteProtocolError("Server disconnected without"),
            "cloud.example:80 hung up without an answer, as a port of TLS does",
        ),
        (
            httpx.RemoteProtocolError("illegal header line"),
            "RemoteProtocolError: illegal header line",
        ),
    ],
)
def test_what_no_answer_means(error: Exception, message: str, environment: Environment) -> None:
    assert message in explain(error, Server("http://cloud.example", timeout=4), None).message


def test_networks_that_are_not_there() -> None:
    for number, text in ((101, "Network is unreachable"), (113, "No route to host")):
        error = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = ExceptionGroup(
            "", [OSError(number, "Connect call failed"), OSError(number, "Connect call failed")]
        )
        assert (
            explain(error, Server("https://host"), None).message
            == f"no connection to host:443: {text}"
        )


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "stop", "asks for a client's certificate"),
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
    answer = explain(error, Server("https://host"), None)
    assert answer.kind == kind
    assert message in answer.message


@pytest.fixture(scope="session")
def certify(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a key and a certificate of it, signed by itself, in one file."""

    def make(
        name: str = "localhost", begin: str = "20200101000000Z", end: str = "21200101000000Z"
    ) -> Path:
        folder = tmp_path_factory.mktemp("tls")
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca=c\n[c]\nnew_certs_dir=.\ndatabase=index.txt\nserial=serial\ndefault_md=sha256\npolicy=p\n"
            f"x509_extensions=e\n[p]\ncommonName=supplied\n[e]\nsubjectAltName=DNS:{name}\nbasicConstraints=CA:TRUE\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01")
        request = (
            f"openssl req -newkey rsa:2048 -nodes -subj /CN={name} -keyout key.pem -out request"
        )
        sign = "openssl ca -batch -selfsign -notext -config ca.cnf -keyfile key.pem -in request -out crt.pem"
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
        said = fault(Server(server.url), tmp_path)
        assert said.startswith(
            "ServerSetupError: the certificate of localhost is not trusted (self"
        )
        assert "name its issuer's with --ca-file" in said
        assert server.posts == []
        with Spool(tmp_path / "spool") as spool:
            (outcome,) = deliver(spool, Server(server.url, ca_file=str(certificate)))
        assert outcome.status == "delivered"
    (tmp_path / "none.pem").write_bytes(b"no certificate")
    for path in (tmp_path / "none.pem", tmp_path / "missing.pem", tmp_path):
        with pytest.raises(CertificateFileError, match="holds no certificates that can be read"):
            Server("https://host", ca_file=str(path)).trust()


def test_certificates_of_the_environment_that_are_not_there(
    certificate: Path, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/missing/certificates.pem")
    with FailingServer(certificate=certificate) as server:
        said = fault(Server(server.url), tmp_path)
    assert "--ca-file; SSL_CERT_FILE is '/missing/certificates.pem', which cannot be read" in said


def test_a_file_for_tls_keys_that_cannot_be_written(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "keys"))
    said = fault(Server("https://cloud.example"), tmp_path)
    assert said.startswith("CertificateFileError: TLS cannot be set up")
    assert f"SSLKEYLOGFILE is {str(tmp_path / 'missing' / 'keys')!r}: unset it" in said
    with FailingServer() as server, Spool(tmp_path / "spool") as spool:
        (outcome,) = deliver(spool, Server(server.url))
    assert outcome.status == "delivered", "without TLS it does not matter"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"end": "20200102000000Z"},
            "the certificate of localhost has expired: renew it there, or set this device's clock, which says 20",
        ),
        (
            {"begin": "21190101000000Z"},
            "the certificate of localhost is not valid yet: set this device's clock, which says 20",
        ),
        (
            {"name": "other.example"},
            "the certificate of localhost is another host's (Hostname mismatch",
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
        said = fault(Server(server.url, ca_file=str(certificate)), tmp_path)
    assert said.startswith(f"ServerSetupError: {message}")
    assert "--ca-file" not in said


def test_a_server_that_wants_a_clients_certificate(
    certificate: Path, environment: Environment, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = (
        ssl.TLSVersion.TLSv1_2
    )  # in which a client is told before it sends anything
    server = FailingServer()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with server:
        said = fault(
            Server(server.url.replace("http:", "https:"), ca_file=str(certificate)), tmp_path
        )
    assert said.startswith("ServerSetupError")
    assert "it asks for a client's certificate" in said


def test_tls_to_a_port_without(environment: Environment, tmp_path: Path) -> None:
    with FailingServer() as server:
        said = fault(Server(server.url.replace("http:", "https:")), tmp_path)
    assert said.startswith("ServerSetupError: localhost speaks no TLS on that port")
    assert "write http:// in --url" in said


def test_no_tls_to_a_port_with(certificate: Path, environment: Environment, tmp_path: Path) -> None:
    """Python's server hangs up; nginx answers 400, with words that test_sender has."""
    with FailingServer(certificate=certificate) as server:
        said = fault(Server(server.url.replace("https:", "http:"), attempts=1), tmp_path)
    assert "write https:// in --url" in said
