# A thin front: installing is tools/install.sh, checking is `cargo xtask`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Further options: make demo ARGS="--nodes 5 --dir /tmp/herd", make bench-failover ARGS=--all
ARGS ?=
BENCH_ARGS ?=
# How many seeds `make prove` runs.
SEEDS ?= 100000
# How many seconds `make fuzz` runs each target. Bash has a variable SECONDS of its own.
ifeq ($(origin SECONDS),command line)
FUZZ_SECONDS := $(SECONDS)
endif
FUZZ_SECONDS ?= 60

.PHONY: help tools demo test check prove fuzz scenarios bench bench-failover bench-proxy

help:
	@echo 'make demo        a highly available PostgreSQL cluster on this machine (ARGS="--drill" breaks it)'
	@echo 'make test        every check and every test'
	@echo 'make check       formatting, clippy, tidy, cargo deny: no tests'
	@echo 'make prove       the long twins of the tests: many simulator seeds (SEEDS=$(SEEDS))'
	@echo 'make fuzz        made-up bytes for what reads the network (SECONDS=$(FUZZ_SECONDS) each; cargo-fuzz, nightly)'
	@echo 'make bench       whole architectures beside each other, under the same faults (BENCH_ARGS="--quick")'
	@echo 'make bench-failover  how long each hand-over takes, beside bare PostgreSQL (ARGS="--quick")'
	@echo 'make bench-proxy  the proxy beside HAProxy and PgBouncer (ARGS="--quick", "--only session")'
	@echo 'make scenarios   record the scripts of crates/decide/testdata anew; review the diff'
	@echo 'make tools       install what is missing: PostgreSQL server, etcd'

# Silent when nothing is missing.
tools:
	@tools/install.sh

demo: tools
	@cargo build --release --locked --package cli
	@. tools/env.sh && exec target/release/pgherd demo $(ARGS)

test: tools
	@tools/install-test.sh
	@. tools/env.sh && exec cargo xtask test

check:
	@cargo xtask check

prove: tools
	@. tools/env.sh && exec cargo xtask prove --seeds $(SEEDS)

fuzz:
	@cargo xtask fuzz --seconds $(FUZZ_SECONDS)

# Writes target/bench/report.html and results.json.
bench: tools
	@tools/install-bench.sh
	@cargo build --release --locked --package cli --package bench
	@. tools/env.sh && exec target/release/pgherd-bench field $(BENCH_ARGS)

# The last line is one JSON object.
bench-failover: tools
	@cargo build --release --locked --package cli --package bench
	@. tools/env.sh && exec target/release/pgherd-bench failover $(ARGS)

# The same; it also replaces the tables of docs/benchmarks.md that it measured.
bench-proxy: tools
	@tools/install-bench.sh
	@cargo build --release --locked --package cli --package bench
	@. tools/env.sh && exec target/release/pgherd-bench proxy --write docs/benchmarks.md $(ARGS)

scenarios:
	@cargo xtask scenarios --bless
