#!/bin/bash
# Builds the guest image of `cargo xtask vm` into the directory CACHE:
# root.ext4, and vmlinux-KIND, vmlinuz-KIND and initrd-KIND.cpio for each kernel.
#
#   build.sh CACHE
#
# The kernels are Debian 12's (`old`, 6.1) and Debian 13's (`stable`, 6.12).
# apt works with sources and lists of its own: the host's are left alone.
set -euo pipefail

cache=$1
here=$(cd "$(dirname "$0")" && pwd)
suite=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'rm -rf "$work"' EXIT

mirror=$("$here/mirror.sh")

packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,util-linux,e2fsprogs,numactl,python3-minimal
# Runtimes of containers, and all that is in the containers.
packages+=,podman,crun,docker.io,docker-cli,runc,busybox-static
# What loads RDMA at run time finds, and what several hosts share.
packages+=,librdmacm1,ibverbs-providers,etcd-server
# What is kept over a reboot, by what, and what starts another kernel.
packages+=,redis-server,criu,kexec-tools,libpython3-stdlib

# What of the kernel's modules a guest can use; the rest drives hardware that QEMU does not show.
modules='^kernel/(arch|block|crypto|fs|lib|mm|net/(9p|core|ipv4|ipv6|sched|netfilter|unix)|drivers/(block|md|virtio|char|infiniband/(core|sw)|net/[^/]*\.ko|nvme))'

# What has to be loaded before the root can be mounted.
early='virtio_pci virtio_blk virtio_console virtio_rng ext4 9pnet_virtio 9p'

sources() { # NAME SUITE...
  local name=$1 each
  shift
  mkdir -p "$work/apt/$name/partial"
  for each in "$@"; do
    local from=$mirror
    case $each in *-security) from=${mirror%/debian}/debian-security ;; esac
    echo "deb [signed-by=$keyring] $from $each main"
  done >"$work/apt/$name.list"
}

apt_from() { # NAME COMMAND ARGS...
  local name=$1 command=$2
  shift 2
  "$command" -q -o Dir::Etc::sourcelist="$work/apt/$name.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::Lists="$work/apt/$name" -o Dir::Cache="$work/apt/cache-$name" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none "$@"
}

kernel() { # KIND SOURCES
  local kind=$1 from=$2 tree=$work/kernel-$1 package version image
  mkdir -p "$tree/x" "$tree/root/usr/lib/modules" "$work/apt/cache-$from/archives/partial"
  package=$(apt_from "$from" apt-cache depends linux-image-amd64 |
    awk '/Depends: linux-image-[0-9]/ && !found {print $2; found = 1}')
  (cd "$tree" && apt_from "$from" apt-get download "$package" >/dev/null)
  dpkg -x "$tree"/*.deb "$tree/x"
  local installed=$tree/x/lib/modules
  [ -d "$installed" ] || installed=$tree/x/usr/lib/modules
  version=$(ls "$installed")
  image=$(ls "$tree"/x/boot/vmlinuz-*)
  # QEMU starts an uncompressed kernel directly: unpacking it under emulation takes seconds.
  python3 "$here/unpack-kernel.py" "$image" "$work/vmlinux-$kind"
  cp "$image" "$work/vmlinuz-$kind"

  local kept=$tree/root/usr/lib/modules/$version
  mkdir -p "$kept"
  ln -s usr/lib "$tree/root/lib"
  cp "$installed/$version/"modules.{builtin,builtin.modinfo,order} "$kept/"
  (cd "$installed/$version" && find kernel -name '*.ko*' | grep -E "$modules" | cpio -pdm --quiet "$kept")
  find "$kept" -name '*.xz' -print0 | xargs -0 -r -n 40 xz -d
  depmod -b "$tree/root" "$version"
  initrd "$kind" "$version"
  # As a distribution has them, for kexec.
  mkdir -p "$tree/root/boot"
  cp "$image" "$tree/root/boot/vmlinuz-$version"
  cp "$work/initrd-$kind.cpio" "$tree/root/boot/initrd.img-$version"
  rm -rf "$tree/x"
}

initrd() { # KIND VERSION
  local tree=$work/kernel-$1 top=$work/kernel-$1/initrd module
  mkdir -p "$top"/{bin,proc,sys,dev,root,modules}
  cp "$(command -v busybox)" "$top/bin/busybox"
  for module in $early; do
    modprobe -d "$tree/root" -S "$2" --show-depends "$module" 2>/dev/null | awk '/^insmod/ {print $2}' || true
  done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" "$top/modules/"
    basename "$module"
  done >"$top/order"
  cp "$here/initrd-init" "$top/init"
  chmod 755 "$top/init"
  (cd "$top" && find . | cpio -o -H newc --quiet) >"$work/initrd-$1.cpio"
}

root() { # KIND...
  local tree=$work/root kind unit
  mmdebstrap --quiet --variant=minbase --include="$packages" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$tree" "$work/apt/new.list"
  for kind in "$@"; do
    cp -a "$work/kernel-$kind/root/usr/lib/modules" "$tree/usr/lib/"
    mkdir -p "$tree/boot"
    cp "$work/kernel-$kind/root/boot/"* "$tree/boot/"
  done
  echo guest >"$tree/etc/hostname"
  echo '127.0.0.1 localhost' >"$tree/etc/hosts"
  : >"$tree/etc/fstab"
  # Otherwise the first boot sets every unit to its preset and asks questions.
  systemd-id128 new >"$tree/etc/machine-id" 2>/dev/null || tr -d - </proc/sys/kernel/random/uuid >"$tree/etc/machine-id"
  mkdir -p "$tree/host"
  install -m 755 "$here/agent" "$here/bare-init" "$tree/usr/local/sbin/"
  install -m 644 "$here/forebay-agent.service" "$tree/etc/systemd/system/"
  mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
  ln -s ../forebay-agent.service "$tree/etc/systemd/system/multi-user.target.wants/"
  ln -sf /usr/lib/systemd/system/multi-user.target "$tree/etc/systemd/system/default.target"
  # Work that delays a boot and that no scenario looks at.
  for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer ldconfig.service systemd-hwdb-update.service \
    systemd-update-done.service systemd-random-seed.service systemd-firstboot.service \
    systemd-timesyncd.service getty@tty1.service systemd-networkd.service systemd-resolved.service \
    systemd-journal-flush.service systemd-journal-catalog-update.service \
    docker.service docker.socket containerd.service podman.service podman.socket podman-restart.service \
    podman-auto-update.service podman-auto-update.timer podman-clean-transient.service etcd.service \
    redis-server.service kexec.service kexec-load.service; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
  done
  truncate -s 2G "$work/root.ext4"
  mkfs.ext4 -q -F -O ^has_journal,^metadata_csum -E lazy_itable_init=1,nodiscard -m 0 -d "$tree" "$work/root.ext4"
}

sources new $suite $suite-updates $suite-security
sources old bookworm bookworm-security
echo "vm: reading the package lists of $mirror"
apt_from new apt-get update >/dev/null
apt_from old apt-get update >/dev/null
for kind in stable old; do
  echo "vm: kernel $kind"
  case $kind in stable) kernel stable new ;; old) kernel old old ;; esac
done
echo "vm: root file system ($suite)"
root stable old
mv "$work"/vmlinux-* "$work"/vmlinuz-* "$work"/initrd-*.cpio "$work/root.ext4" "$cache/"
