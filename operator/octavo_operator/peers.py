"""What is wrong with the peers of spec.networkPolicy: the schema's CEL rules, repeated. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any


def peer_problems(peers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(path below `from`, a sentence) of each; the schema's types have been checked."""
    for index, peer in enumerate(peers):
        block = peer.get("ipBlock")
        selectors = {
            key: peer[key]
            for key in ("podSelector", "namespaceSelector")
            if peer.get(key) is not None
        }
        if block is None and not selectors:
            yield f"[{index}].podSelector", "a peer needs podSelector, namespaceSelector or ipBlock"
        if block is not None and selectors:
            problem = "a peer is an ipBlock or has selectors, not both; write two peers"
            yield f"[{index}].ipBlock", problem
        for key, selector in selectors.items():
            for at, each in enumerate(selector.get("matchExpressions") or ()):
                if (each["operator"] in ("In", "NotIn")) != bool(each.get("values")):
                    where = f"[{index}].{key}.matchExpressions[{at}].values"
                    yield where, "In and NotIn need values, Exists and DoesNotExist have none"
        if block is not None:
            if not _is_range(block["cidr"]):
                yield f"[{index}].ipBlock.cidr", _NO_RANGE
            for at, each in enumerate(block.get("except") or ()):
                if not _is_range(each):
                    yield f"[{index}].ipBlock.except[{at}]", _NO_RANGE


_NO_RANGE = "write a range of addresses such as 10.1.0.0/16"


def _is_range(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
