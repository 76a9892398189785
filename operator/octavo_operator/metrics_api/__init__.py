"""`octavo metrics-api`: custom.metrics.k8s.io, answered from what pods say of themselves."""
