"""What the answer to a post means, or the lack of an answer: for the file, and for the server.

Always holds: only the codes of cloud-serve decide about a file for good. After any other answer, of
a proxy, a captive portal or a firewall, the file stays where it is, and the message quotes the
answer: its status, the server's name, and its first words.
"""

import email.utils
import os
import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from .. import errors
from ..codec import strict_json
from ..refusals import INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, STATUS, code_of
from ..tasks.registry import find_answers
from .route import Endpoint, Proxy, httpx, unreadable_trust_settings

_MAX_TEXT = 500  # characters of a label or a message that are kept
_MAX_QUOTED = 160  # characters that are quoted of an answer that is not of cloud-serve
# Every code of cloud-serve, and its status.
_CODES = {code_of(kind): status for kind, status in STATUS.items()} | {
    NOT_FOUND: 404,
    METHOD_NOT_ALLOWED: 405,
    INTERNAL: 500,
}
# The codes that refuse a file. All others are about the request or the server's state. edge-send
# writes no malformed, compressed or batch request, so those codes mean that something on the way
# changed the request.
_OF_THE_FILE = {
    code_of(kind)
    for kind in (
        errors.EmptyFeatureFileError,
        errors.NotAFeatureFileError,
        errors.UnsupportedVersionError,
        errors.DamagedFeatureFileError,
        errors.TruncatedFeatureFileError,
        errors.TrailingBytesError,
        errors.TooManySymbolsError,
        errors.BodyTooLargeError,
        errors.UnknownModelError,
    )
}
_EMPTY = code_of(errors.EmptyFeatureFileError)
_BUSY = {408, 425, 429}  # and all from 501 up
_STOPS = {401, 404, 405, 407}  # every other file would get the same answer; so after a redirect
_CHECK_TOKEN = "give the right token with --token-file"
_CHECK_URL = "give the address of a cloud-serve with --url"
_REMEDIES = {
    401: _CHECK_TOKEN,
    403: _CHECK_TOKEN,
    404: _CHECK_URL,
    405: _CHECK_URL,
    413: "a proxy in front of cloud-serve refuses a body of this size: "
    "raise its limit (nginx: client_max_body_size)",
}
_OTHER_REMEDY = (
    "this answer is not from cloud-serve: "
    "check the address in --url, and any proxy in front of cloud-serve"
)
# What servers answer to plain HTTP on a TLS port, and to a client without a certificate.
_WANTS_TLS = re.compile(
    "plain HTTP|HTTP request to an HTTPS|speaking HTTP to an HTTPS", re.IGNORECASE
)
_WANTS_CERTIFICATE = re.compile(
    "SSL certificate was sent|SSL certificate error|client certificate", re.IGNORECASE
)


class Answer(NamedTuple):
    """What one post resulted in.

    Attributes:
        kind: "delivered" and "refused" are results of the file. After "failed", which may be the
            file's fault, and after "busy", which is not, the post may succeed later. "foreign" is
            an answer that is not of cloud-serve, perhaps to this file alone. After "stop" no post
            can succeed.
        message: why, for a person; empty if the file was delivered.
        details: what is recorded with a result.
        wait: seconds that the server asks to wait.
    """

    kind: Literal["delivered", "refused", "failed", "busy", "foreign", "stop"]
    message: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    wait: float = 0.0


def judge(response: httpx.Response, body: bytes, data: bytes, endpoint: Endpoint) -> Answer:
    """What the answer to a post of `data` means; `body` is the answer's body."""
    status, content = response.status_code, _object(body)
    if status == 200:
        if found := find_answers(content, endpoint.top_k):
            task, answers = found
            return Answer("delivered", details={"http": status, task.ANSWERS: _shown(answers)})
        quoted = _quoted(response, body[:4096].decode(errors="replace"))
        return Answer("failed", f"the answer is not from cloud-serve{quoted}")
    code = content.get("code")
    if not isinstance(code, str) or _CODES.get(code) != status:
        return _foreign(response, body, endpoint)
    message = printable(str(content.get("error")))
    said = f"HTTP {status}, {code}: {message}"
    if status in _BUSY or status >= 500:
        return Answer("failed" if status == 500 else "busy", said, wait=_wait(response))
    if code in _OF_THE_FILE and not (code == _EMPTY and data):
        return Answer("refused", said, {"http": status, "code": code, "message": message})
    if status in _STOPS:
        remedy = _REMEDIES[status]
    else:
        remedy = "the request was changed on the way: let the proxy pass it on unchanged"
    return Answer("stop", f"{said}: {remedy}")


def _foreign(response: httpx.Response, body: bytes, endpoint: Endpoint) -> Answer:
    """What an answer means that is not of cloud-serve."""
    status, start = response.status_code, body[:4096].decode(errors="replace")
    said, quoted = f"HTTP {status}", _quoted(response, start)
    if status in _BUSY or status >= 500:
        return Answer("failed" if status == 500 else "busy", said + quoted, wait=_wait(response))
    stops = response.is_redirect or status in _STOPS
    remedy = _REMEDIES.get(status, _OTHER_REMEDY)
    if response.is_redirect:
        said += f" to {response.headers.get('Location', '')[:200]!r}, which is not followed"
        remedy = _CHECK_URL
    elif status == 407:
        remedy = _password(endpoint.proxy())
    elif _WANTS_TLS.search(start):
        remedy = "this port speaks TLS: write https:// in --url"
    elif _WANTS_CERTIFICATE.search(start):
        remedy = (
            "the server asks for a client certificate, which edge-send does not have: "
            "use an address that asks for a token"
        )
    return Answer("stop" if stops else "foreign", f"{said}: {remedy}{quoted}")


def explain(error: Exception, endpoint: Endpoint, proxy: Proxy | None) -> Answer:
    """What it means that a post failed with `error` and has no answer."""
    url = endpoint.post_url()
    there = (
        str(proxy) if proxy else f"{url.host}:{url.port or {'http': 80, 'https': 443}[url.scheme]}"
    )
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return _tls(cause, url, proxy)
    if isinstance(error, httpx.ProxyError):
        return _proxy_says(str(error), proxy)
    if isinstance(error, httpx.ConnectTimeout):
        return Answer("busy", f"no connection to {there} within {endpoint.timeout / 2:g} seconds")
    if isinstance(error, httpx.ConnectError):
        return Answer("busy", _not_connected(error, causes, there, url, proxy))
    if isinstance(error, httpx.TimeoutException):
        return Answer("failed", f"no answer within {endpoint.timeout:g} seconds")
    # The bytes with which a TLS alert begins.
    if url.scheme == "http" and r"line: bytearray(b'\x15\x03" in str(error):
        return Answer("stop", f"{there} speaks TLS: write https:// in --url")
    if isinstance(error, httpx.NetworkError) or "disconnected" in str(error):
        remedy = "; if it is a TLS port, write https:// in --url" if url.scheme == "http" else ""
        return Answer("failed", f"{there} closed the connection without an answer{remedy}")
    return Answer("failed", f"{type(error).__name__}: {printable(str(error))}")


def printable(text: str) -> str:
    """A text from the network, shortened, with "?" for characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_TEXT])


def _not_connected(
    error: Exception, causes: list[BaseException], there: str, url: httpx.URL, proxy: Proxy | None
) -> str:
    """Why there is no connection to `there`."""
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            host = f"{proxy.url.host!r}, the host of {proxy}" if proxy else repr(url.host)
            return f"cannot resolve {host}: {cause.strerror}"
    # By the numbers, because asyncio replaces the system's texts.
    why = [
        os.strerror(cause.errno) for cause in causes if isinstance(cause, OSError) and cause.errno
    ]
    return f"no connection to {there}: {', '.join(dict.fromkeys(why)) or error}"


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds; empty if it holds none."""
    try:
        content = strict_json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _quoted(response: httpx.Response, start: str) -> str:
    """The server's name and the first words of an answer, without the tags of HTML."""
    text = re.sub(
        r"<(style|script)\b.*?(</\1>|$)|<[^>]*>", " ", start, flags=re.DOTALL | re.IGNORECASE
    )
    words = printable(" ".join(text.split()))[:_MAX_QUOTED]
    who = printable(response.headers.get("Server", ""))[:60]
    return f" ({who or 'it'} says {words!r})" if words else f" (from {who})" if who else ""


def _password(proxy: Proxy | None) -> str:
    given = proxy and proxy.url.userinfo
    what = "the right user and password" if given else "a user and a password"
    return (
        f"write {what} into the URL of {proxy or 'the proxy'}, "
        "as in http://USER:PASSWORD@proxy.example:3128"
    )


def _proxy_says(text: str, proxy: Proxy | None) -> Answer:
    """What it means that a proxy made no connection; `text` begins with its status."""
    status = int(match[1]) if (match := re.match(r"(\d{3})\b", text)) else 0
    said = f"{proxy} answers {printable(text)!r}"
    if status == 407:
        return Answer("stop", f"{said}: {_password(proxy)}")
    if 300 <= status < 500 and status not in _BUSY:
        return Answer(
            "stop", f"{said}: allow it to connect to the server, or list the server in NO_PROXY"
        )
    return Answer("busy", said)


# OpenSSL's numbers for what is wrong with a certificate (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED = {9}, {10}
_WRONG_NAME = {62, 64}
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
# Parts of OpenSSL's names for the reasons why a handshake failed.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")
_CERTIFICATE_WANTED = ("CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE", "ALERT_BAD_CERTIFICATE")
_NO_COMMON_VERSION = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS")


def _tls(error: ssl.SSLError, url: httpx.URL, proxy: Proxy | None) -> Answer:
    """What an error of TLS means. With a proxy that speaks TLS it may be either end's."""
    peer = f"{url.host} or {proxy}" if proxy and proxy.url.scheme == "https" else url.host
    if isinstance(error, ssl.SSLCertVerificationError):
        return Answer("stop", _bad_certificate(error, peer))
    reason = (getattr(error, "reason", None) or str(error)).upper()
    if any(part in reason for part in _NO_TLS):
        text = (
            f"{peer} speaks no TLS on that port ({reason}): "
            "write http:// in --url, or the port that speaks TLS"
        )
    elif any(part in reason for part in _CERTIFICATE_WANTED):
        text = (
            f"{peer} ended the TLS handshake ({reason}): it asks for a client certificate, which "
            "edge-send does not have, or for other ciphers; use an address that asks for a token"
        )
    elif any(part in reason for part in _NO_COMMON_VERSION):
        text = (
            f"{peer} and this device have no TLS version in common ({reason}): "
            "allow TLS 1.2 or later on both"
        )
    else:
        return Answer("busy", f"TLS with {peer} failed: {reason}")
    return Answer("stop", text)


def _bad_certificate(error: ssl.SSLCertVerificationError, peer: str) -> str:
    number, said = error.verify_code, error.verify_message
    clock = f"this device's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if number in _EXPIRED:
        return f"the certificate of {peer} has expired: renew it on the server, or set {clock}"
    if number in _NOT_YET_VALID:
        return f"the certificate of {peer} is not valid yet: set {clock}, or wait"
    if number in _WRONG_NAME:
        return (
            f"the certificate of {peer} is for another host ({said}): "
            "write one of its names in --url"
        )
    if number in _UNKNOWN_ISSUER:
        remark = f"; {remark}" if (remark := unreadable_trust_settings()) else ""
        return (
            f"the certificate of {peer} is not trusted ({said}): "
            f"name its issuer's certificate with --ca-file{remark}"
        )
    return f"the certificate of {peer} is refused ({said}): install another one on the server"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and all errors that led to it."""
    seen, waiting = set(), [error]
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        more = [
            found.__cause__,
            found.__context__,
            *(found.exceptions if isinstance(found, BaseExceptionGroup) else ()),
        ]
        waiting += [cause for cause in more if cause is not None]


def _shown(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same answers, with texts that may be printed."""
    return [
        {name: printable(value) if isinstance(value, str) else value for name, value in one.items()}
        for one in answers
    ]


def _wait(response: httpx.Response) -> float:
    return retry_after(response.headers.get("Retry-After", ""))


def retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 if it is neither."""
    if text.isdecimal():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
