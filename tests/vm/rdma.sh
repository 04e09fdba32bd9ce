#!/bin/bash
# about: what moves between two daemons goes over soft-RoCE and comes whole; doctor says whether there is RDMA
# kernels: stable
# routine: none
# machine: --smp 4 --mem 1536
# needs: daemon
# seconds: 1500
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
own_programs

echo "== without a device"
doctor_says "no device" || fail "doctor says otherwise: $($forebay doctor | grep RDMA)"

echo "== soft-RoCE on a dummy link"
soft_roce

./daemon --test-threads=1 --show-output rdma::what_moves
