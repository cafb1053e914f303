# Functions for the Makefile and for .ci/run, to be sourced by bash. Each installs or makes what is missing and does
# nothing where nothing is: as root directly, otherwise through sudo, otherwise it says what a person has to do.

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

as_root() { # COMMAND...
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "this needs root once, and there is no sudo here; as root, run:" "  $*"
  fi
}

packages() { # NAME...: Debian packages
  local name missing=()
  command -v apt-get >/dev/null || fail "no apt-get here; install what these Debian packages hold: $*"
  for name in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  [ ${#missing[@]} != 0 ] || return 0
  echo "installing ${missing[*]}" >&2
  as_root env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -q -o DPkg::Lock::Timeout=300 update >&2 &&
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >&2' sh "${missing[@]}"
}

# The demo's images are downloaded with apt's lists, which a fresh container image does not have.
package_lists() {
  compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null || as_root apt-get -q update >&2
}

# Unpacks Debian packages into a folder, because what installs them would start a service.
unpacked() { # FOLDER NAME...
  local folder=$1 new
  shift
  [ ! -d "$folder" ] || return 0
  new=$(mktemp -d)
  (cd "$new" && apt-get -q download "$@" >&2) || fail "apt-get cannot download $*; run: sudo apt-get update"
  mkdir -p "$folder.new"
  find "$new" -name '*.deb' -exec dpkg-deb -x {} "$folder.new" \;
  rm -rf "$new"
  mv "$folder.new" "$folder"
}

rust() { # finds cargo, and sets $built to where it puts the programs of the profile $1 (default: debug)
  [ ! -d "$HOME/.cargo/bin" ] || PATH=$PATH:$HOME/.cargo/bin
  command -v cargo >/dev/null || fail "no cargo in PATH nor in ~/.cargo/bin; install Rust from https://rustup.rs"
  local wanted have
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  have=$(rustc --version | cut -d' ' -f2)
  printf '%s\n' "$wanted" "$have" | sort -VC || fail "rustc $have is older than $wanted; run: rustup update"
  local target=${CARGO_TARGET_DIR:-$PWD/target}
  built=$target/$(rustc -vV | sed -n 's/^host: //p')/${1:-debug}
}

subordinate_ids() { # USER
  local file
  for file in /etc/subuid /etc/subgid; do
    grep -qs "^$1:" "$file" || grep -qs "^$(id -u "$1"):" "$file" || return 1
  done
}

give_subordinate_ids() { # USER
  local first
  first=$(cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: '$2 + $3 > end { end = $2 + $3 } END { print end > 100000 ? end : 100000 }')
  as_root usermod --add-subuids "$first-$((first + 65535))" --add-subgids "$first-$((first + 65535))" "$1"
}

# Containers are for ordinary users, so root makes itself one. With `single` the user has no subordinate ids.
# Sets $user, $home and the words $as that run a command as that user.
ordinary_user() { # NAME [single]
  if [ "$(id -u)" != 0 ]; then
    user=$(id -un) home=$HOME as=()
  else
    user=$1
    id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
    home=$(getent passwd "$user" | cut -d: -f6)
    as=(setpriv "--reuid=$(id -u "$user")" "--regid=$(id -g "$user")" --init-groups --reset-env)
  fi
  if [ "${2-}" != single ]; then
    subordinate_ids "$user" || give_subordinate_ids "$user"
  elif [ "$(id -u)" = 0 ] && subordinate_ids "$user"; then
    # useradd gave them.
    sed -i "/^$user:/d" /etc/subuid /etc/subgid
  fi
}

# Copies programs to where that user can read them, because a checkout below /root is closed to everybody else.
stage() { # FOLDER PROGRAM...
  "${as[@]}" mkdir -p "$1"
  install -m 755 "${@:2}" "$1"
}

# Puts a ctst there whose shim is in strict mode, for the ordinary user's group.
strict_programs() { # FOLDER
  stage "$1" "$built/ctst"
  as_root install -o root -g "$(id -g "$user")" -m 750 "$built/ctst-shim" "$1"
  # After its group, which takes capabilities away.
  as_root setcap cap_sys_admin,cap_setuid,cap_setgid+p "$1/ctst-shim"
}

# Makes everything ready for the demo and sets $demo to the script to be run with "${as[@]}".
prepare_demo() {
  packages uidmap curl procps gcc libc6-dev
  package_lists
  rust
  echo "building ctst: some minutes the first time" >&2
  # As the tests have built it, where they have: with other features most of it is built again.
  local what=(--bins -p ctst -p ctst-shim)
  [ ! -e "$built/ctst-probe" ] || what=(--workspace --all-targets)
  cargo build --quiet "${what[@]}"
  ordinary_user ctst-demo
  local folder=$home/.cache/containust-demo
  stage "$folder" "$built"/{ctst,ctst-shim} tests/demo/demo.sh
  # Without what a run in the checkout itself may have left there.
  tar -C tests/demo -c --exclude=stack/rootfs --exclude=stack/data --exclude=stack/.containust stack |
    "${as[@]}" tar -C "$folder" -x --no-same-owner
  demo=$folder/demo.sh
}

# Makes the Debian packages of the programs in $built, in target/deb.
debs() {
  local pages
  pages=$(mktemp -d)
  cargo build --quiet --workspace --example man
  "${built%/*}/debug/examples/man" "$pages"
  rm -rf target/deb
  mkdir -p target/deb
  packaging/deb/build "$built" "$pages" target/deb
  rm -rf "$pages"
}

# Makes, once, a Debian system as it is after installation, with what the packages depend on and no user, and sets $debian
# to its folder.
clean_debian() {
  packages debootstrap
  local suite
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  debian=/var/cache/containust-vm/$suite
  [ ! -d "$debian" ] || return 0
  echo "installing $suite into $debian" >&2
  as_root rm -rf "$debian.new"
  as_root debootstrap --variant=minbase --include=adduser,busybox-static,libcap2-bin,uidmap "$suite" "$debian.new" >&2
  as_root mv "$debian.new" "$debian"
}

# What leaves a project needs the kernel's network devices that are files, which a host usually gives to everybody.
tun_device() {
  [ -c /dev/net/tun ] || as_root sh -c 'mkdir -p /dev/net && mknod /dev/net/tun c 10 200'
  [ "$(stat -c %a /dev/net/tun)" = 666 ] || as_root chmod 666 /dev/net/tun
}

# So does an image that is read from its archive.
fuse_device() {
  [ -c /dev/fuse ] || as_root sh -c 'mknod /dev/fuse c 10 229'
  [ "$(stat -c %a /dev/fuse)" = 666 ] || as_root chmod 666 /dev/fuse
}

# Runs a command that uses podman, as the ordinary user. Its crun refuses hosts on which both hierarchies of control groups
# are mounted, so that there it sees, in a mount namespace of its own, the newer one only.
with_podman() { # COMMAND...
  packages podman crun netavark aardvark-dns slirp4netns iptables
  local newer='mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' runtime
  runtime=$("${as[@]}" mktemp -d)
  local command=("${as[@]}" env XDG_RUNTIME_DIR="$runtime" STORAGE_DRIVER=overlay "$@")
  if [ ! -d /sys/fs/cgroup/unified ]; then
    "${command[@]}"
  elif [ "$(id -u)" = 0 ]; then
    unshare --mount --propagation private sh -c "$newer" sh "${command[@]}"
  else
    fail "crun wants a host with control groups of version 2 only; or call this as root"
  fi
}
