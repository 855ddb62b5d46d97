# Remora's commands; `make` lists them. Each does its own set-up and is quick when that is done.

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/remora
DENY  := $(CACHE)/cargo-deny-0.20.2/bin/cargo-deny

.DEFAULT_GOAL := help
.PHONY: help demo image install.yaml test lint bench fmt

help: ## List these commands.
	@sed -n 's/^\([a-z.]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$(printf '\t') read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

demo: ## Balance connections over tiny servers, then by an Envoy beside the sidecar; no cluster, no root.
	@.ci/prerequisites demo
	@tests/tools envoy >/dev/null
	@demo/run

image: ## Build the container image: target/remora.tar.
	@.ci/prerequisites image
	@sidecar/image >/dev/null

install.yaml: ## Write what `kubectl apply -f` takes, as the chart gives it.
	@chart/install >install.yaml.new && mv install.yaml.new install.yaml

test: lint ## Pass every test: lint, unit, end to end against a real control plane.
	@tests/tools
	@echo '== the image'
	@sidecar/image >/dev/null
	@echo '== build and test'
	@cargo test --workspace --locked

lint: ## Check formatting, clippy, the laws of the crates, the wasm builds.
	@.ci/prerequisites test
	@echo '== formatting'
	@cargo fmt --all --check
	@echo '== clippy'
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@echo '== the laws of the crates'
	@$(DENY) --log-level error check bans licenses sources
	@echo '== wasm'
	@for target in wasm32-wasip1 wasm32-unknown-unknown; do \
		cargo build -q --locked -p watcher --no-default-features --target $$target && \
		cargo clippy -q --locked -p filter --target $$target -- -D warnings && \
		cargo clippy -q --locked -p filter --features cases --target $$target -- -D warnings || exit 1; done

bench: ## Measure picks, changes, the feed, names, the relay and Envoy beside their peers; what capture, admission and readers cost.
	@.ci/prerequisites test
	@.ci/prerequisites image
	@tests/tools
	@sidecar/benches/peers
	@sidecar/image >/dev/null
	@cargo build --release --locked -p sidecar --bin remora
	@missed=0; for bench in 'selection --bench pick' 'watcher --bench store' 'watcher --bench feed' \
		'sidecar --bench dns' 'sidecar --bench node' 'sidecar --bench relay' 'sidecar --bench relay -- capture' \
		'sidecar --bench admission' 'tests --bench hub' 'tests --bench demand' 'tests --bench envoy' \
		'tests --bench envoy_feed'; do \
		cargo bench --locked -p $$bench || missed=1; done; exit $$missed

fmt: ## Format the code.
	@cargo fmt --all
