# What people do with Switchyard. Each target installs what it needs and this machine lacks (scripts/install.sh), and says what it does.

.DEFAULT_GOAL := help
.PHONY: help build demo test unit integration regress mix differential verdicts failover bench bench-consistency bench-verdicts fuzz lint

# rustup's cargo, where the shell doesn't know it.
export PATH := $(PATH):$(HOME)/.cargo/bin

# An error of a test tells what happened; a backtrace behind it only hides that.
unit integration: export RUST_BACKTRACE := 0

help: ## show this
	@echo 'Switchyard: a PostgreSQL router for Patroni clusters'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

build: ## build the router (target/release/switchyard)
	@scripts/install.sh build
	cargo build --locked --release --bin switchyard

demo: ## start a cluster of five members and the router on this machine, and tell what to try
	@scripts/install.sh demo
	cargo build --locked --bin switchyard --bin demo
	@exec "$${CARGO_TARGET_DIR:-target}/debug/demo"

test: ## run every test: units, then real clusters, real clients and faults
	@scripts/install.sh test
	cargo build --locked --workspace
	$(MAKE) --no-print-directory unit integration

unit: ## run the tests that need no cluster
	cargo test --locked --workspace --exclude switchyard-tests

# One program after the other, and its tests one after the other: each starts clusters of its own, and timings count.
integration: ## run the tests against real clusters (after a build)
	cargo test --locked -p switchyard-tests -- --test-threads=1 --nocapture

regress: ## run PostgreSQL's regression and isolation suites direct and through the router, and compare the outputs: about 9 minutes
	@scripts/install.sh regress
	cargo build --locked --bin switchyard --bin regress
	@exec "$${CARGO_TARGET_DIR:-target}/debug/regress"

mix: ## two thousand clients on twenty server connections for five minutes, every answer checked (SECONDS=..., CLIENTS=...)
	@scripts/install.sh demo
	cargo build --locked --bin switchyard --bin mix
	@exec "$${CARGO_TARGET_DIR:-target}/debug/mix" $(if $(SECONDS),--seconds $(SECONDS)) $(if $(CLIENTS),--clients $(CLIENTS))

differential: ## random sessions, through the router and direct in step, every difference shrunk (SEQUENCES=..., SEED=..., PORT=read-write|read-only, POOL=..., WORKERS=..., ONLY=...)
	@scripts/install.sh demo
	cargo build --locked --bin switchyard --bin differential
	@exec "$${CARGO_TARGET_DIR:-target}/debug/differential" $(if $(SEQUENCES),--sequences $(SEQUENCES)) $(if $(SEED),--seed $(SEED)) $(if $(PORT),--port $(PORT)) $(if $(POOL),--pool $(POOL)) $(if $(WORKERS),--workers $(WORKERS)) $(if $(ONLY),--only "$(ONLY)")

verdicts: ## judge every statement of PostgreSQL's regression suite, and ask a server the same: about 5 minutes
	@scripts/install.sh regress
	cargo build --locked --bin verdicts
	@exec "$${CARGO_TARGET_DIR:-target}/debug/verdicts"

failover: ## let things fail under load, through Switchyard and through HAProxy, and print what clients saw: about 20 minutes
	@tests/scenarios/failover.sh

bench: ## measure against PgBouncer, HAProxy and a direct connection, in one table, and what looks cost: 20 minutes, or 5 with QUICK=1
	@scripts/install.sh bench
	cargo build --locked --release --bin switchyard --bin bench
	@exec "$${CARGO_TARGET_DIR:-target}/release/bench" $(if $(QUICK),--quick)

bench-consistency: ## measure what the consistency levels cost, and how many reads replicas serve at each, and how two unlike replicas share them: 9 minutes, or 6 with QUICK=1
	@scripts/install.sh bench
	cargo build --locked --release --bin switchyard --bin bench
	@exec "$${CARGO_TARGET_DIR:-target}/release/bench" --consistency $(if $(QUICK),--quick)

bench-verdicts: ## measure what a verdict costs, in time and memory: a minute
	@scripts/install.sh build
	cargo build --locked --release --bin verdict_cost
	@exec "$${CARGO_TARGET_DIR:-target}/release/verdict_cost"

fuzz: ## fuzz lexer and classifier for SECONDS=60 (wants a nightly compiler and cargo-fuzz)
	cd proxy/core && cargo +nightly fuzz run statements -- -max_total_time=$(or $(SECONDS),60) -timeout=5

lint: ## check format and lints, and dependencies if cargo-deny is installed
	@scripts/install.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check; else echo 'cargo-deny is not installed: dependencies not checked'; fi
