# The two commands of the README: `make demo` shows a stack of three parts at work, `make test` runs every test. Each
# installs what it needs (through sudo where it is not called by root) and may be repeated.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.PHONY: demo services test test-long test-vm matrix bench deb lint snapshots fuzz coverage reproducible

demo:
	. tests/setup.sh
	prepare_demo
	"$${as[@]}" "$$demo"

test:
	. tests/setup.sh
	packages uidmap busybox-static xz-utils gcc libc6-dev strace libcap2-bin iproute2 passt zsh fish skopeo
	package_lists
	unpacked target/registry docker-registry
	tun_device
	fuse_device
	rust
	ordinary_user ctst-single single
	ordinary_user ctst-test
	# As the tests want them: with other targets, or of one package, the features of what both use differ, and all is built again.
	cargo build --quiet --workspace --all-targets
	mkdir -p target/escape
	kernel=$$(uname -r | cut -d. -f1,2)
	# Who runs this in the background may have it ignore Ctrl-C and hang-ups, which ctst would respect.
	env --default-signal cargo test --workspace --no-fail-fast 2>&1 | tee "target/escape/$$kernel.tests.log"

# Real services: started, restarted, killed under load, asked for their data; 200 containers; 100,000 names. LONG=1 loads the
# published ports for ten minutes each, PODMAN=1 starts the same by podman, too.
services:
	. tests/setup.sh
	packages uidmap python3 wrk redis-tools dnsmasq-base
	package_lists
	rust release
	cargo build --quiet --release --bins -p ctst -p ctst-shim
	cargo build --quiet --release --bin ctst-probe -p containust-tests
	ordinary_user ctst-services
	folder=$$home/.cache/containust-services
	services=$$folder/services
	stage "$$folder" "$$built"/{ctst,ctst-shim,ctst-probe} tests/services/services tests/demo/stack/fetch
	tar -C tests/services -c --exclude=stack/rootfs --exclude=stack/secrets --exclude=stack/.containust stack |
	  "$${as[@]}" tar -C "$$folder" -x --no-same-owner
	"$${as[@]}" "$$folder/stack/fetch"
	"$${as[@]}" env CTST_IDS=single "$$services" single
	"$${as[@]}" "$$services" run $${LONG:+600}
	"$${as[@]}" "$$services" many
	as_root "$$services" memory
	"$${as[@]}" "$$services" fewer
	[ -z "$${PODMAN-}" ] || with_podman "$$services" podman

# The races and the mutations of the escape suite for minutes instead of seconds, and what waits for the kernel's; then for hours every step of every command
# struck (CTST_TEST_STEPS=10: ten of each process and command), and 2,000 random kills.
test-long: export CTST_LONG = 1
test-long:
	. tests/setup.sh
	packages uidmap busybox-static gcc libc6-dev strace iproute2 passt
	tun_device
	rust
	ordinary_user ctst-single single
	ordinary_user ctst-test
	cargo build --quiet --workspace --all-targets
	env --default-signal cargo test --workspace --no-fail-fast --test caller --test escape --test expose
	export CTST_TEST_STEPS="$${CTST_TEST_STEPS:-all}" CTST_TEST_KILLS="$${CTST_TEST_KILLS:-2000}"
	cargo test --workspace --no-fail-fast --test crash --test steps -- --nocapture --test-threads 1

# What became of every way out (ctst-shim/ESCAPES.md), by kernel and mode, as far as test and test-vm have tried them.
matrix:
	. tests/setup.sh
	rust
	cargo run --quiet --package containust-tests --bin escape-matrix target/escape | tee target/escape-matrix.txt

# On Debian's kernels, in a machine of its own: the demo once more, limits, for which a host rarely has the cgroups,
# strict mode on a host that forbids user namespaces, the escape suite, and the packages in a clean Debian system.
test-vm:
	. tests/setup.sh
	packages python3 busybox-static libcap2-bin strace
	tests/vm/vmtest --prepare
	prepare_demo
	"$${as[@]}" "$${demo%/*}/stack/fetch"
	visitor=$$user
	ordinary_user ctst-single single
	single=$$user
	ordinary_user ctst-test
	cargo build --quiet --workspace --all-targets
	tests=$$(cargo test --workspace --no-run --test limits --test strict --test escape --test caller 2>&1) || fail "$$tests"
	program() { # FILE
	  realpath "$$(sed -n "s:^ *Executable $$1 (\(.*\))$$:\1:p" <<<"$$tests")"
	}
	limits=$$(program limits.rs) strict=$$(program strict.rs) escape=$$(program escape.rs) caller=$$(program tests/caller.rs)
	debs
	clean_debian
	mkdir -p target/escape
	vm=$(CURDIR)/tests/vm
	several() {
	  (cd / && "$$vm/vmtest" --user "$$visitor" "$$demo") &&
	    "$$vm/vmtest" tests/vm/limits "$$limits" "$$user" &&
	    "$$vm/vmtest" tests/vm/packages "$$debian" "$$(realpath target/deb)"
	}
	# Most of an emulated machine is one processor, so that two at a time take little longer than one; these take about as long as those.
	several >target/vm.log 2>&1 &
	several=$$! failed=
	for kernel in linux-image-cloud-amd64 linux-image-6.12-cloud-amd64; do
	  "$$vm/vmtest" --kernel "$$kernel" tests/vm/escape "$$escape" "$$caller" "$$built/ctst-shim" "$$user" "$$single" |
	    awk -v folder=target/escape '$$1 != "escape:" { print; next } { file = folder "/" $$2; sub(/^escape: [^ ]+ /, ""); print > file }' ||
	    failed+="; the escape suite failed on $$kernel"
	done
	"$$vm/vmtest" tests/vm/strict "$$strict" "$$user" || failed+="; strict mode failed"
	wait "$$several" || failed+="; the demo, limits or the packages failed"
	cat target/vm.log
	[ -z "$$failed" ] || fail "$${failed#; }"

# Ratios against bwrap, nsenter, a direct connection, slirp4netns and buildah, all measured in the same run; PODMAN=1 adds podman.
bench:
	. tests/setup.sh
	packages uidmap busybox-static bubblewrap buildah wrk python3 util-linux zstd gcc libc6-dev libcap2-bin slirp4netns
	tun_device
	rust release
	cargo build --quiet --release --bins -p ctst -p ctst-shim
	ordinary_user ctst-test
	package_lists
	folder=$$home/.cache/containust-bench
	stage "$$folder" "$$built"/{ctst,ctst-shim} tests/bench
	stage "$$folder/stack" tests/demo/stack/fetch
	strict_programs "$$folder/strict"
	trap '"$${as[@]}" "$$folder/bench" stop' EXIT
	"$${as[@]}" env ROUNDS="$${ROUNDS:-100}" "$$folder/bench" run
	as_root "$$folder/bench" memory
	[ -z "$${PODMAN-}" ] || with_podman "$$folder/bench" loads

# Debian packages, in target/deb.
deb:
	. tests/setup.sh
	packages libcap2-bin
	rust release
	cargo build --quiet --release --bins -p ctst -p ctst-shim -p ctst-port
	debs

lint:
	. tests/setup.sh
	rust
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

# Everything that is kept as text beside the code, so that a change of authority is a visible diff: what the shim may be
# asked, base filters, capabilities, unsafe code.
snapshots:
	. tests/setup.sh
	rust
	UPDATE_SNAPSHOTS=1 cargo test --quiet -p containust-policy --test snapshots
	UPDATE_SNAPSHOTS=1 cargo test --quiet -p containust-shared --test requests
	UPDATE_SNAPSHOTS=1 cargo test --quiet -p containust-tests --test audit

# SECONDS_EACH=600 make fuzz; TARGET=judge for one of them (fuzz/README.md).
fuzz:
	fuzz/run $(TARGET)

# Which lines of the shim the tests reach.
coverage:
	tests/coverage

# The shim, built in two folders, is the same file.
reproducible:
	packaging/reproducible
