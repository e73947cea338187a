#!/bin/sh
# Writes the root file system of a small `busybox` image to standard output, as a tar for `docker import`.
# Made from Debian's busybox-static, for machines that reach no registry: the applets are links, as in the official image.
set -eu

busybox=$(command -v busybox) || {
  echo "busybox_image: no busybox on this machine: apt-get install busybox-static" >&2
  exit 1
}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# Permissions are set here, not left to the caller's umask: an image whose / is 0700 is of no use to `user:`.
umask 022
chmod 755 "$root"
mkdir "$root/bin" "$root/etc" "$root/root" "$root/usr" "$root/usr/bin" "$root/var" "$root/tmp"
chmod 1777 "$root/tmp"
cp "$busybox" "$root/bin/busybox"
"$busybox" --list | while read -r applet; do
  [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
ln -s /bin/env "$root/usr/bin/env"
echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false' >"$root/etc/passwd"
echo 'root:x:0:
nobody:x:65534:' >"$root/etc/group"

tar -C "$root" --owner=0 --group=0 -cf - .
