#!/bin/bash
# about: the tests of forebay-host that change a real kernel, on control groups v2 alone
# needs: contract kernel crash freeze network oom partition
# kernels: stable old
# routine: stable
# machine: --smp 4 --mem 2048
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
before=$(cat /sys/fs/cgroup/cgroup.subtree_control)
# /tmp is in memory here; the tests want a disk.
export TMPDIR=/var/tmp
cd /var/tmp
# Without swap the limits of swap would go untested.
dd if=/dev/zero of=swap bs=1M count=64 status=none
chmod 600 swap
mkswap -q swap
swapon swap
# And without zswap those of zswap.
echo 1 >/sys/module/zswap/parameters/enabled
for name in contract kernel crash freeze network oom partition; do
  echo "== $name"
  /host/bin/$name --test-threads=1 --show-output
done
after=$(cat /sys/fs/cgroup/cgroup.subtree_control)
[ "$before" = "$after" ] || { echo "cgroup.subtree_control was '$before', is '$after'"; exit 1; }
