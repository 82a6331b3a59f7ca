"""The server's URL and the proxies of the environment; each fault names its option or variable."""

import socket
from pathlib import Path
from unittest import mock

import pytest
from deliveries import Environment, fault
from failing_server import FailingServer, status

from runtime.delivery.sender import Encoded, Endpoint, deliver
from runtime.delivery.spool import Spool
from runtime.errors import ProxySettingError, ServerUrlError


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cloud.example",
        "ftp://cloud.example",
        "http://",
        "http://host:99999",
        "https://me:secret@host",
        "http://host/?a=b",
    ],
)
def test_a_wrong_url_says_what_to_do(url: str) -> None:
    with pytest.raises(
        ServerUrlError, match=r"(name one like https://cloud.example:8000|leave it out)"
    ):
        Endpoint(url).post_url()


def test_a_path_before_the_service_is_kept() -> None:
    assert (
        str(Endpoint("https://host:1234/prefix/").post_url())
        == "https://host:1234/prefix/v1/classify?top_k=5"
    )


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("https://far", True),
        ("http://far", False),
        ("http://localhost:80", True),
        ("http://127.0.0.1", True),
    ],
)
def test_who_can_read_the_token(url: str, hidden: bool) -> None:
    assert Endpoint(url).hides_token() == hidden


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
    assert str(Endpoint(url).post_url()) == endpoint


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("cloud.example:8000", "'cloud.example:8000' is not a URL of http or https"),
        ("unix:///run/cloud.sock", "is not a URL of http or https"),
        ("http://ho st", "its host has a space"),
        ("http://host:0", "port 0 is not from 1 to 65535"),
        ("http://::1:8000", "'http://::1:8000' is not a URL"),
        ("http://a..b", "a part of its host is empty, or has more than 63 characters"),
        (f"http://{'a' * 70}", "a part of its host is empty, or has more than 63 characters"),
        ("http://.", "is not a URL of http or https"),
        ("me:secret@host:80", "the URL has a password"),
        ("https://me:sec/secret@host", "the URL has a password"),
        ("http://host/#part", "the URL has a password, a query or a fragment"),
    ],
)
def test_a_wrong_url_says_why(url: str, why: str) -> None:
    with pytest.raises(ServerUrlError) as raised:
        Endpoint(url).post_url()
    assert why in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "exceptions", "bypassed"),
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
def test_what_bypasses_the_proxy(
    url: str, exceptions: str, bypassed: bool, environment: Environment
) -> None:
    environment(ALL_PROXY="http://proxy:3128", NO_PROXY=exceptions)
    assert (Endpoint(url).proxy() is None) == bypassed


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
def test_a_wrong_proxy_setting_is_named_and_images_are_accepted(
    name: str, value: str, message: str, environment: Environment, tmp_path: Path
) -> None:
    environment(**{name: value})
    said = fault(Endpoint("http://cloud.example"), tmp_path)
    assert said.startswith(f"ProxySettingError: {message}")
    assert (
        "set it to one like http://proxy.example:3128, unset it, or name cloud.example in NO_PROXY"
        in said
    )


def test_socks_without_its_package(environment: Environment, tmp_path: Path) -> None:
    environment(ALL_PROXY="socks5://me:secret@host:1080")
    with mock.patch("importlib.util.find_spec", return_value=None):
        said = fault(Endpoint("http://cloud.example"), tmp_path)
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
        Endpoint("http://cloud.example").client()


def test_posts_go_through_the_proxy(environment: Environment, tmp_path: Path) -> None:
    with FailingServer() as proxy, Spool(tmp_path) as spool:
        environment(HTTP_PROXY=proxy.url.replace("//", "//me:secret@"))
        (outcome,) = deliver(spool, Endpoint("http://cloud.invalid"), [Encoded("image", b"data")])
    assert outcome.status == "delivered"
    assert proxy.posts[0]["path"] == "http://cloud.invalid/v1/classify?top_k=5"
    assert proxy.posts[0]["headers"]["Proxy-Authorization"].startswith("Basic ")


def test_a_token_through_a_proxy_is_not_hidden(environment: Environment) -> None:
    assert Endpoint("http://localhost").hides_token()
    environment(HTTP_PROXY="http://proxy")
    assert not Endpoint("http://localhost").hides_token()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_asks_for_a_password(
    scheme: str, environment: Environment, tmp_path: Path
) -> None:
    with FailingServer() as proxy:
        proxy.always = status(407, b"who are you?", Server="squid/6")
        environment(ALL_PROXY=proxy.url)
        said = fault(Endpoint(f"{scheme}://cloud.invalid"), tmp_path)
        assert said.startswith("ServerSetupError")
        assert "407" in said
        assert (
            f"write a user and a password into the URL of the proxy {proxy.url} (ALL_PROXY), "
            "as in http://USER" in said
        )
        environment(ALL_PROXY=proxy.url.replace("//", "//me:secret@"))
        said = fault(Endpoint(f"{scheme}://cloud.invalid"), tmp_path)
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
        said = fault(Endpoint("https://cloud.invalid", attempts=2), tmp_path)
    assert said.startswith(kind)
    assert f"the proxy {proxy.url} (HTTPS_PROXY) answers '{code} " in said


def test_a_proxy_that_is_not_there(environment: Environment, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment(HTTPS_PROXY=f"http://me:secret@127.0.0.1:{port}")
    said = fault(Endpoint("https://cloud.invalid", attempts=1), tmp_path)
    assert (
        f"no connection to the proxy http://127.0.0.1:{port} (HTTPS_PROXY): Connection refused"
        in said
    )
    environment(HTTPS_PROXY="http://nowhere.invalid:3128")
    with mock.patch(
        "socket.getaddrinfo",
        side_effect=socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    ):
        said = fault(Endpoint("https://cloud.example", attempts=1), tmp_path)
    assert (
        "cannot resolve 'nowhere.invalid', the host of the proxy http://nowhere.invalid:3128 "
        "(HTTPS_PROXY): Name or service" in said
    )


def test_a_server_behind_a_proxy_names_both(environment: Environment, tmp_path: Path) -> None:
    with FailingServer() as proxy:
        proxy.always = status(503, b"<h1>no route</h1>", Server="squid/6")
        environment(HTTP_PROXY=proxy.url)
        said = fault(Endpoint("http://cloud.invalid", attempts=1), tmp_path)
    assert (
        "no result from http://cloud.invalid/v1/classify?top_k=5: "
        "HTTP 503 (squid/6 says 'no route') (through the proxy " in said
    )
    assert f"{proxy.url} (HTTP_PROXY)" in said


def test_a_name_that_the_dns_does_not_know(environment: Environment, tmp_path: Path) -> None:
    error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    with mock.patch("socket.getaddrinfo", side_effect=error):
        said = fault(Endpoint("http://cloud.example", attempts=1), tmp_path)
    assert said.startswith(
        "ServerAwayError: no result from http://cloud.example/v1/classify?top_k=5: "
    )
    assert (
        "cannot resolve 'cloud.example': Temporary failure in name resolution; "
        "what is in the spool waits" in said
    )
