// Where the tests' CRDs of others come from: the Gateway API, its inference extension, the monitoring operator.
// Apart from assets/, whose sums name the folder of the built binaries: another CRD is no reason to build
// Kubernetes again.
module octavo.dev/tests/cluster/crd-modules

go 1.26.0

require (
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.0
	sigs.k8s.io/gateway-api-inference-extension v1.3.0
)
