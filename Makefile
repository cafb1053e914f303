# The two commands of the README: `make demo` shows a stack of three parts at work, `make test` runs every test. Each
# installs what it needs (through sudo where it is not called by root) and may be repeated.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: demo test test-vm bench lint
.SILENT:

demo:
	. tests/setup.sh
	packages uidmap curl gcc libc6-dev
	package_lists
	rust
	cargo build --quiet --bins -p ctst -p ctst-shim
	ordinary_user ctst-demo
	cache=$$home/.cache/containust-demo
	stage "$$cache" "$$built"/{ctst,ctst-shim} examples/demo.sh
	tar -C examples -c stack | "$${as[@]}" tar -C "$$cache" -x --no-same-owner
	"$${as[@]}" "$$cache/demo.sh"

test:
	. tests/setup.sh
	packages uidmap busybox-static gcc libc6-dev
	rust
	ordinary_user ctst-single single
	ordinary_user ctst-test
	cargo build --quiet --workspace --bins
	cargo test --workspace

# The demo once more, on the kernel of Debian 12, in a machine of its own.
test-vm:
	. tests/setup.sh
	tests/vm/vmtest --prepare
	packages uidmap curl gcc libc6-dev
	package_lists
	rust
	cargo build --quiet --bins -p ctst -p ctst-shim
	ordinary_user ctst-demo
	cache=$$home/.cache/containust-demo
	stage "$$cache" "$$built"/{ctst,ctst-shim} examples/demo.sh
	tar -C examples -c stack | "$${as[@]}" tar -C "$$cache" -x --no-same-owner
	"$${as[@]}" "$$cache/stack/fetch"
	tests/vm/vmtest --user "$$user" "$$cache/demo.sh"

# Ratios against bwrap, nsenter and a direct connection, all measured in the same run.
bench:
	. tests/setup.sh
	packages uidmap bubblewrap wrk python3 util-linux gcc libc6-dev
	rust release
	cargo build --quiet --release --bins -p ctst -p ctst-shim
	ordinary_user ctst-test
	cache=$$home/.cache/containust-bench
	stage "$$cache" "$$built"/{ctst,ctst-shim} tests/bench
	"$${as[@]}" "$$cache/bench"

lint:
	. tests/setup.sh
	rust
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
