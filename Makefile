# make run    the agent with config.example.json
# make test   everything that has to be green: format, lints, all tests
# make big    six million lines (900 MB) to a file and to Loki at once, compared line by line; prints figures
# make outage  a receiver that is ill for a minute, then busy, then hangs, beside a healthy sink; prints figures
# make spool   2 GB into a spool and out of it again, with a death in between; prints resident memory
# make cycles  a thousand starts and stops in one process, then 100000 files that come and go; prints figures
# make test-docker   containers on a real engine, started for it: 50 of them at 2000 lines/s, and 600 short lives; prints figures
# make soak   two minutes of everything at once: rotations, a Loki with moods, signals; shows what leaks
# make model   every interleaving of our own locks, by loom (part of make test)
# make stops   how long a stop takes in every phase of the work, with three values of stop_timeout; a table
# make model-files   2000 random scripts of what happens to a log and its agent, against a model
# make crash   a hundred lives that end by SIGKILL, anywhere; a Loki that lies and a file sink, compared; a table
# make generations   a start with 100000 files in the ledger, and all of them gone again; figures
# make corrupt   every byte of the state flipped, every file of it cut everywhere; nothing may be lost; figures
# make figures  size of the binary, time to start, time to stop
# make minimal  a small binary without TLS, containers and regular expressions, in target/minimal; prints its size
# make static   one that needs nothing of the host; make test-docker runs it in an empty container
# make bench   speed, memory, latency, idle cost and many files beside the bare work and other agents; BENCH_QUICK=1: three minutes

export PATH := $(HOME)/.cargo/bin:$(PATH)
SHELL := bash
BINARY := target/release/log-capturer
BIG_LINES ?= 6000000
STATIC_TARGET ?= $(shell uname -m)-unknown-linux-gnu
STATIC_BINARY := target/$(STATIC_TARGET)/release/log-capturer

.PHONY: run test test-docker big outage spool soak cycles model stops crash corrupt generations model-files figures bench minimal static clean

run: $(BINARY)
	@echo "What it captures appears below ./captured; its status is at http://127.0.0.1:8401/. Ctrl-C ends it."
	@exec $(BINARY) run --config config.example.json

$(BINARY): Cargo.toml Cargo.lock $(shell find src -type f)
	cargo build --release --locked
	@touch $@

test:
	bash scripts/prepare.sh
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --lib
	cargo test --locked
	$(MAKE) --no-print-directory model

# Some fifteen minutes, as root. The short form is part of make test.
test-docker: static
	bash scripts/prepare.sh
	LOG_CAPTURER_STATIC=$(abspath $(STATIC_BINARY)) LOG_CAPTURER_DOCKER_FULL=1 LOG_CAPTURER_DOCKER_GONE_SECONDS=30 cargo test --locked --release --test it -- docker:: --nocapture --test-threads=1

# In a folder of its own: the feature changes what the crate is made of.
model:
	cargo test --locked --features model --lib --target-dir target/model -- model::

# Needs some 2 GB below TMPDIR (/tmp): the logs and the output.
big:
	LOG_CAPTURER_BIG_LINES=$(BIG_LINES) cargo test --locked --release --test it -- --exact big::a_lot_at_once outage::a_giant_goes_through_once --nocapture --test-threads=1

outage:
	LOG_CAPTURER_OUTAGE_SECONDS=60 cargo test --locked --release --test it -- --exact outage::a_long_illness_of_one_sink --nocapture

# Needs 25 GB of free disk below TMPDIR (/tmp): a spool takes a tenth of it at most.
SPOOL_BYTES ?= 2000000000
spool:
	LOG_CAPTURER_SPOOL_BYTES=$(SPOOL_BYTES) cargo test --locked --release --test it -- --exact spool::gigabytes_pass_through_little_memory --nocapture

# The short form is part of make test. One thread: else the test runner's would come and go meanwhile.
cycles:
	LOG_CAPTURER_CYCLES=1000 LOG_CAPTURER_CHURN=100000 cargo test --locked --release --test cycles -- --nocapture --test-threads=1

# The figures stay in target/stress: report.txt, stress.svg, samples.csv. For hours: scripts/stress-test.sh --help
soak:
	bash scripts/stress-test.sh --duration 2m --workers 10

stops:
	bash scripts/stop-times.sh

# More rounds, or those of a seed again: scripts/crash-test.sh --help
crash:
	bash scripts/crash-test.sh --rounds 100

# The short form is part of make test.
corrupt:
	LOG_CAPTURER_CORRUPT_ALL=1 cargo test --locked --release --test it -- --exact corrupt::a_damaged_state_loses_nothing --nocapture

generations:
	LOG_CAPTURER_GENERATIONS=100000 cargo test --locked --release --test it -- --exact generations::a_start_with_many_generations --nocapture

# From LOG_CAPTURER_SCRIPTS_SEED on, or from anywhere. A script that fails is made shorter and printed.
model-files:
	LOG_CAPTURER_SCRIPTS=2000 cargo test --locked --release --test it -- --exact script::scripts_of_everything_that_happens_to_a_file --nocapture

figures: $(BINARY)
	bash scripts/figures.sh $(BINARY)

# Frame pointers, since then the tables for a panic's way out are a third smaller; equal functions once. Fails above
# MINIMAL_MOST bytes.
MINIMAL_FLAGS ?= -C force-frame-pointers=yes -C link-arg=-Wl,--icf=all
MINIMAL_MOST ?= 3000000
minimal:
	RUSTFLAGS="$(MINIMAL_FLAGS)" cargo build --locked --profile minimal --no-default-features
	@bytes=$$(stat -c %s target/minimal/log-capturer); echo "target/minimal/log-capturer: $$bytes bytes"; \
	  test $$bytes -le "$(MINIMAL_MOST)" || { echo "more than $(MINIMAL_MOST)" >&2; exit 1; }

static:
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target $(STATIC_TARGET)
	@ls -l $(STATIC_BINARY)

# BENCH_AGENTS: several binaries, to compare them. Needs some 2 GB below TMPDIR (/tmp).
BENCH_AGENTS ?= $(BINARY)
bench: $(BINARY)
	cargo build --locked --release --manifest-path scripts/bench/Cargo.toml --target-dir target/bench
	cargo build --locked --example counted
	BENCH_COUNTED=target/debug/examples/counted target/bench/release/log-capturer-bench $(if $(BENCH_QUICK),--quick) $(BENCH_AGENTS)

clean:
	cargo clean
	rm -rf captured data
