"""How to reach a cloud-serve: its URL, the proxy in front of it, and the certificates to trust.

The proxy settings of the environment are read here, and httpx is given the result: httpx would fail
on a variable that it does not understand, and could not say which proxy, or which variable, caused
a failure.

Always holds: what cannot work is refused before anything is posted, in a message that names the
option or the variable. No message contains a password.
"""

import importlib.util
import ipaddress
import os
import re
import ssl
import urllib.request
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import CertificateFileError, MissingExtraError, ProxySettingError, ServerUrlError

try:
    import httpx
except ImportError as error:
    raise MissingExtraError(
        f"edge-send needs httpx ({error}): pip install 'edgecloud-features[send]'"
    ) from error

_EXAMPLE = "name one like https://cloud.example:8000"


class Proxy(NamedTuple):
    """A proxy, and the environment variable that names it. str() leaves its password out."""

    url: httpx.URL
    variable: str

    def __str__(self) -> str:
        return f"the proxy {self.url.scheme}://{self.url.netloc.decode()} ({self.variable})"

    def for_httpx(self, trust: ssl.SSLContext) -> httpx.Proxy:
        """As httpx takes it; `trust` is used if the proxy itself speaks TLS."""
        return httpx.Proxy(self.url, ssl_context=trust if self.url.scheme == "https" else None)


@dataclass(frozen=True)
class Endpoint:
    """Where to post feature files, and how.

    Args:
        url: of a cloud-serve, http or https; a path before /v1 is kept.
        token: sent as `Authorization: Bearer`.
        ca_file: certificates to trust instead of the system's.
        timeout: seconds for one post, from the connection to the answer's last byte.
        attempts: failures of a file, or failures of the server in a row, after which the rest is
            left for another run.
        in_flight: posts at a time, each on a connection that is kept open.
        top_k: classes to ask for.
    """

    url: str
    token: str | None = None
    ca_file: str | None = None
    timeout: float = 30.0
    attempts: int = 6
    in_flight: int = 4
    top_k: int = 5

    def post_url(self) -> httpx.URL:
        """The URL that is posted to. Raises ServerUrlError."""
        secret = (
            "the URL has a password, a query or a fragment: "
            "leave it out, and pass a token with --token-file"
        )
        shown = repr(self.url)
        if "@" in str(self.url):
            raise ServerUrlError(secret)
        try:
            url = _parse(self.url.strip())
        except (ValueError, AttributeError) as error:
            raise ServerUrlError(f"{shown} is not a URL ({error}): {_EXAMPLE}") from error
        if url.scheme not in ("http", "https") or not url.host.strip("."):
            raise ServerUrlError(f"{shown} is not a URL of http or https: {_EXAMPLE}")
        if url.userinfo or url.query or url.fragment:
            raise ServerUrlError(secret)
        # A DNS name may end in a dot, but the names in a certificate do not.
        path = f"{url.path.rstrip('/')}/v1/classify"
        return url.copy_with(host=url.host.rstrip("."), path=path, params={"top_k": self.top_k})

    def proxy(self) -> Proxy | None:
        """The proxy to use, by the environment's variables, or by the settings of some systems.

        Raises ServerUrlError, ProxySettingError.
        """
        url, settings = self.post_url(), urllib.request.getproxies()
        if _bypasses_proxy(url, settings.get("no", "")):
            return None
        for scheme in (url.scheme, "all"):
            if value := settings.get(scheme, "").strip():
                return _proxy(value, _variable(f"{scheme}_proxy"), url.host)
        return None

    def hides_token(self) -> bool:
        """Whether nobody between here and the server can read the token."""
        url = self.post_url()
        here = url.host in ("localhost", "::1") or url.host.startswith("127.")
        return url.scheme == "https" or (here and self.proxy() is None)

    def trust(self) -> ssl.SSLContext:
        """The TLS settings, with the certificates to trust. Raises CertificateFileError."""
        if self.ca_file is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca_file)
            except OSError as error:
                raise CertificateFileError(
                    f"{self.ca_file} holds no certificates that can be read: {error}"
                ) from error
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            variable = "SSLKEYLOGFILE" if os.environ.get("SSLKEYLOGFILE") else "OPENSSL_CONF"
            raise CertificateFileError(
                f"TLS cannot be set up ({error}), {variable} is {os.environ.get(variable)!r}: "
                "unset it, or name a file that can be used"
            ) from error

    def client(self) -> httpx.AsyncClient:
        """An HTTP client for this endpoint.

        Raises ServerUrlError, ProxySettingError, CertificateFileError.
        """
        url, proxy = self.post_url(), self.proxy()
        if self.ca_file or "https" in (url.scheme, proxy and proxy.url.scheme):
            trust = self.trust()
        else:
            # A context that trusts nobody: without TLS no file of certificates is read.
            trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # so that an answer's size can be limited
        }
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            return httpx.AsyncClient(
                headers=headers,
                verify=trust,
                trust_env=False,
                proxy=proxy and proxy.for_httpx(trust),
                follow_redirects=False,
                timeout=httpx.Timeout(self.timeout, connect=self.timeout / 2),
                limits=httpx.Limits(
                    max_connections=self.in_flight,
                    max_keepalive_connections=self.in_flight,
                    keepalive_expiry=60,
                ),
            )
        except (ValueError, ImportError) as error:  # an old httpx, or one without SOCKS
            raise ProxySettingError(
                f"this httpx, {httpx.__version__}, cannot use {proxy}: "
                "pip install --upgrade 'httpx[socks]', or unset the variable"
            ) from error


def without_password(text: str) -> str:
    """A URL, or a text that should be one, without user name and password."""
    return re.sub(r"^(\s*[\w.+-]*:?//)?.*@", r"\1", text, flags=re.DOTALL)


def unreadable_trust_settings() -> str:
    """A remark on variables that replace the system's certificates and name no readable file.

    Empty if there are none.
    """
    bad = [
        f"{name} is {value!r}, which cannot be read"
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")
        if (value := os.environ.get(name))
        and not any(os.access(part, os.R_OK) for part in value.split(os.pathsep))
    ]
    return "; ".join(bad)


def _parse(text: str) -> httpx.URL:
    """Raises ValueError, also for a host or port that would fail only when connecting."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    if "%" in url.host and ":" not in url.host:
        raise ValueError("its host has a space, or another character that no host has")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise ValueError(f"port {url.port} is not from 1 to 65535")
    if ":" not in url.host:
        try:
            url.raw_host.rstrip(b".").decode().encode("idna")
        except UnicodeError as error:
            raise ValueError(
                "a part of its host is empty, or has more than 63 characters"
            ) from error
    return url


def _variable(name: str) -> str:
    """An environment variable as it is spelled in this environment.

    urllib accepts any mixture of upper and lower case, and prefers lower case.
    """
    spelled = sorted((found for found in os.environ if found.lower() == name), reverse=True)
    return spelled[0] if spelled else "in the system's settings"


def _proxy(value: str, variable: str, host: str) -> Proxy:
    """Raises ProxySettingError."""
    said = f"{variable} is {without_password(value)!r}"
    remedy = f"set it to one like http://proxy.example:3128, unset it, or name {host} in NO_PROXY"
    try:
        url = _parse(value if "://" in value else f"http://{value}")
    except ValueError as error:
        why = "" if "@" in value else f" ({error})"  # the error may quote a password
        raise ProxySettingError(f"{said}, which is not a proxy's URL{why}: {remedy}") from error
    if url.scheme not in ("http", "https", "socks5", "socks5h") or not url.host:
        raise ProxySettingError(
            f"{said}, which is not a proxy's URL of http, https or socks5: {remedy}"
        )
    if "@" in url.path or "@" in url.query.decode() or "@" in (url.fragment or ""):
        raise ProxySettingError(
            f"{said}, with a password in which @, /, ? or # "
            f"is not written as %40, %2F, %3F or %23: {remedy}"
        )
    if url.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ProxySettingError(
            f"{said}, and SOCKS needs a package that is not installed: "
            f"pip install 'httpx[socks]', or {remedy}"
        )
    return Proxy(url, variable)


def _bypasses_proxy(url: httpx.URL, exceptions: str) -> bool:
    """Whether NO_PROXY matches a URL.

    An entry is a host, a domain above it, a network or "*"; each may have a port.
    """
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    for entry in re.split(r"[\s,]+", exceptions.lower()):
        name = entry.rpartition("://")[2]
        if match := re.fullmatch(r"(\[[^]]*\]|[^:]*):(\d+)", name):
            name = match[1] if int(match[2]) == port else ""
        name = name.strip("[]").removeprefix("*.").strip(".")
        if name and (
            name == "*" or f".{url.host}".endswith(f".{name}") or _in_network(url.host, name)
        ):
            return True
    return False


def _in_network(host: str, name: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
