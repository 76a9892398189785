"""What a test run that died leaves on the host is gone after the next one's start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.images import ROOT
from tests.cluster.session import sweep

# A session that makes everything the sweep must find, then loses its process at once.
DYING = """
import asyncio, json, os, signal, subprocess, sys
from tests.cluster.network import PodNetwork
from tests.cluster.session import Session
session = Session()
pod = asyncio.run(PodNetwork(session).add())
command = ["ip", "netns", "exec", pod.namespace, "sleep", "300"]
inside = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(json.dumps([session.bridge, pod.namespace, str(session.folder), inside.pid]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("cluster")
def test_leftovers_of_a_killed_run_are_swept(cluster: Cluster) -> None:
    died = subprocess.run([sys.executable, "-c", DYING], cwd=ROOT, capture_output=True, text=True)
    bridge, namespace, folder, pid = json.loads(died.stdout)
    assert Path(f"/sys/class/net/{bridge}").exists()

    sweep()

    assert not Path(f"/sys/class/net/{bridge}").exists()
    assert not Path(f"/run/netns/{namespace}").exists()
    assert not Path(folder).exists()
    assert not Path(f"/proc/{pid}").exists() or _is_zombie(pid)
    assert Path(f"/sys/class/net/{cluster.session.bridge}").exists(), "a live session lost its own"


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
