#!/bin/sh
# What `npm test` runs: installs what is missing, builds, checks, and runs every test, the lab of real Docker Engines
# included. Needs Debian, root, and Node.js with npm. Its last line is `N passed, N failed`, from the test runner's counts.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH:/usr/sbin:/sbin"

# Seconds for everything, from an empty checkout to the last line; two quiet cores take about a third of it.
limit=1200
started=$(date +%s)

if [ "$(id -u)" -ne 0 ]; then
  echo "npm test: the tests make network namespaces and start Docker Engines of their own: run it as root" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Whether node_modules holds what package.json asks for; true for a checkout where somebody just added a package, too.
if ! npm ls >/dev/null 2>&1; then
  echo "Installing the npm packages..."
  npm ci --no-audit --no-fund >"$work/npm.log" 2>&1 || {
    cat "$work/npm.log" >&2
    exit 1
  }
fi
sh tests/setup.sh
npm run --silent build

failed=
npm run --silent check || failed="the check of types, style or format failed, see above"

# An environment of its own: no proxy, DOCKER_HOST or CACOPHONY_ setting of the caller's reaches a test. `timeout` asks the
# runner to end with SIGTERM, upon which a running lab removes itself.
left=$((limit - $(date +%s) + started))
{
  status=0
  env -i PATH="$PATH" HOME="${HOME:-/root}" LANG=C.UTF-8 TERM="${TERM:-dumb}" ${CI:+CI="$CI"} \
    timeout --foreground -k 20 "$left" bun test --timeout 60000 2>&1 || status=$?
  echo "$status" >"$work/status"
} | tee "$work/output"

status=$(cat "$work/status")
count() { tail -n 20 "$work/output" | sed -n "s/^ *\([0-9][0-9]*\) $1\$/\1/p" | tail -n 1 | grep . || echo 0; }
passed=$(count pass)
broken=$(count fail)
skipped=$(($(count skip) + $(count todo)))

if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
  failed="the tests were not done after $left seconds"
elif [ "$status" -ne 0 ] && [ "$broken" -eq 0 ]; then
  failed="the test runner exited with $status"
elif [ "$((passed + broken))" -eq 0 ]; then
  failed="no test ran"
fi
[ -z "$failed" ] || echo "npm test: $failed" >&2
[ "$skipped" -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $broken failed"
[ -z "$failed" ] && [ "$broken" -eq 0 ]
