"""The tokens that requests must carry, where a service has a token file.

Always holds: only hashes of tokens are kept; no message contains any part of a token; how long a
comparison takes says nothing about any token.
"""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from ..errors import TokenFileError

_MIN_CHARACTERS = 16


def read_tokens(path: str | Path) -> list[bytes]:
    """The SHA-256 of each token in a file that has one token per line.

    Raises TokenFileError. It names the number of a bad line, never its text, which is a secret.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise TokenFileError(f"{path} is not ASCII text: write one token per line") from None
    except OSError as error:
        raise TokenFileError(
            f"{path} cannot be read ({error.strerror}): "
            "name the file that holds the tokens with --token-file"
        ) from None
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        token = line.strip()
        if not token:
            continue
        if fault := _fault(token):
            raise TokenFileError(f"{path}, line {number}, {fault}")
        tokens.append(_digest(token))
    if not tokens:
        raise TokenFileError(f"{path} holds no token: make one with `openssl rand -hex 32`")
    return tokens


def is_known(tokens: Sequence[bytes], token: str) -> bool:
    """Whether `tokens`, which `read_tokens` gave, has this one."""
    digest = _digest(token)
    # Compare with every token, so that the time does not depend on which one matches.
    return any([hmac.compare_digest(digest, known) for known in tokens])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("latin-1", "replace")).digest()


def _fault(token: str) -> str | None:
    """What is wrong with a line, without its text."""
    if token.startswith("#"):
        return "begins with #: comments are not supported, remove the line"
    if not token.isascii() or not token.isprintable() or " " in token:
        return (
            "has characters other than ASCII letters, digits and signs: "
            "write one token per line, and nothing else"
        )
    if len(token) < _MIN_CHARACTERS:
        return (
            f"has {len(token)} characters, and a token needs at least {_MIN_CHARACTERS}: "
            "make one with `openssl rand -hex 32`"
        )
    return None
