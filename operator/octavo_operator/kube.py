"""A thin asynchronous client of the API server: objects are plain dicts, errors are typed.

`kubernetes.aio` finds the server and the credentials (kubeconfig or service account, exec plugins
and token refresh included); requests are plain aiohttp, since the operator needs few verbs on
few kinds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration

from octavo_operator import names

Object = dict[str, Any]

_PLURALS = {
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "Node"): "nodes",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaims",
    ("v1", "Pod"): "pods",
    ("v1", "Secret"): "secrets",
    ("v1", "Service"): "services",
    ("apiregistration.k8s.io/v1", "APIService"): "apiservices",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "clusterroles",
    ("authorization.k8s.io/v1", "SubjectAccessReview"): "subjectaccessreviews",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "horizontalpodautoscalers",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("policy/v1", "PodDisruptionBudget"): "poddisruptionbudgets",
    ("apps/v1", "Deployment"): "deployments",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): "httproutes",
    ("inference.networking.k8s.io/v1", "InferencePool"): "inferencepools",
    (names.API_VERSION, names.KIND): names.PLURAL,
}

_TIMEOUT = aiohttp.ClientTimeout(total=30)
_WATCH_SECONDS = 30
"""Of one watch; the next goes on where it was. Once, after a CRD had been deleted and made again, a
watch stayed open on which a deletion never came.
"""
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SECONDS + 30)
_LINE_BYTES = 2 << 20  # one object of a watch; etcd takes 1.5 MiB

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5
MOST_WAIT_SECONDS = 10.0

_AWAY = frozenset({502, 503, 504})
"""Not 500: that is also the answer to an apply whose patch fits no type, and stays it."""

_REPEATABLE = frozenset({"DELETE", "GET", "PATCH"})
"""What the server may have done all the same, and may do twice: ours are applies and merges."""


class KubeError(Exception):
    """The API server refused or failed; `code` is the HTTP status, `reason` its machine word."""

    def __init__(
        self, code: int, reason: str, message: str, retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(message or f"the API server answered {code}")
        self.code = code
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class KubeUnreachable(Exception):
    """No answer: no connection, or none in time."""


class NoCluster(Exception):
    """Neither a kubeconfig nor a service account says where the API server is."""


async def load_configuration() -> Configuration:
    """$KUBECONFIG if set, else the pod's service account, else ~/.kube/config; or NoCluster."""
    configuration = Configuration()
    try:
        if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
            kube_config.load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration
            )
        else:
            files = _config_files()
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=files, client_configuration=configuration
            )
    except (kube_config.ConfigException, OSError) as error:
        raise NoCluster(f"cannot find the cluster: {error}") from error
    return configuration


def _config_files() -> str:
    """$KUBECONFIG's files, or the default one; NoCluster if there is none of them."""
    files = os.environ.get("KUBECONFIG", str(Path.home() / ".kube" / "config"))
    if not any(Path(file).is_file() for file in files.split(os.pathsep)):
        hint = "" if "KUBECONFIG" in os.environ else ", and $KUBECONFIG is not set"
        raise NoCluster(f"cannot find the cluster: there is no file {files}{hint}")
    return files


def path_of(
    api_version: str, kind: str, namespace: str | None, name: str | None = None, sub: str = ""
) -> str:
    """The URL path of an object, a collection (`name` None), or all namespaces (both None)."""
    prefix = "/apis/" if "/" in api_version else "/api/"
    parts = [prefix + api_version]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts.append(_PLURALS[api_version, kind])
    if name is not None:
        parts.append(quote(name, safe=""))
    return "/".join(parts) + (f"/{sub}" if sub else "")


def crd_name(api_version: str, kind: str) -> str:
    """Of the CustomResourceDefinition that brings a kind."""
    return f"{_PLURALS[api_version, kind]}.{api_version.partition('/')[0]}"


class Kube:
    """One session; use it as an asynchronous context manager."""

    def __init__(
        self,
        configuration: Configuration,
        saw_request: Callable[[str, int], None] = lambda method, code: None,
    ) -> None:
        """`saw_request` hears of each answer: method and HTTP status, 0 for none."""
        self._configuration = configuration
        self._saw_request = saw_request
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Kube:
        connector = aiohttp.TCPConnector(ssl=_ssl_context(self._configuration), limit=32)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(
        self, api_version: str, kind: str, namespace: str | None, name: str
    ) -> Object | None:
        """The object, or None if there is none; `namespace` None: of a kind that has none."""
        try:
            return await self._request("GET", path_of(api_version, kind, namespace, name))
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    async def serves(self, api_version: str, kind: str) -> bool:
        """Whether the cluster has this kind; every account may ask that."""
        try:
            found = await self._request("GET", f"/apis/{api_version}")
        except KubeError as error:
            if error.code == 404:
                return False
            raise
        return any(each.get("kind") == kind for each in found.get("resources") or ())

    async def snapshot(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> tuple[list[Object], str]:
        """All objects, and the version from which a watch tells what became of them."""
        query = {
            "limit": "500",
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        items: list[Object] = []
        while True:
            page = await self._request("GET", path_of(api_version, kind, namespace), query)
            items += page.get("items") or []
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                return items, page["metadata"].get("resourceVersion") or ""

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> list[Object]:
        """All objects, in pages of 500."""
        found, _ = await self.snapshot(api_version, kind, namespace, label_selector, field_selector)
        return found

    async def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        label_selector: str,
        resource_version: str = "",
    ) -> AsyncIterator[tuple[str, Object]]:
        """(ADDED, MODIFIED, DELETED or BOOKMARK; object), until the server ends it; first OPEN with
        an empty object: what happens from then on is told.

        Without `resource_version` first all that are there, else what came after. KubeError 410
        where that is too long ago.
        """
        query = {
            "watch": "true",
            "labelSelector": label_selector,
            "resourceVersion": resource_version,
            "timeoutSeconds": str(_WATCH_SECONDS),
            "allowWatchBookmarks": "true",
        }
        url = self._configuration.host.rstrip("/") + path_of(api_version, kind, namespace)
        # A connection of its own: those of the passes are counted.
        connector = aiohttp.TCPConnector(ssl=_ssl_context(self._configuration))
        session = aiohttp.ClientSession(
            connector=connector, timeout=_WATCH_TIMEOUT, read_bufsize=_LINE_BYTES
        )
        try:
            async with (
                session,
                session.get(
                    url,
                    params={key: value for key, value in query.items() if value},
                    headers=await self._headers(),
                    proxy=self._configuration.proxy or None,
                    server_hostname=self._configuration.tls_server_name or None,
                ) as response,
            ):
                if response.status >= 400:
                    raise _error(response, await _read(response))
                yield "OPEN", {}
                async for line in response.content:
                    event = json.loads(line)
                    found = event["object"]
                    if event["type"] == "ERROR":
                        raise KubeError(
                            found.get("code", 500),
                            found.get("reason", ""),
                            found.get("message", ""),
                        )
                    yield event["type"], found
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            problem = str(error) or type(error).__name__
            raise KubeUnreachable(f"the API server does not answer: {problem}") from error

    async def apply(self, manifest: Object) -> Object:
        """Server-side apply by the field manager octavo; it takes fields over from others."""
        metadata = manifest["metadata"]
        path = path_of(
            manifest["apiVersion"], manifest["kind"], metadata["namespace"], metadata["name"]
        )
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        # JSON is YAML.
        return await self._request("PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def change(self, live: Object, operations: Sequence[Object]) -> Object:
        """A JSON patch; KubeError 422 if one of its tests fails."""
        metadata = live["metadata"]
        path = path_of(live["apiVersion"], live["kind"], metadata["namespace"], metadata["name"])
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._request("PATCH", path, query, operations, "application/json-patch+json")

    async def patch_status(self, live: Object, change: Mapping[str, Any]) -> Object:
        """A merge patch of `live`'s status; KubeError 409 if that object was replaced meanwhile."""
        metadata = live["metadata"]
        path = path_of(
            live["apiVersion"], live["kind"], metadata["namespace"], metadata["name"], "status"
        )
        body = {"metadata": {"uid": metadata["uid"]}, "status": change}
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._request("PATCH", path, query, body, "application/merge-patch+json")

    async def scale(self, live: Object, replicas: int) -> Object:
        """spec.replicas through /scale; KubeError 409 if the object is not as `live` any more."""
        metadata = live["metadata"]
        path = path_of(
            live["apiVersion"], live["kind"], metadata["namespace"], metadata["name"], "scale"
        )
        body = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "spec": {"replicas": replicas},
        }
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._request("PATCH", path, query, body, "application/merge-patch+json")

    async def annotate_pod(self, pod: Object, annotations: Mapping[str, str]) -> Object:
        """KubeError 404 or 409 if that pod is gone."""
        metadata = pod["metadata"]
        path = path_of("v1", "Pod", metadata["namespace"], metadata["name"])
        body = {"metadata": {"uid": metadata["uid"], "annotations": annotations}}
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._request("PATCH", path, query, body, "application/merge-patch+json")

    async def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """`dry_run`: it is judged, and not made."""
        namespace = manifest["metadata"].get("namespace")
        path = path_of(manifest["apiVersion"], manifest["kind"], namespace)
        query = {"fieldManager": names.FIELD_MANAGER, **({"dryRun": "All"} if dry_run else {})}
        return await self._request("POST", path, query, manifest, "application/json")

    async def replace(self, manifest: Object) -> Object:
        """PUT; KubeError 409 if the resourceVersion in it is no longer the object's."""
        metadata = manifest["metadata"]
        path = path_of(
            manifest["apiVersion"], manifest["kind"], metadata.get("namespace"), metadata["name"]
        )
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._request("PUT", path, query, manifest, "application/json")

    async def delete(self, live: Object) -> None:
        """Just that object, in the background; one that is gone is no error, KubeError 409 if
        another of its name is there.
        """
        metadata = live["metadata"]
        namespace, name = metadata.get("namespace"), metadata["name"]
        path = path_of(live["apiVersion"], live["kind"], namespace, name)
        body = {
            "preconditions": {"uid": metadata["uid"]},
            "propagationPolicy": "Background",
        }
        try:
            await self._request("DELETE", path, None, body)
        except KubeError as error:
            if error.code != 404:
                raise

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Object:
        """Asked again a few times where the server is only too busy, so that a pass need not begin
        anew.
        """
        for attempt in itertools.count(1):
            try:
                return await self._request_once(method, path, query, body, content_type)
            except KubeError as error:
                busy = error.code == 429 or (error.code in _AWAY and method in _REPEATABLE)
                if not busy or attempt == ATTEMPTS:
                    raise
                wait = error.retry_after_seconds or FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            # Not all who were sent away come back at once.
            await asyncio.sleep(min(wait, MOST_WAIT_SECONDS) * random.uniform(1, 1.5))
        raise AssertionError("not reached")

    async def _request_once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str
    ) -> Object:
        assert self._session is not None, "use `async with Kube(...)`"
        headers = {**await self._headers(), "Content-Type": content_type}
        configuration = self._configuration
        try:
            async with self._session.request(
                method,
                configuration.host.rstrip("/") + path,
                params={key: value for key, value in (query or {}).items() if value},
                json=body,
                headers=headers,
                proxy=configuration.proxy or None,
                server_hostname=configuration.tls_server_name or None,
            ) as response:
                answer = await _read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            problem = str(error) or type(error).__name__
            self._saw_request(method, 0)
            raise KubeUnreachable(f"the API server does not answer: {problem}") from error
        self._saw_request(method, response.status)
        if response.status >= 400:
            raise _error(response, answer)
        return answer

    async def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        configuration = self._configuration
        if token := await configuration.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = _bearer(token)
        elif configuration.username and (basic := configuration.get_basic_auth_token()):
            headers["Authorization"] = basic
        return headers


def _error(response: aiohttp.ClientResponse, answer: Object) -> KubeError:
    after = response.headers.get("Retry-After", "")
    return KubeError(
        response.status,
        answer.get("reason", ""),
        answer.get("message", ""),
        float(after) if after.isdecimal() else 0.0,
    )


async def _read(response: aiohttp.ClientResponse) -> Object:
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    return {"message": (await response.text())[:500]}


def _bearer(token: str) -> str:
    """The configuration may or may not hold the scheme's word, in any case."""
    scheme, _, rest = token.strip().partition(" ")
    return f"Bearer {rest}" if scheme.lower() == "bearer" and rest else f"Bearer {token.strip()}"


def _ssl_context(configuration: Configuration) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https"):
        return False
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    return context
