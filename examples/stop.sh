#!/bin/sh
# What `npm stop` runs: removes the example job with its containers, and ends the node that `npm start` began, and the
# Docker Engine if that was begun too and nothing else runs on it. Other jobs' containers keep running, as after any stop.
set -eu
cd "$(dirname "$0")/.."
. examples/node.sh

main() {
  if pid=$(live_pid "$node_pid" "$executable"); then
    if node_answers; then
      remove_example
      others=$(other_jobs)
      [ -z "$others" ] || say "Containers of these jobs keep running: $others"
    else
      say "The node does not answer at $address: its containers stay."
    fi
    end "$pid" || die "npm stop: the node (process $pid) did not end within 10 s of SIGTERM; see $node_log"
    say "The node has ended. Its data is kept in $data; npm start goes on from there."
  elif node_answers; then
    say "The node at $address was not begun by npm start: it stays."
  else
    say "No node of npm start is running."
  fi
  rm -f "$node_pid"
  if pid=$(live_pid "$dockerd_pid" "$(readlink -f "$(command -v dockerd)")"); then end_engine "$pid"; fi
}

remove_example() {
  status=$(curl -sS -m 30 -o /dev/null -w '%{http_code}' -X DELETE "$address/cluster/job/$job")
  case $status in
    2??)
      wait_until 60 none_left || die "npm stop: containers of $job are still there after 60 s; see $node_log"
      say "The job $job and its containers are removed."
      ;;
    404) ;;
    *) say "The node answered $status to the removal of $job: its containers stay." ;;
  esac
}

other_jobs() {
  curl -sf -m 10 "http://$address/cluster/job" | from_json "console.log(Object.keys(input).filter((id) => id !== '$job').join(' '))"
}

none_left() { [ -z "$(states)" ]; }

# SIGTERM, and whether the process is gone within 10 s.
end() {
  kill -TERM "$1"
  wait_until 10 gone "$1"
}

end_engine() {
  running=$(curl -s -m 10 --unix-socket /var/run/docker.sock http://docker/containers/json |
    from_json 'console.log(input.length)') || running=unknown
  if [ "$running" = 0 ]; then
    end "$1" || die "npm stop: the Docker Engine (process $1) did not end within 10 s of SIGTERM; see $dockerd_log"
    rm -f "$dockerd_pid"
    say "The Docker Engine that npm start began has ended."
  else
    say "The Docker Engine that npm start began stays, for containers run on it ($running): docker ps"
  fi
}

main
