// The release of SPIRE that the tests run, built from its own module so that it is
// SPIRE's choice of dependencies, checked against SPIRE's own go.sum.
module github.com/culvert-mesh/culvert/integration/spire

go 1.26.0

require github.com/spiffe/spire v1.13.3
