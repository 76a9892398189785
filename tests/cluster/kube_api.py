"""A small client of the Kubernetes API: plain dicts, asyncio, and a synchronous face for tests."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

Object = dict[str, Any]
T = TypeVar("T")
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
WATCH_SECONDS = 300
LINE_LIMIT_BYTES = 8 << 20  # one object of a watch; etcd takes 1.5 MiB
PLURALS = {
    "Namespace": "namespaces", "Node": "nodes", "Pod": "pods", "Service": "services",
    "Secret": "secrets", "ConfigMap": "configmaps", "Event": "events",
    "PodDisruptionBudget": "poddisruptionbudgets", "NetworkPolicy": "networkpolicies",
    "ServiceAccount": "serviceaccounts", "Deployment": "deployments", "ReplicaSet": "replicasets",
    "EndpointSlice": "endpointslices", "Lease": "leases", "InferenceService": "inferenceservices",
    "ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "Role": "roles",
    "RoleBinding": "rolebindings", "CustomResourceDefinition": "customresourcedefinitions",
    "HTTPRoute": "httproutes", "InferencePool": "inferencepools",
    "APIService": "apiservices", "HorizontalPodAutoscaler": "horizontalpodautoscalers",
}  # fmt: skip


class ApiError(Exception):
    """The API server's answer to a refused request: code, reason and message of its Status."""

    def __init__(self, code: int, status: Object) -> None:
        self.code = code
        self.reason = str(status.get("reason", ""))
        self.status = status
        super().__init__(f"{code} {self.reason}: {status.get('message', '')}")


def path_of(
    api_version: str, kind: str, namespace: str | None = None, name: str | None = None
) -> str:
    """As `path_of("apps/v1", "Deployment", "a", "b")`: /apis/apps/v1/namespaces/a/deployments/b."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{PLURALS[kind]}" + (f"/{name}" if name else "")


def path_of_object(manifest: Object) -> str:
    meta = manifest["metadata"]
    return path_of(manifest["apiVersion"], manifest["kind"], meta.get("namespace"), meta["name"])


class KubeApi:
    """One connection pool for one user of a kubeconfig; made and used inside one event loop."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        headers = {"Accept": "application/json"}
        if "token" in user:
            headers["Authorization"] = f"Bearer {user['token']}"
        else:
            with tempfile.NamedTemporaryFile() as pair:  # ssl reads files only
                for field in ("client-certificate-data", "client-key-data"):
                    pair.write(base64.b64decode(user[field]))
                pair.flush()
                context.load_cert_chain(pair.name)
        self._session = aiohttp.ClientSession(
            cluster["server"],
            headers=headers,
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            timeout=aiohttp.ClientTimeout(total=30),
        )

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """The decoded answer. Raises ApiError for 4xx and 5xx."""
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} if data is not None else None
        async with self._session.request(
            method, path, data=data, params=params, headers=headers
        ) as response:
            text = await response.text()
            if response.status >= 400:
                raise ApiError(response.status, _status(text))
            answer: Object = json.loads(text)
            return answer

    async def get(self, path: str, **params: str) -> Object:
        return await self.request("GET", path, params=params)

    async def find(self, path: str) -> Object | None:
        """The object, or None if there is none."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def list(self, path: str, **params: str) -> list[Object]:
        answer: list[Object] = (await self.get(path, **params))["items"]
        return answer

    async def create(self, path: str, body: Object) -> Object:
        """`path` is the collection's, or a subresource's (token, eviction, binding)."""
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: Object, content_type: str = MERGE) -> Object:
        return await self.request("PATCH", path, body, content_type=content_type)

    async def apply(
        self, manifest: Object, field_manager: str = "test", *, force: bool = True
    ) -> Object:
        """Server-side apply; unforced it raises ApiError 409 for another manager's fields."""
        return await self.request(
            "PATCH",
            path_of_object(manifest),
            manifest,
            params={"fieldManager": field_manager, "force": str(force).lower()},
            content_type=APPLY,
        )

    async def delete(self, path: str, **options: Any) -> Object | None:
        """With DeleteOptions; None if it was not there."""
        try:
            return await self.request("DELETE", path, options or None)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def watch(self, path: str, **params: str) -> AsyncIterator[tuple[str, Object]]:
        """Endless (ADDED | MODIFIED | DELETED, object): first what is there, then each change.

        A lost connection or an expired version lists anew and tells only the difference.
        """
        known: dict[str, Object] = {}
        while True:
            try:
                answer = await self.get(path, **params)
                present = {item["metadata"]["uid"]: item for item in answer["items"]}
                for uid in known.keys() - present.keys():
                    yield "DELETED", known.pop(uid)
                for uid, item in present.items():
                    old = known.get(uid)
                    known[uid] = item
                    if old is None:
                        yield "ADDED", item
                    elif old["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                        yield "MODIFIED", item
                version = answer["metadata"]["resourceVersion"]
                async for event in self.watch_from(path, params, version):
                    item = event["object"]
                    if event["type"] == "ERROR":
                        break
                    if event["type"] == "DELETED":
                        known.pop(item["metadata"]["uid"], None)
                    else:
                        known[item["metadata"]["uid"]] = item
                    yield event["type"], item
            except (aiohttp.ClientError, TimeoutError, ApiError):
                await asyncio.sleep(0.2)

    async def watch_from(
        self, path: str, params: dict[str, str], version: str
    ) -> AsyncIterator[Object]:
        query = {
            **params,
            "watch": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        forever = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(
            path, params=query, timeout=forever, read_bufsize=LINE_LIMIT_BYTES
        ) as response:
            if response.status >= 400:
                raise ApiError(response.status, _status(await response.text()))
            async for line in response.content:
                yield json.loads(line)


class Client:
    """KubeApi for synchronous tests: runs it in the event loop of another thread."""

    def __init__(self, kubeconfig: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._api = self._run(_make(kubeconfig))

    def get(self, path: str, **params: str) -> Object:
        return self._run(self._api.get(path, **params))

    def find(self, path: str) -> Object | None:
        return self._run(self._api.find(path))

    def list(self, path: str, **params: str) -> list[Object]:
        return self._run(self._api.list(path, **params))

    def create(self, path: str, body: Object) -> Object:
        return self._run(self._api.create(path, body))

    def patch(self, path: str, body: Object, content_type: str = MERGE) -> Object:
        return self._run(self._api.patch(path, body, content_type))

    def apply(self, manifest: Object, field_manager: str = "test", *, force: bool = True) -> Object:
        return self._run(self._api.apply(manifest, field_manager, force=force))

    def delete(self, path: str, **options: Any) -> Object | None:
        return self._run(self._api.delete(path, **options))

    def close(self) -> None:
        self._run(self._api.close())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


async def _make(kubeconfig: Path) -> KubeApi:
    return KubeApi(kubeconfig)


def _status(text: str) -> Object:
    try:
        status: Object = json.loads(text)
        return status
    except ValueError:
        return {"message": text}
