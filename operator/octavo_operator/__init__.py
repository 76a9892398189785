"""Octavo's operator: InferenceServices become Deployments and Services, their fate becomes status.

`spec` reads a manifest, `render` turns it into objects (both pure), `apply` and `observe` talk to
the cluster, `status` decides what to report (pure), `reconcile` is one pass over one object, and
`main` registers the events that ask for a pass. No torch here: the operator's image has none.
"""
