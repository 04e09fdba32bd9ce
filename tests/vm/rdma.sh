#!/bin/bash
# about: what moves between two daemons goes over soft-RoCE and comes whole; doctor says whether there is RDMA
# kernels: stable
# machine: --smp 4 --mem 1536
# seconds: 1500
set -eu
systemctl is-system-running --wait >/dev/null || true
export TMPDIR=/var/tmp
cd /var/tmp
. /host/tests/steps
# Programs that run often are read from the guest's own disk.
cp /host/bin/forebay /host/bin/daemon .
forebay=/var/tmp/forebay
export FOREBAY_EXE=$forebay

doctor_says() { # WORDS
  $forebay doctor | grep RDMA | grep -q "$1"
}

echo "== without a device"
doctor_says "no device" || fail "doctor says otherwise: $($forebay doctor | grep RDMA)"

echo "== soft-RoCE on a dummy link"
modprobe rdma_rxe
modprobe rdma_ucm
ip link add dummy0 type dummy
ip address add 10.77.0.1/24 dev dummy0
ip link set dummy0 up
rdma link add rxe0 type rxe netdev dummy0
await "its port is active" grep -q ACTIVE /sys/class/infiniband/rxe0/ports/1/state
await "connections can be made" test -c /dev/infiniband/rdma_cm
doctor_says rxe0 || fail "doctor says otherwise: $($forebay doctor | grep RDMA)"

export FOREBAY_TEST_RDMA=10.77.0.1
./daemon --test-threads=1 --show-output rdma::
