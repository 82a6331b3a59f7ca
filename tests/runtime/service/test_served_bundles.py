"""Several bundles in one service: which one answers, reloading, and conflicts between them."""

import asyncio
import base64
import shutil
from pathlib import Path

import httpx
import pytest
from service_app import assert_refused, hold, running, wait_for

from runtime import errors
from runtime.service.bundles import ServedBundles
from runtime.service.core import Service
from runtime.service.settings import Settings


def copy_bundle(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_several_bundles_and_variants(
    bundle: Path,
    random_bundle: Path,
    feature_bytes: bytes,
    random_feature_bytes: bytes,
    tmp_path: Path,
) -> None:
    """The fingerprint chooses the bundle; a variant answers only to its name."""
    variant = copy_bundle(bundle, tmp_path / "variant")

    async def work() -> None:
        settings = Settings(bundles=(bundle, random_bundle, variant), threads=1, deadline_ms=60_000)
        async with running(settings) as (client, _):
            for data, name in ((feature_bytes, "ours_n4"), (random_feature_bytes, "random")):
                assert (await client.post("/v1/classify", content=data)).json()["model"] == name
            listed = (await client.get("/v2/models")).json()["models"]
            assert [(model["name"], model["serves"]) for model in listed] == [
                ("ours_n4", True),
                ("random", True),
                ("variant", False),
            ]
            request = {
                "inputs": [
                    {
                        "name": "feature_file",
                        "datatype": "BYTES",
                        "shape": [1],
                        "data": [base64.b64encode(feature_bytes).decode()],
                    }
                ]
            }
            answer = (await client.post("/v2/models/variant/infer", json=request)).json()
            assert answer["model_name"] == "variant"
            assert answer["outputs"][0]["data"] == ["golf ball"]
            assert_refused(
                await client.post("/v2/models/random/infer", json=request), 400, "wrong_bundle"
            )
            assert [
                output["shape"]
                for output in (await client.get("/v2/models/random")).json()["outputs"]
            ][-1] == [-1, 10]

    asyncio.run(work())


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A folder of bundles, with the default one in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "ours_n4").symlink_to(bundle)
    return folder


def test_reloading_adds_and_drops_without_a_dropped_request(
    folder: Path,
    random_bundle: Path,
    random_feature_bytes: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        settings = Settings(bundles=(folder,), threads=1, deadline_ms=60_000)
        async with asyncio.timeout(120), running(settings) as (client, service):

            def post() -> asyncio.Future[httpx.Response]:
                return asyncio.ensure_future(
                    client.post("/v1/classify", content=random_feature_bytes)
                )

            kept = service.bundles.named("ours_n4")
            assert_refused(await post(), 404, "unknown_model")
            copy_bundle(random_bundle, folder / "random")
            assert await service.reload()
            assert service.bundles.named("ours_n4") is kept
            assert (await post()).json()["model"] == "random"
            # A request under way is answered by its bundle, though that is no longer served.
            entered, release = hold(monkeypatch)
            first = post()
            await wait_for(entered)
            second = post()
            while service.batcher.admitted < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            shutil.rmtree(folder / "random")
            assert await service.reload()
            assert list(service.bundles.by_name) == ["ours_n4"]
            release.set()
            models = [(await response).json()["model"] for response in (first, second)]
            assert models == ["random", "random"]
            assert_refused(await post(), 404, "unknown_model")

    asyncio.run(work())


def test_reloading_a_broken_bundle_changes_nothing(
    folder: Path, random_bundle: Path, feature_bytes: bytes
) -> None:
    async def work() -> None:
        settings = Settings(bundles=(folder,), threads=1, deadline_ms=60_000)
        async with asyncio.timeout(120), running(settings) as (client, service):
            copy_bundle(random_bundle, folder / "broken")
            (folder / "broken" / "cloud.onnx").write_bytes(b"x")
            assert not await service.reload()
            assert list(service.bundles.by_name) == ["ours_n4"]
            assert (await client.post("/v1/classify", content=feature_bytes)).status_code == 200

    asyncio.run(work())


def test_bundles_that_cannot_be_served_together_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = copy_bundle(bundle, tmp_path / bundle.name)
    with pytest.raises(errors.ServedBundlesError, match="both called ours_n4"):
        Service(Settings(bundles=(bundle, other))).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.BundleNotFoundError, match="nor in the folders in it"):
        Service(Settings(bundles=(tmp_path / "empty",))).load()
    with pytest.raises(errors.BundleNotFoundError):
        Service(Settings(bundles=(tmp_path / "nowhere",))).load()


def test_two_bundles_whose_fingerprints_begin_alike_are_refused(
    loaded: ServedBundles, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feature files carry 4 bytes of it, and so cannot tell them apart."""
    service = Service(Settings(bundles=(random_bundle,), threads=1))
    service.load()
    ours, other = loaded.named("ours_n4"), service.bundles.named("random")
    prefix = ours.decoder.bundle.fingerprint[:4]
    object.__setattr__(other.decoder.bundle.manifest, "fingerprint", prefix + bytes(28))
    with pytest.raises(errors.ServedBundlesError, match="cannot tell them apart"):
        ServedBundles([ours, other])
