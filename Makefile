# Every target names in one line what it does: `make help`.
# Targets that touch namespaces or install packages need root.

CARGO ?= cargo
LAB ?= demo
# Options of `calidris lab run` for the demo, for example DEMO_ARGS="--pods 4".
DEMO_ARGS ?=
# Options of a single benchmark, for example BENCH_ARGS="--prefixes 100000 --rounds 1".
BENCH_ARGS ?=
# Options of ipam-chaos, for example CHAOS_ARGS="--seed 7 --rounds 1".
CHAOS_ARGS ?=
RELEASE := target/release
# The plugin is started for every pod and every call, so it is linked statically with musl, which starts without asking the
# processor for its features one by one (0.3 ms in a virtual machine); with glibc where rustup cannot get musl.
MACHINE := $(shell uname -m)-unknown-linux

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: setup
setup: ## Install from Debian what the build, the lab and the tests need (nothing to do when all is there)
	@interop-tests/setup-debian.sh

.PHONY: release
release: ## Build the optimised binaries into target/release (the CNI plugin statically linked)
	$(CARGO) build --release --locked -p calidris-agent -p calidris-interop --bins --example dataplane_bench
	@if rustup --quiet target add $(MACHINE)-musl 2>/dev/null; then \
	  $(MAKE) --no-print-directory plugin LIBC=musl; \
	else \
	  echo "no Rust for $(MACHINE)-musl here: the plugin is linked with glibc, and starts a little later"; \
	  $(MAKE) --no-print-directory plugin LIBC=gnu; \
	fi

.PHONY: plugin
plugin:
	$(CARGO) rustc --profile plugin --locked -p calidris-cni --bin calidris-cni --target $(MACHINE)-$(LIBC) -- -C target-feature=+crt-static
	ln -f target/$(MACHINE)-$(LIBC)/plugin/calidris-cni $(RELEASE)/calidris-cni
	ln -f $(RELEASE)/calidris-cni $(RELEASE)/calidris-ipam

.PHONY: demo
demo: setup release ## Run a cluster in namespaces (etcd, BIRD, FRR, three nodes, pods) and prove it; KEEP=1 leaves it up
	$(RELEASE)/calidris lab run --name $(LAB) $(if $(KEEP),--keep) $(DEMO_ARGS)

.PHONY: clean-lab
clean-lab: ## Remove whatever labs left behind, also after a crash, and only that
	@if [ -x $(RELEASE)/calidris-lab ]; then $(RELEASE)/calidris-lab clean; else $(CARGO) run -q --locked -p calidris-interop --bin calidris-lab -- clean; fi

.PHONY: test
test: setup ## Run every test: cores on virtual time, the agent on the real kernel, the lab against BIRD, FRR and etcd
	$(CARGO) build --workspace --all-targets --locked
	$(CARGO) test --workspace --locked --no-fail-fast

.PHONY: check
check: setup fmt clippy doc deny tidy ## Check form: fmt, clippy, doc, licences, purity of the cores, tidiness

.PHONY: fmt
fmt: ## Check the formatting
	$(CARGO) fmt --all --check

.PHONY: clippy
clippy: ## Lint everything, warnings are errors
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

.PHONY: doc
doc: ## Build the documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items --locked

.PHONY: deny
deny: ## Check licences, bans and sources of all dependencies
	@command -v cargo-deny >/dev/null || [ -x target/tools/bin/cargo-deny ] || \
		{ echo "building cargo-deny into target/tools"; $(CARGO) install --quiet --debug --locked --no-default-features --version 0.20.2 --root target/tools cargo-deny; }
	PATH="$$PATH:$(CURDIR)/target/tools/bin" cargo-deny --workspace check --hide-inclusion-graph bans licenses sources

.PHONY: tidy
tidy: ## Check file lengths, dependency edges, purity of the cores, and that every path named in the docs exists
	$(CARGO) test -q --locked --workspace --test tidy

.PHONY: test-containers
test-containers: ## Prove Calidris under containerd, spoken to as kubelet does, and under podman (installs both)
	@interop-tests/setup-debian.sh containers
	$(CARGO) build --workspace --all-targets --locked
	CALIDRIS_NO_SKIP=1 $(CARGO) test --locked --workspace --test containers

.PHONY: test-kubernetes
test-kubernetes: ## Prove Calidris as the network of a real Kubernetes in namespaces (needs Go; the first time takes ten minutes more)
	@interop-tests/setup-debian.sh containers
	@programs=$$(interop-tests/kubernetes/build.sh) && \
		$(CARGO) build --locked --workspace --bins && \
		target/debug/calidris-lab kubernetes --programs "$$programs"

# Options of `calidris-lab calico`, for example CALICO_ARGS="--seed 7".
CALICO_ARGS ?=

.PHONY: test-calico
test-calico: setup ## Run a real Calico's plugin and calicoctl turn about with ours on one etcd (needs Go; the first time takes three minutes more)
	@programs=$$(interop-tests/calico/build.sh) && \
		$(CARGO) build --locked --workspace --bins && \
		target/debug/calidris-lab calico --programs "$$programs" $(CALICO_ARGS)

.PHONY: conformance
conformance: setup ## Walk our CNI plugin and Debian's through the specification; writes the table (ALSO="--also 'ptp 1.9.1=PATH'")
	$(CARGO) build --locked --workspace --bins
	target/debug/calidris-lab conformance $(ALSO) --write interop-tests/cni-conformance/RESULTS.md

# Where another Debian with newer daemons is put, and which release.
NEWER ?= target/newer-debian
NEWER_SUITE ?= sid
# Options of `calidris lab interop`, for example INTEROP_ARGS="--peer bird --feature md5".
INTEROP_ARGS ?=

.PHONY: interop
interop: setup ## Run our speaker against BIRD, FRR, GoBGP, OpenBGPD and ExaBGP, feature by feature; writes interop-tests/RESULTS.md
	$(CARGO) build --locked --workspace --bins
	target/debug/calidris-lab interop --results interop-tests/RESULTS.md $(INTEROP_ARGS)

.PHONY: interop-newer
interop-newer: setup ## The same against the daemons of a newer Debian, put into a folder with debootstrap; adds columns to the table
	@interop-tests/newer-debian.sh "$(NEWER)" "$(NEWER_SUITE)"
	$(CARGO) build --locked --workspace --bins
	target/debug/calidris-lab interop --newer "$(NEWER)" --results interop-tests/RESULTS.md $(INTEROP_ARGS)

# How long to fuzz, and the first seed.
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 1000

.PHONY: fuzz
fuzz: ## Fuzz decoders and whole sessions for FUZZ_SECONDS from FUZZ_SEED on; a failing seed is kept in the corpus that the tests replay
	@$(CARGO) build -q --release --locked -p calidris-bgp --tests
	@seed=$(FUZZ_SEED); end=$$(($$(date +%s) + $(FUZZ_SECONDS))); \
	export CALIDRIS_FUZZ_KEEP="$(CURDIR)/bgp/tests/session_fuzz/corpus.txt"; \
	while [ $$(date +%s) -lt $$end ]; do \
		CALIDRIS_FUZZ_SEED=$$seed CALIDRIS_FUZZ_ROUNDS=2000 $(CARGO) test -q --release --locked -p calidris-bgp --test session_fuzz whatever || exit 1; \
		CALIDRIS_FUZZ_SEED=$$seed CALIDRIS_FUZZ_MESSAGES=5000000 $(CARGO) test -q --release --locked -p calidris-bgp --test wire_fuzz || exit 1; \
		seed=$$((seed + 2000)); echo "fuzz: all well up to seed $$seed"; \
	done

.PHONY: model-check
model-check: ## Go through all schedules of three clients, one of which dies, from all states of a small pool, Calico's half claims included
	$(CARGO) test --release --locked -p calidris-ipam --test interleavings -- --ignored --nocapture

.PHONY: ipam-chaos
ipam-chaos: setup release ## Prove for ten minutes that no address has two owners while etcd is killed, frozen, cut off and filled (CHAOS_ARGS)
	$(RELEASE)/calidris-lab ipam-chaos --rounds 10 --seconds 60 $(CHAOS_ARGS)

.PHONY: bench
bench: setup release ## Measure beside the peers; tables on the screen, rows in target/bench/NAME.json
	$(RELEASE)/calidris-lab bench all

.PHONY: bench-routes
bench-routes: setup release ## Measure routes in and out of the kernel beside raw netlink, ip -batch and BIRD 2; resync, endpoints, nftables
	$(RELEASE)/calidris-lab bench routes $(BENCH_ARGS)

.PHONY: bench-cni
bench-cni: setup release ## Measure adding and deleting pods beside the reference plugins ptp and bridge
	$(RELEASE)/calidris-lab bench cni $(BENCH_ARGS)

.PHONY: bench-bgp
bench-bgp: setup release ## Measure the BGP speaker beside BIRD 2 and FRR: a million prefixes in and out, half a million to ten peers, a reflector's thousand clients
	$(RELEASE)/calidris-lab bench bgp $(BENCH_ARGS)

.PHONY: bench-ipam
bench-ipam: setup release ## Measure giving addresses and claiming blocks beside etcd's own puts and transactions
	$(RELEASE)/calidris-lab bench ipam $(BENCH_ARGS)
