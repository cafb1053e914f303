#!/usr/bin/env bash
# Shows the stack at work, as an ordinary user: planned, started, asked, looked into, stripped, stopped, and gone. Lies beside
# `ctst`, `ctst-shim` and the folder `stack`; `make demo` puts it there.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
PATH=$here:$PATH
# Where overlayfs can have its upper layer: beside this script, or where a test machine says.
project=${SCRATCH:-$here}/project
port=8080

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() {
  printf '\033[2m$ %s\033[0m\n' "$*"
  "$@"
}
die() {
  echo "demo: $*" >&2
  exit 1
}

# Every process of the project: its supervisor, and all below it.
processes() {
  ps -e -o pid=,ppid=,args= | PROJECT=$project/stack.ctst awk '
    { parent[$1] = $2 }
    $4 == "supervise" && $5 == ENVIRON["PROJECT"] { found[$1] }
    END {
      for (pid in parent) {
        for (p = pid; p in parent; p = parent[p]) {
          if (p in found) { print pid; break }
        }
      }
    }'
}
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

finish() {
  status=$?
  trap - EXIT
  if [ $status != 0 ] && [ -d "$project" ]; then
    cd "$project"
    echo "demo: failed with exit code $status; what the components said:" >&2
    ctst ps -a >&2 || :
    ctst logs --tail 20 >&2 || :
    ctst stop >&2 || :
  fi
  exit "$status"
}
trap finish EXIT

[ "$(id -u)" != 0 ] || die "this is for an ordinary user; make demo makes one"
"$here/stack/fetch"
mkdir -p "$project/data"
cp -r "$here"/stack/{stack.ctst,nginx.conf,watch.sh,app} "$project/"
ln -sfn "$here/stack/rootfs" "$project/rootfs"
cd "$project"
if listening $port; then
  port=$(shuf -i 20000-30000 -n 1)
  echo "port 8080 is taken here, so the demo publishes $port"
  sed -i "s/127.0.0.1:8080/127.0.0.1:$port/" stack.ctst
fi
mounts=$(cat /proc/self/mountinfo)

say "The stack, as $(id -un) (uid $(id -u)), on Linux $(uname -r)"
show grep -E '^(COMPONENT|CONNECT|EXPOSE)' stack.ctst

say "What would happen"
show ctst plan

say "Start it and wait until all of it is healthy"
show ctst run -d --wait --yes
show ctst ps

say "Ask through the published port: nginx passes to the application, which counts in redis"
counts=()
for _ in 1 2 3; do
  answer=$(curl -sSf --max-time 30 "http://127.0.0.1:$port/")
  printf '%s\n' "$answer"
  counts+=("$(grep -oE 'visit [0-9]+' <<<"$answer" | cut -d' ' -f2)")
done
for step in 1 2; do
  [ $((counts[step])) = $((counts[step - 1] + 1)) ] || die "the counter does not rise by one: ${counts[*]}"
done
kept=$(ctst exec redis redis-cli --raw get visits)
[ "$kept" = "${counts[2]}" ] || die "redis keeps $kept, not ${counts[2]}"

say "Look inside: root of the container, without any right over this machine"
show ctst exec web id
show ctst exec web grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status
show ctst exec app id -un
show ctst exec redis redis-cli --raw get visits

say "What they say"
show ctst logs --tail 4

say "Once more, with nothing in the images but what the programs need"
sed -i 's/^  port .*/  distroless = true\n&/' stack.ctst
show ctst build
show ctst up --yes
answer=$(curl -sSf --max-time 30 "http://127.0.0.1:$port/")
printf '%s\n' "$answer"
grep -q "visit $((counts[2] + 1))," <<<"$answer " || die "the counter did not go on from ${counts[2]}"
! ctst exec web ls || die "nginx still has an ls"

say "Stop it"
running=$(processes)
[ "$(wc -w <<<"$running")" -ge 4 ] || die "found no processes to watch"
show ctst stop

say "Nothing is left"
for _ in $(seq 100); do
  # ps fails where it finds none; a zombie waits only for its parent to notice.
  left=$({ ps -o pid=,stat= -p "$(paste -sd, <<<"$running")" || :; } | awk '$2 !~ /^Z/ { print $1 }')
  [ -n "$left" ] || break
  sleep 0.1
done
[ -z "$left" ] || die "processes are left: $(ps -o pid,user,args -p "$(paste -sd, <<<"$left")")"
echo "of $(wc -w <<<"$running") processes, none"
[ "$(cat /proc/self/mountinfo)" = "$mounts" ] || die "mounts are left: $(diff <(echo "$mounts") /proc/self/mountinfo)"
echo "no mount"
! listening $port || die "port $port is still open"
echo "port $port is closed"
show ctst ps
[ "$(ctst ps --format json | tr -d '[:space:]')" = '[]' ] || die "ctst ps still lists something"

say "The demo passed. Its files are in $project"
