#!/bin/sh
# What `npm test` runs: installs what is missing, builds, checks, and runs every test, the lab of real Docker Engines
# included. Needs Debian, root, and Node.js with npm. Its last line is `N passed, N failed`, from the test runner's counts.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/node_modules/.bin:$PATH:/usr/sbin:/sbin"

# Seconds for everything, from an empty checkout to the last line; two quiet cores take less than half of it.
limit=3000
deadline=$(($(date +%s) + limit))

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

# ---- Running ----------------------------------------------------------------------------------------------------------

# A part is what one process of the test runner runs: each file that uses the lab, and all other files together. One after the
# other, since much in the lab has to be done within seconds.
labs=$(cd tests && grep -l 'from "\./lab' *.test.ts | tr '\n' ' ')
parts="others $labs"

files_of() {
  [ "$1" = others ] || {
    echo "./tests/$1"
    return
  }
  for file in tests/*.test.ts; do
    case " $labs " in *" ${file#tests/} "*) ;; *) echo "./$file" ;; esac
  done
}

# An environment of its own: no proxy, DOCKER_HOST or CACOPHONY_ setting of the caller's reaches a test. `timeout` asks the
# runner, and not what that has started, to end with SIGTERM.
run_part() {
  : >"$work/$1/output"
  left=$((deadline - $(date +%s)))
  status=124
  if [ "$left" -gt 0 ]; then
    env -i PATH="$PATH" HOME="${HOME:-/root}" LANG=C.UTF-8 TERM="${TERM:-dumb}" ${CI:+CI="$CI"} \
      timeout --foreground -k 20 "$left" bun test --timeout 60000 $(files_of "$1") >"$work/$1/output" 2>&1 &
    child=$!
    await_end "$child"
    child=
  fi
  echo "$status" >"$work/$1/status"
}

# A signal ends `wait` before the process ends.
await_end() {
  while :; do
    status=0
    wait "$1" || status=$?
    kill -0 "$1" 2>/dev/null || return 0
  done
}

# Told to end by SIGTERM, it tells its part, upon which a running lab removes itself, and waits for that.
child=
told="it was told to end"
trap 'failed=$told; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' INT TERM
for part in $parts; do
  [ "$failed" != "$told" ] || break
  mkdir "$work/$part"
  began=$(date +%s)
  run_part "$part"
  echo
  echo "==== $part, $(($(date +%s) - began)) s ===="
  cat "$work/$part/output"
done

# ---- What came of it --------------------------------------------------------------------------------------------------

passed=0
broken=0
skipped=0
files=0
# Number before a word on a line of its own, at the end of a part's output.
count() { tail -n 20 "$work/$part/output" | sed -n "s/^ *\([0-9][0-9]*\) $1\$/\1/p" | tail -n 1 | grep . || echo 0; }
for part in $parts; do
  status=$(cat "$work/$part/status" 2>/dev/null || echo none)
  [ "$status" != none ] || continue
  part_passed=$(count pass)
  part_broken=$(count fail)
  passed=$((passed + part_passed))
  broken=$((broken + part_broken))
  skipped=$((skipped + $(count skip) + $(count todo)))
  ran=$(sed -n 's/^Ran .* across \([0-9][0-9]*\) files\{0,1\}\..*/\1/p' "$work/$part/output" | tail -n 1)
  files=$((files + ${ran:-0}))
  if [ "$status" -eq 124 ] || { [ "$status" -eq 137 ] && [ "$(date +%s)" -ge "$deadline" ]; }; then
    failed=${failed:-"the tests were not done after $limit seconds ($part)"}
  elif [ "$status" -ne 0 ] && [ "$part_broken" -eq 0 ]; then
    failed=${failed:-"the test runner exited with $status ($part)"}
  elif [ "$((part_passed + part_broken))" -eq 0 ]; then
    failed=${failed:-"no test ran ($part)"}
  fi
done
all=$(find tests -maxdepth 1 -name '*.test.ts' | wc -l)
[ "$files" -eq "$all" ] || failed=${failed:-"only $files of $all files were run"}
# What failed, once more, where nobody has to look for it: what was printed since the test before it had ended.
for part in $parts; do
  ! grep -qs '^(fail) ' "$work/$part/output" || awk -v part="$part" '
    { lines[++n] = $0 }
    /^\((pass|skip|todo)\) / { n = 0 }
    /^\(fail\) / {
      if (!seen[$0]++) {
        print "\n==== failed in " part " ===="
        for (i = n > 150 ? n - 149 : 1; i <= n; i++) print lines[i]
      }
      n = 0
    }' "$work/$part/output"
done
echo
[ -z "$failed" ] || echo "npm test: $failed" >&2
[ "$skipped" -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $broken failed"
[ -z "$failed" ] && [ "$broken" -eq 0 ]
