#!/bin/sh
# What `npm start` runs: a cluster of one node on this machine, from an empty checkout to five running containers.
# The node stays when this ends; run again, it uses the node that is there. `npm stop` ends it.
set -eu
cd "$(dirname "$0")/.."
. examples/node.sh

replicas=5
engine=${DOCKER_HOST:-unix:///var/run/docker.sock}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

main() {
  case $engine in
    unix://* | tcp://*) ;;
    *) die "npm start: DOCKER_HOST=$engine is of an unknown kind: give unix:///path or tcp://host:port" ;;
  esac
  need_curl
  if node_answers; then
    say "A node answers at $address already: using it."
  else
    install_packages
    npm run --silent build
    need_engine
    start_node
  fi
  need_engine
  need_image
  send_example
  wait_until 60 all_run || explain_and_die
  show
}

# ---- What the node needs ---------------------------------------------------------------------------------------------

install_packages() {
  npm ls >/dev/null 2>&1 && return
  say "Installing the npm packages..."
  quietly npm ci --no-audit --no-fund
}

# Runs a command whose output matters only when it fails.
quietly() {
  "$@" >"$work/log" 2>&1 </dev/null && return
  cat "$work/log" >&2
  die "npm start: \"$*\" failed, see above"
}

can_apt() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

apt_install() {
  say "Installing $* with apt-get..."
  [ -n "${apt_is_fresh:-}" ] || quietly apt-get -y -q update
  apt_is_fresh=yes
  quietly apt-get -y -q install --no-install-recommends "$@"
}

need_curl() {
  command -v curl >/dev/null && return
  can_apt || die "npm start: it sends the example with curl, and there is none: install curl and run it again"
  apt_install curl ca-certificates
}

# A request to the Docker Engine, by path.
ask_engine() {
  path=$1
  shift
  case $engine in
    unix://*) curl -s --unix-socket "${engine#unix://}" "http://docker$path" "$@" ;;
    tcp://*) curl -s "http://${engine#tcp://}$path" "$@" ;;
  esac
}

engine_answers() { [ "$(ask_engine /_ping -m 5 2>/dev/null)" = OK ]; }

need_engine() {
  engine_answers && return
  if [ -n "${DOCKER_HOST:-}" ]; then
    die "npm start: no Docker Engine answers at DOCKER_HOST=$DOCKER_HOST: start it, or unset DOCKER_HOST"
  fi
  if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
    die "npm start: $(id -un) may not use /var/run/docker.sock: run it as root, or as a member of the group docker"
  fi
  if ! command -v dockerd >/dev/null; then
    can_apt || die "npm start: no Docker Engine answers at $engine: install one (https://docs.docker.com/engine/install/), start it and run this again; or run this as root on Debian or Ubuntu, where it installs docker.io"
    apt_install docker.io iptables ca-certificates
    # Newer releases have the docker command in a package of its own.
    ! apt-cache show docker-cli >/dev/null 2>&1 || apt_install docker-cli
  fi
  # The package starts the engine itself where there is an init system for that.
  wait_until 2 engine_answers || start_engine
}

start_engine() {
  [ "$(id -u)" -eq 0 ] || die "npm start: the Docker Engine on this machine is not running: start it (as root: systemctl start docker) and run this again"
  if [ -d /run/systemd/system ]; then
    quietly systemctl start docker
  else
    say "Starting the Docker Engine; its log is $dockerd_log"
    mkdir -p "$data/npm-start"
    setsid nohup dockerd >"$dockerd_log" 2>&1 </dev/null &
    echo $! >"$dockerd_pid"
  fi
  wait_until 60 engine_answers && return
  tail -n 20 "$dockerd_log" >&2 2>/dev/null || true
  die "npm start: the Docker Engine does not answer at $engine"
}

# ---- The node ----------------------------------------------------------------------------------------------------------

start_node() {
  mkdir -p "$data/bin" "$data/npm-start"
  cp dist/cacophony "$executable.new"
  mv "$executable.new" "$executable"
  say "\$ cacophony bootstrap --bind-addr $address --data-dir $data"
  setsid nohup "$executable" bootstrap --bind-addr "$address" --data-dir "$data" >"$node_log" 2>&1 </dev/null &
  echo $! >"$node_pid"
  wait_until 20 healthy_or_ended || true
  if ! live_pid "$node_pid" "$executable" >/dev/null || ! healthy; then
    tail -n 20 "$node_log" >&2
    die "npm start: the node does not run; the above is from $node_log"
  fi
}

healthy() { curl -sf -m 5 "http://$address/healthz" >/dev/null; }
healthy_or_ended() { healthy || gone "$(cat "$node_pid")"; }

# ---- The example -------------------------------------------------------------------------------------------------------

image_exists() { ask_engine /images/busybox:latest/json -f -m 10 >/dev/null; }

# The node pulls images by itself; this is for machines that reach no registry.
need_image() {
  image_exists && return
  say "Pulling the image busybox..."
  ask_engine "/images/create?fromImage=busybox&tag=latest" -X POST -m 60 >"$work/pull" 2>&1 || true
  image_exists && return
  say "It can't be pulled here; making it from Debian's busybox-static instead."
  if ! dpkg-query -W -f '${db:Status-Abbrev}' busybox-static 2>/dev/null | grep -q ^ii; then
    can_apt || die "npm start: no image busybox: bring it to the Docker Engine with docker load, or install busybox-static and run this again"
    apt_install busybox-static
  fi
  sh examples/busybox_image.sh >"$work/image.tar"
  ask_engine "/images/create?fromSrc=-&repo=busybox&tag=latest&changes=CMD%20%5B%22sh%22%5D" \
    -X POST -m 60 -H 'Content-Type: application/x-tar' --data-binary "@$work/image.tar" >"$work/pull"
  image_exists && return
  cat "$work/pull" >&2
  die "npm start: the Docker Engine did not take the image, see above"
}

# Shows a curl command, runs it, and shows the answer.
send() {
  say "" "\$ curl$(for word in "$@"; do
    case $word in *[\ \{]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
  done)"
  status=$(curl -sS -m 30 -o "$work/answer" -w '%{http_code}' "$@")
  say "$status $(cat "$work/answer")"
  case $status in 2??) ;; *) die "npm start: the node refused the example, see above" ;; esac
}

send_example() {
  send -X PUT -H 'Content-Type: application/json' "$address/cluster/job/$job" --data-binary @examples/example-job.yml
  send -X PUT -H 'Content-Type: application/json' "$address/cluster/job/$job/example-service" --data "{\"scale\": $replicas}"
}

all_run() { [ "$(states | grep -c '^running$')" -eq "$replicas" ]; }

explain_and_die() {
  say "" >&2
  curl -s -m 10 "http://$address/cluster/job/$job" >&2 || true
  say "" >&2
  tail -n 20 "$node_log" >&2 2>/dev/null || true
  die "npm start: not all $replicas containers run after 60 s; above are the job and the end of $node_log"
}

show() {
  say "" "Running:" ""
  curl -sf -m 10 "http://$address/cluster/allocation?job=$job" | from_json '
    const rows = input.allocations
      .sort((a, b) => a.slot - b.slot)
      .map((a) => [a.job_id, a.service_name, a.slot, a.state, a.node_address, (a.container_id ?? "").slice(0, 12)].map(String));
    rows.unshift(["JOB", "SERVICE", "SLOT", "STATE", "NODE", "CONTAINER"]);
    const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
    for (const row of rows) console.log("  " + row.map((cell, column) => cell.padEnd(widths[column])).join("  ").trimEnd());
  '
  say "" "The node runs on in the background, its log is $node_log. Look around:" "" \
    "  curl $address/cluster/job/$job" \
    "  curl $address/cluster/resources" \
    "  curl -X PUT $address/cluster/job/cloud --data-binary @examples/web-app.yml" \
    "  docker ps" "" \
    "npm stop ends it and removes the example."
}

main
