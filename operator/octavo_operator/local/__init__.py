"""Pods as local processes: the pod runner of `octavo up` and of the node agent in tests.

No cluster and no Kubernetes client is imported here; pods are plain dicts in manifest form.
"""
