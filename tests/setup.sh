#!/bin/sh
# Installs the Debian packages that the tests need and that are missing. Says nothing when nothing is missing.
# Starts no service: the tests run their own Docker Engines and registry, and touch no other.
set -eu
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

# Package of each command, for one that is missing. Debian 13 has the docker command in a package of its own.
missing() {
  command -v dockerd >/dev/null || echo docker.io
  command -v docker >/dev/null || { apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli || echo docker.io; }
  command -v docker-compose >/dev/null || echo docker-compose
  command -v docker-registry >/dev/null || echo docker-registry
  command -v ip >/dev/null || echo iproute2
  command -v iptables >/dev/null || echo iptables
  command -v nsenter >/dev/null || echo util-linux
  command -v curl >/dev/null || echo curl
  command -v haproxy >/dev/null || echo haproxy
  command -v caddy >/dev/null || echo caddy
  command -v prometheus >/dev/null || echo prometheus
  # For the executable that is linked with musl.
  if [ "$(uname -m)" = x86_64 ]; then
    command -v tcc >/dev/null || echo tcc
    [ -e /lib/ld-musl-x86_64.so.1 ] || echo musl
    ldconfig -p | grep -q 'libstdc++\.so\.6 .*x86-64' || echo libstdc++6
  fi
  dpkg-query -W -f '${db:Status-Abbrev}' busybox-static 2>/dev/null | grep -q ^ii || echo busybox-static
}

[ -n "$(missing)" ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup: the tests need these, and without apt-get they have to be installed by hand:" $(missing) >&2
  exit 1
fi

# Debian's own switch against starting services on installation; an administrator's file of that name stays as it is.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
made_policy=
trap 'rm -f "$log"; [ -z "$made_policy" ] || rm -f "$policy"' EXIT
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  made_policy=yes
fi

apt() {
  apt-get -y -q "$@" >"$log" 2>&1 </dev/null || {
    cat "$log" >&2
    echo "setup: apt-get $* failed" >&2
    exit 1
  }
}

apt update
packages=$(missing | sort -u | tr '\n' ' ')
echo "Installing $packages..."
apt install --no-install-recommends $packages

# The tests run these three in containers of their own: a service of theirs has no place on port 80 after the next boot.
for service in haproxy caddy prometheus; do
  case " $packages" in
    *" $service "*) ! command -v systemctl >/dev/null || systemctl --quiet disable "$service" 2>/dev/null || true ;;
  esac
done
