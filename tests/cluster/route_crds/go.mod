// Where the tests' CRDs of the Gateway API and its inference extension come from. Apart from assets/, whose
// sums name the folder of the built binaries: another CRD is no reason to build Kubernetes again.
module octavo.dev/tests/cluster/route-crds

go 1.26.0

require (
	sigs.k8s.io/gateway-api v1.6.0
	sigs.k8s.io/gateway-api-inference-extension v1.3.0
)
