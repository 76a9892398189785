"""The API over TLS, as the API server's front proxy asks it, and as others do."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.cluster.certificates import Authority
from tests.operator.metrics_api.loads import load
from tests.operator.metrics_api.test_access import Reviews
from tests.operator.metrics_api.test_fleet import pod
from tests.operator.metrics_api.test_front_proxy import DATA
from tests.operator.services import manifest

from octavo_operator.metrics_api.authority import Issued, renew
from octavo_operator.metrics_api.figures import FIGURES
from octavo_operator.metrics_api.fleet import Fleet
from octavo_operator.metrics_api.front_proxy import FrontProxy, read_front_proxy
from octavo_operator.metrics_api.server import Server
from octavo_operator.metrics_api.tls import Tls

HOST = "octavo-metrics-api.octavo-system.svc"
ROOT = "/apis/custom.metrics.k8s.io"
TINY = f"{ROOT}/v1beta2/namespaces/ns/inferenceservices.octavo.dev/tiny"
PODS = f"{ROOT}/v1beta2/namespaces/ns/pods"
USER = {"X-Remote-User": "jane"}


class Running:
    """A server with the service tiny of ns, and clients of it."""

    def __init__(self, folder: Path) -> None:
        self.fleet, self.reviews, self.tls, self.listed = Fleet(), Reviews("*"), Tls(), True
        self.server = Server(self.fleet, self.reviews.access(), lambda: self.listed)
        self.front = Authority(folder, "front-proxy-ca")
        self.folder, self.port = folder, 0
        self.issued = issue()
        self.use(self.issued, self.front)
        self.fleet.saw_service({**manifest(), "status": {}})

    def use(self, issued: Issued, front: Authority) -> None:
        self.issued = issued
        self.tls.use(issued, front.certificate_path.read_text())
        self.server.proxy = proxy_of(front)

    def pod(self, name: str, seconds_ago: float | None = 0.0, **figures: Any) -> None:
        now = time.monotonic()
        self.fleet.saw_pod(pod(name), now - 100)
        found = self.fleet.pod(("ns", name))
        assert found is not None
        if seconds_ago is not None:
            found.track.heard(load(**figures), now - seconds_ago)

    async def ask(
        self,
        path: str,
        *,
        front: Authority | None = None,
        name: str | None = "front-proxy-client",
        method: str = "GET",
        headers: dict[str, str] = USER,
        host: str = HOST,
    ) -> tuple[int, dict[str, Any]]:
        """On a connection of its own; `name` None: without a certificate."""
        context = ssl.create_default_context(cadata=self.issued.authorities.decode())
        if name is not None:
            context.load_cert_chain(
                *(front or self.front).issue(f"client-{name}", common_name=name)
            )
        async with aiohttp.ClientSession() as session:
            async with session.request(
                method,
                f"https://127.0.0.1:{self.port}{path}",
                ssl=context,
                server_hostname=host,
                headers=headers,
            ) as response:
                assert "Retry-After" not in response.headers
                assert response.content_type == "application/json"
                found: dict[str, Any] = {}
                if method != "HEAD":
                    found = await response.json()
                if response.status != 200:
                    assert (found["kind"], found["code"]) == ("Status", response.status)
                return response.status, found


def issue() -> Issued:
    return renew({}, [HOST], datetime.now(UTC))[0]


def proxy_of(front: Authority) -> FrontProxy:
    authority = front.certificate_path.read_text()
    return read_front_proxy({"data": {**DATA, "requestheader-client-ca-file": authority}})


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    runner = web.AppRunner(made.server.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=made.tls.context)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


async def test_discovery(running: Running) -> None:
    running.listed = False  # it needs no pods
    _, groups = await running.ask("/apis")
    (group,) = groups["groups"]
    assert group["preferredVersion"]["version"] == "v1beta2"
    _, found = await running.ask(ROOT)
    assert (found["kind"], found["versions"]) == ("APIGroup", group["versions"])
    for version in ("v1beta1", "v1beta2"):
        _, found = await running.ask(f"{ROOT}/{version}")
        assert found["groupVersion"] == f"custom.metrics.k8s.io/{version}"
        assert {each["name"] for each in found["resources"]} == {
            f"{resource}/{metric}"
            for resource in ("inferenceservices.octavo.dev", "pods")
            for metric in FIGURES
        }
    assert not running.reviews.asked


async def test_a_services_value(running: Running) -> None:
    running.pod("tiny-1-a", 2.0, waiting=3, running=4)
    running.pod("tiny-1-b", 5.0, waiting=1)
    code, found = await running.ask(f"{TINY}/octavo_queue_depth")
    assert (code, found["kind"]) == (200, "MetricValueList")
    assert found["apiVersion"] == "custom.metrics.k8s.io/v1beta2"
    (item,) = found["items"]
    assert item["describedObject"] == {
        "kind": "InferenceService", "namespace": "ns", "name": "tiny",
        "apiVersion": "octavo.dev/v1alpha1",
    }  # fmt: skip
    assert (item["value"], item["metric"]["name"]) == ("4", "octavo_queue_depth")
    at = datetime.fromisoformat(item["timestamp"])
    assert 4 <= (datetime.now(UTC) - at).total_seconds() <= 8
    _, found = await running.ask(f"{TINY}/octavo_demand".replace("v1beta2", "v1beta1"))
    (item,) = found["items"]
    assert (item["value"], item["metricName"]) == ("8", "octavo_demand") and "metric" not in item


async def test_services_by_selector(running: Running) -> None:
    running.fleet.saw_service(
        {**manifest("other"), "metadata": {**manifest("other")["metadata"], "labels": {"a": "1"}}}
    )
    every = TINY.replace("/tiny", "/*") + "/octavo_running"

    async def names_at(query: str) -> list[str]:
        code, found = await running.ask(every + query)
        assert code == 200
        return [each["describedObject"]["name"] for each in found["items"]]

    assert await names_at("") == ["other", "tiny"]
    assert await names_at("?labelSelector=a%3D1") == ["other"]
    assert await names_at("?labelSelector=!a") == ["tiny"]
    assert await names_at("?metricLabelSelector=a") == []
    code, told = await running.ask(f"{every}?labelSelector=a%3E1")
    assert (code, told["reason"]) == (400, "BadRequest")


async def test_pods(running: Running) -> None:
    running.pod("tiny-1-a", 1.0, running=4, kv_cache_usage=0.5)
    running.pod("tiny-1-b", 40.0, running=4)
    _, found = await running.ask(
        f"{PODS}/*/octavo_kv_cache_usage?labelSelector=octavo.dev/service%3Dtiny"
    )
    (item,) = found["items"]  # the other's is too old: autoscalers know that it is there
    assert (item["describedObject"]["name"], item["value"]) == ("tiny-1-a", "500m")
    assert item["describedObject"]["apiVersion"] == "v1"
    _, found = await running.ask(f"{PODS}/tiny-1-a/octavo_running")
    assert found["items"][0]["value"] == "4"
    code, told = await running.ask(f"{PODS}/tiny-1-b/octavo_running")
    assert (code, told["message"]) == (
        503,
        "octavo_running of ns/tiny-1-b: no sample for 40 s",
    )
    _, found = await running.ask(f"{PODS}/*/octavo_running?labelSelector=octavo.dev/service%3Dno")
    assert found["items"] == []


async def test_unknown_is_an_error_in_words(running: Running) -> None:
    running.pod("tiny-1-a", 37.0)
    running.pod("tiny-1-b", 50.0)
    code, told = await running.ask(f"{TINY}/octavo_queue_depth")
    assert (code, told["reason"]) == (503, "ServiceUnavailable")
    assert told["message"] == (
        "octavo_queue_depth of ns/tiny: no sample for 37 s (2 of 2 pods failed)"
    )
    running.listed = False
    code, told = await running.ask(f"{TINY}/octavo_queue_depth")
    assert code == 503 and "just begun" in told["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/openapi/v2",
        "/apis/other.group",
        f"{ROOT}/v1beta3",
        f"{ROOT}/v1beta2/namespaces/ns/inferenceservices.octavo.dev/no/octavo_running",
        f"{TINY}/octavo_walking",
        f"{ROOT}/v1beta2/namespaces/ns/services/tiny/octavo_running",
        f"{ROOT}/v1beta2/namespaces/ns/metrics/octavo_running",
        f"{ROOT}/v1beta2/namespaces//pods/a/octavo_running",
        f"{ROOT}/v1beta2/namespaces/ns/pods/..%2Fa/octavo_running",
        f"{PODS}/nobody/octavo_running",
    ],
)
async def test_what_is_not_there(running: Running, path: str) -> None:
    code, told = await running.ask(path)
    assert (code, told["reason"]) == (404, "NotFound")


async def test_nothing_can_be_written(running: Running) -> None:
    code, told = await running.ask(f"{TINY}/octavo_running", method="DELETE")
    assert (code, told["reason"]) == (405, "MethodNotAllowed")


async def test_only_the_front_proxy_may_ask(running: Running) -> None:
    for name in (None, "somebody"):
        code, told = await running.ask(ROOT, name=name)
        assert (code, told["reason"]) == (401, "Unauthorized")
    code, told = await running.ask(ROOT, headers={})
    assert code == 401 and "no user" in told["message"]
    stranger = Authority(running.folder, "stranger")
    with pytest.raises(aiohttp.ClientError):
        await running.ask(ROOT, front=stranger)
    running.server.proxy = None
    assert (await running.ask(ROOT))[0] == 401


async def test_only_who_may_read_is_told(running: Running) -> None:
    running.reviews.allowed = ()
    code, told = await running.ask(f"{TINY}/octavo_running")
    assert (code, told["reason"]) == (403, "Forbidden") and '"jane"' in told["message"]


async def test_certificates_change_while_it_runs(running: Running) -> None:
    assert (await running.ask(ROOT))[0] == 200
    before, former = running.front, running.issued
    front = Authority(running.folder, "next-front-proxy-ca")
    running.use(issue(), front)
    assert (await running.ask(ROOT, front=front))[0] == 200
    with pytest.raises(aiohttp.ClientError):  # a CA that is not trusted any more
        await running.ask(ROOT, front=before)
    running.issued = former
    with pytest.raises(aiohttp.ClientError):  # a certificate that is not served any more
        await running.ask(ROOT, front=front)


async def test_a_client_that_names_no_host(running: Running) -> None:
    context = ssl.create_default_context(cadata=running.issued.authorities.decode())
    context.check_hostname = False
    context.load_cert_chain(*running.front.issue("c", common_name="front-proxy-client"))
    async with aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{running.port}{ROOT}"
        async with session.get(url, ssl=context, headers=USER) as response:
            assert response.status == 200


async def test_a_certificate_that_is_none_leaves_the_former(running: Running) -> None:
    broken = Issued({**running.issued.data, "tls.crt": b"what?"})
    with pytest.raises((ssl.SSLError, ValueError)):
        running.tls.use(broken, running.front.certificate_path.read_text())
    assert (await running.ask(ROOT))[0] == 200


async def test_a_defect_is_no_traceback(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.fleet, "tracks", lambda _: 1 / 0)
    code, told = await running.ask(f"{TINY}/octavo_running")
    assert (code, told["reason"]) == (500, "InternalError") and "division" not in told["message"]
