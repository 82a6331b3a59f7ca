"""What an answer to a post, or the lack of one, says: of the file, of the server, or of what stands between.

Always holds: only cloud-serve's own codes decide about a file for good. Whatever else comes, of a proxy, a portal or a
firewall, keeps the file where it is, and is quoted: its status, who says it, and its first words.
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
from .route import Proxy, Server, httpx, untrusted_settings

_MAX_TEXT = 500  # letters of a label or a message that are kept
_MAX_WORDS = 160  # letters that are quoted of an answer that is not cloud-serve's
# Every code of cloud-serve's, and its status.
_CODES = {code_of(kind): status for kind, status in STATUS.items()} | {
    NOT_FOUND: 404,
    METHOD_NOT_ALLOWED: 405,
    INTERNAL: 500,
}
# Those that are about a file. All others are about the request or the moment; and as edge-send writes its requests, a
# malformed_request, unsupported_encoding or too_many_files is the doing of something on the way.
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
_AT_ONCE = {401, 404, 405, 407}  # after which no file would fare better; nor after a redirect
_NO_TOKEN, _NO_SERVICE = (
    "name the right token's file with --token-file",
    "name a cloud-serve's address with --url",
)
_REMEDIES = {
    401: _NO_TOKEN,
    403: _NO_TOKEN,
    404: _NO_SERVICE,
    405: _NO_SERVICE,
    413: "what stands before cloud-serve takes no body of this size: allow more there (nginx: client_max_body_size)",
}
_OTHER_REMEDY = (
    "that is not cloud-serve's word: name its address with --url, or mend what stands before it"
)
# What servers say to plain HTTP on a port of TLS, and where a client's certificate did not come.
_WANTS_TLS = re.compile(
    "plain HTTP|HTTP request to an HTTPS|speaking HTTP to an HTTPS", re.IGNORECASE
)
_WANTS_CERTIFICATE = re.compile(
    "SSL certificate was sent|SSL certificate error|client certificate", re.IGNORECASE
)


class Answer(NamedTuple):
    """What one post came to.

    "delivered" and "refused" are results. "failed" may be the file's fault, "busy" is not: both may pass. "strange" is not
    cloud-serve's answer and may be about this file alone; after "stop" no post can succeed.
    """

    kind: Literal["delivered", "refused", "failed", "busy", "strange", "stop"]
    message: str = ""
    details: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    wait: float = 0.0  # seconds, as the server asks


def judge(response: httpx.Response, body: bytes, data: bytes, server: Server) -> Answer:
    """What an answer to the post of `data` says."""
    status, content = response.status_code, _object(body)
    if status == 200:
        if classes := _classes(content.get("classes"), server.top_k):
            return Answer("delivered", details={"http": status, "classes": classes})
        return Answer(
            "failed",
            f"the answer is not one of cloud-serve's{_quoted(response, body[:4096].decode(errors='replace'))}",
        )
    code = content.get("code")
    if not isinstance(code, str) or _CODES.get(code) != status:
        return _foreign(response, body, server)
    message = printable(str(content.get("error")))
    said = f"HTTP {status}, {code}: {message}"
    if status in _BUSY or status >= 500:
        return Answer("failed" if status == 500 else "busy", said, wait=_wait(response))
    if code in _OF_THE_FILE and not (code == _EMPTY and data):
        return Answer("refused", said, {"http": status, "code": code, "message": message})
    remedy = (
        _REMEDIES[status]
        if status in _AT_ONCE
        else "the request was changed on its way: let the proxy pass it on as it is"
    )
    return Answer("stop", f"{said}: {remedy}")


def _foreign(response: httpx.Response, body: bytes, server: Server) -> Answer:
    """An answer that is not cloud-serve's."""
    status, start = response.status_code, body[:4096].decode(errors="replace")
    said, quoted = f"HTTP {status}", _quoted(response, start)
    if status in _BUSY or status >= 500:
        return Answer("failed" if status == 500 else "busy", said + quoted, wait=_wait(response))
    at_once, remedy = (
        response.is_redirect or status in _AT_ONCE,
        _REMEDIES.get(status, _OTHER_REMEDY),
    )
    if response.is_redirect:
        said += f" to {response.headers.get('Location', '')[:200]!r}, which is not followed"
        remedy = _NO_SERVICE
    elif status == 407:
        remedy = _password(server.proxy())
    elif _WANTS_TLS.search(start):
        remedy = "that port speaks TLS: write https:// in --url"
    elif _WANTS_CERTIFICATE.search(start):
        remedy = "the server asks for a client's certificate, and edge-send has none: use an address that asks for a token"
    return Answer("stop" if at_once else "strange", f"{said}: {remedy}{quoted}")


def explain(error: Exception, server: Server, proxy: Proxy | None) -> Answer:
    """What it means that a post had no answer."""
    url = server.endpoint()
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
        return Answer("busy", f"no connection to {there} within {server.timeout / 2:g} seconds")
    if isinstance(error, httpx.ConnectError):
        for cause in causes:
            if isinstance(cause, socket.gaierror):
                name = proxy.url.host if proxy else url.host
                whose = f" of {proxy}" if proxy else ""
                return Answer("busy", f"no address of {name!r}{whose} is found: {cause.strerror}")
        # asyncio gives the numbers texts of its own.
        why = [
            os.strerror(cause.errno)
            for cause in causes
            if isinstance(cause, OSError) and cause.errno
        ]
        return Answer("busy", f"no connection to {there}: {', '.join(dict.fromkeys(why)) or error}")
    if isinstance(error, httpx.TimeoutException):
        return Answer("failed", f"no answer within {server.timeout:g} seconds")
    if url.scheme == "http" and r"line: bytearray(b'\x15\x03" in str(
        error
    ):  # how a TLS alert begins
        return Answer("stop", f"{there} speaks TLS: write https:// in --url")
    if isinstance(error, httpx.NetworkError) or "disconnected" in str(error):
        tls = (
            ", as a port of TLS does: if it is one, write https:// in --url"
            if url.scheme == "http"
            else ""
        )
        return Answer("failed", f"{there} hung up without an answer{tls}")
    return Answer("failed", f"{type(error).__name__}: {printable(str(error))}")


def printable(text: str) -> str:
    """What may be written to a terminal, of a text that came over the network."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_TEXT])


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = strict_json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _quoted(response: httpx.Response, start: str) -> str:
    """Who says so, and the first words, without the tags of a page."""
    text = re.sub(
        r"<(style|script)\b.*?(</\1>|$)|<[^>]*>", " ", start, flags=re.DOTALL | re.IGNORECASE
    )
    words = printable(" ".join(text.split()))[:_MAX_WORDS]
    who = printable(response.headers.get("Server", ""))[:60]
    return f" ({who or 'it'} says {words!r})" if words else f" (from {who})" if who else ""


def _password(proxy: Proxy | None) -> str:
    what = (
        "the right user and password" if proxy and proxy.url.userinfo else "a user and a password"
    )
    return f"write {what} into the URL of {proxy or 'the proxy'}, as in http://USER:PASSWORD@proxy.example:3128"


def _proxy_says(text: str, proxy: Proxy | None) -> Answer:
    status = int(match[1]) if (match := re.match(r"(\d{3})\b", text)) else 0
    said = f"{proxy} answers {printable(text)!r}"
    if status == 407:
        return Answer("stop", f"{said}: {_password(proxy)}")
    if 300 <= status < 500 and status not in _BUSY:
        return Answer(
            "stop", f"{said}: let it connect to the server, or name the server in NO_PROXY"
        )
    return Answer("busy", said)


# OpenSSL's numbers of what is wrong with a certificate (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED = {9}, {10}
_WRONG_NAME = {62, 64}
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}


def _tls(error: ssl.SSLError, url: httpx.URL, proxy: Proxy | None) -> Answer:
    whose = f"{url.host}" + (f", or of {proxy}," if proxy and proxy.url.scheme == "https" else "")
    if isinstance(error, ssl.SSLCertVerificationError):
        number, said = error.verify_code, error.verify_message
        now = f"this device's clock, which says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        if number in _EXPIRED:
            text = f"the certificate of {whose} has expired: renew it there, or set {now}"
        elif number in _NOT_YET_VALID:
            text = f"the certificate of {whose} is not valid yet: set {now}, or wait"
        elif number in _WRONG_NAME:
            text = f"the certificate of {whose} is another host's ({said}): write one of its names in --url"
        elif number in _UNKNOWN_ISSUER:
            remark = f"; {remark}" if (remark := untrusted_settings()) else ""
            text = f"the certificate of {whose} is not trusted ({said}): name its issuer's with --ca-file{remark}"
        else:
            text = f"the certificate of {whose} is refused ({said}): another one is needed there"
        return Answer("stop", text)
    reason = (getattr(error, "reason", None) or str(error)).upper()
    if any(
        part in reason
        for part in (
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "RECORD_LAYER_FAILURE",
            "UNKNOWN_PROTOCOL",
        )
    ):
        return Answer(
            "stop",
            f"{whose} speaks no TLS on that port ({reason}): write http:// in --url, or the port that does",
        )
    if any(
        part in reason
        for part in ("CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE", "ALERT_BAD_CERTIFICATE")
    ):
        return Answer(
            "stop",
            f"{whose} ends TLS ({reason}): it asks for a client's certificate, which edge-send does not have, or for other ciphers; "
            "use an address that asks for a token",
        )
    if any(part in reason for part in ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS")):
        return Answer(
            "stop",
            f"{whose} speaks no version of TLS that this device does ({reason}): allow TLS 1.2 or later on both",
        )
    return Answer("busy", f"TLS with {whose} failed: {reason}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came of."""
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


def _classes(value: Any, top_k: int) -> list[dict[str, Any]] | None:
    """The classes of an answer, best first; None where they are not as cloud-serve writes them."""
    if not isinstance(value, list):
        return None
    classes = []
    for entry in value[:top_k]:
        if not isinstance(entry, dict):
            return None
        label, probability, index = (
            entry.get(name) for name in ("label", "probability", "class_index")
        )
        if not (
            isinstance(label, str)
            and isinstance(probability, (int, float))
            and 0 <= probability <= 1
            and isinstance(index, int)
        ):
            return None
        classes.append(
            {"label": printable(label), "probability": probability, "class_index": index}
        )
    return classes


def _wait(response: httpx.Response) -> float:
    return retry_after(response.headers.get("Retry-After", ""))


def retry_after(text: str) -> float:
    """Seconds of a Retry-After, which is a number or a date; 0 where it is neither."""
    if text.isdecimal():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
