"""The tokens of a service: who is refused, and what a token file may hold."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from service_app import TOKEN, assert_refused

from runtime import errors
from runtime.service.core import Service
from runtime.service.settings import Settings
from runtime.service.tokens import read_tokens


def test_requests_without_a_known_token_are_refused(
    serve: Callable[..., None], feature_bytes: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n\nanother-token-of-one-line\n")

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        async def status(
            token: str | None, path: str = "/v1/classify", content: bytes | None = feature_bytes
        ) -> int:
            headers = {} if token is None else {"Authorization": token.encode("latin-1")}
            response = await client.request(
                "POST" if content else "GET", path, content=content, headers=headers
            )
            if response.status_code == 401:
                assert_refused(response, 401, "unauthorized", "Bearer TOKEN")
                assert response.headers["www-authenticate"] == "Bearer"
            return response.status_code

        assert (
            await status(f"Bearer {TOKEN}")
            == await status("bearer another-token-of-one-line")
            == 200
        )
        for wrong in (
            None,
            "",
            TOKEN,
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            "Bearer ",
            f"Bearer {TOKEN[:-1]}",
            "Bearer \xe9",
        ):
            assert await status(wrong) == 401, wrong
        for path in ("/metrics", "/v2", "/v2/models", "/v2/models/ours_n4", "/nowhere"):
            assert await status(None, path, None) == 401, path
        for path in ("/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"):
            assert await status(None, path, None) == 200, path
        file.write_text("a-third-token-instead\n")
        assert await service.reload()
        assert await status(f"Bearer {TOKEN}") == 401
        assert await status("Bearer a-third-token-instead") == 200
        file.write_text("weak\n")
        assert not await service.reload()
        assert await status("Bearer a-third-token-instead") == 200

    serve(work, token_file=file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no token"),
        (b"\n \n", "holds no token"),
        (b"short", "line 1, has 5 characters"),
        (f"{TOKEN}\nshort".encode(), "line 2, has 5 characters"),
        (f"{TOKEN} with blanks".encode(), "line 1, has characters other than"),
        (f"{TOKEN}\twith a tab".encode(), "line 1, has characters other than"),
        ("Schlüssel-Schlüssel-Schlüssel".encode(), "line 1, has characters other than"),
        (
            f"\n# the devices in Bern\n{TOKEN}\n".encode(),
            "line 2, begins with #: comments are not supported",
        ),
        (b"#-------------------\n", "line 1, begins with #"),
        (TOKEN.encode("utf-16"), "is not ASCII text"),
        (None, "cannot be read"),
    ],
)
def test_a_token_file_with_any_bad_line_is_refused(
    bundle: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "tokens").write_bytes(content)
    with pytest.raises(errors.TokenFileError, match=reason) as refused:
        Service(Settings(bundles=(bundle,), token_file=tmp_path / "tokens")).load()
    assert TOKEN not in str(refused.value)


def test_blank_lines_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(
        f"\ufeff{TOKEN}  \r\n\r\nanother-token-of-one-line\r\n".encode()
    )
    (tmp_path / "plain").write_text(f"{TOKEN}\nanother-token-of-one-line")
    assert read_tokens(tmp_path / "tokens") == read_tokens(tmp_path / "plain")
