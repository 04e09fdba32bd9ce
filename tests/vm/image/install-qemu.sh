#!/bin/bash
# Installs QEMU on Debian 12, from its backports: that release's own QEMU would remove a
# qemu-utils that came from there. The host's sources and lists are left alone.
set -euo pipefail

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror=$("$(dirname "$0")/mirror.sh")

mkdir -p "$work/lists/partial"
cat >"$work/list" <<LIST
deb [signed-by=$keyring] $mirror bookworm main
deb [signed-by=$keyring] ${mirror%/debian}/debian-security bookworm-security main
deb [signed-by=$keyring] $mirror bookworm-backports main
LIST
apt_here() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -o Dir::Etc::sourcelist="$work/list" \
    -o Dir::Etc::sourceparts=/dev/null -o Dir::State::Lists="$work/lists" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o DPkg::Lock::Timeout=600 "$@"
}
apt_here update
apt_here install -y --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils
