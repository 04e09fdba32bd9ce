#!/bin/bash
# about: a process moves between two daemons with its memory, by CRIU over soft-RoCE, and comes whole
# kernels: stable
# machine: --smp 4 --mem 1536
# routine: none
# needs: daemon
# seconds: 1500
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
own_programs

soft_roce
criu check || fail "CRIU does not work here"

./daemon --test-threads=1 --show-output rdma::a_process
