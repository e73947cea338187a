# What start.sh and stop.sh share: where the node of `npm start` has its things, and how to ask it. Sourced, not run.

export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

# The same variables and defaults as the command's own options.
address=${CACOPHONY_BIND_ADDR:-127.0.0.1:9000}
if [ -n "${CACOPHONY_DATA_DIR:-}" ]; then
  data=$CACOPHONY_DATA_DIR
elif [ "$(id -u)" -eq 0 ]; then
  data=/var/lib/cacophony
else
  data=${XDG_DATA_HOME:-$HOME/.local/share}/cacophony
fi
data=$(readlink -m "$data")

# Node and engine are asked directly, whatever proxy the way to the internet takes.
no_proxy=${address%:*},docker,${no_proxy:-${NO_PROXY:-}}
NO_PROXY=$no_proxy
export no_proxy NO_PROXY

# A copy of the executable, so that the node does not depend on the clone; and what `npm stop` has to know.
executable=$data/bin/cacophony
node_pid=$data/npm-start/node.pid
node_log=$data/npm-start/node.log
dockerd_pid=$data/npm-start/dockerd.pid
dockerd_log=$data/npm-start/dockerd.log

job=my-job-id

# Each argument is a line.
say() { printf '%s\n' "$@"; }
die() {
  say "$@" >&2
  exit 1
}

# Prints the process id in a file if that process lives and runs the executable that it should.
live_pid() {
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && ! gone "$pid" || return 1
  case $(readlink "/proc/$pid/exe") in
    "$2" | "$2 (deleted)") echo "$pid" ;;
    *) return 1 ;;
  esac
}

# A process that has ended but that its parent has not reaped is gone, too: it has no executable any more.
gone() { ! readlink "/proc/$1/exe" >/dev/null 2>&1; }

# wait_until SECONDS COMMAND...: whether the command succeeded within that time.
wait_until() {
  deadline=$(($(date +%s) + $1))
  shift
  until "$@"; do
    [ "$(date +%s)" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

node_answers() { curl -sf -m 5 "http://$address/cluster/status" >/dev/null 2>&1; }

# Prints the states of the example's allocations, one a line.
states() {
  allocations=$(curl -sf -m 10 "http://$address/cluster/allocation?job=$job") || return 1
  say "$allocations" | from_json 'for (const a of input.allocations) console.log(a.state)'
}

# Runs a line of JavaScript with the JSON on standard input as `input`.
from_json() { node -e "const input = JSON.parse(require('fs').readFileSync(0, 'utf8')); $1"; }
