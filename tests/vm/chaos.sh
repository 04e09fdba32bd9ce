#!/bin/bash
# about: the daemon killed at 10 random moments; every knob is taken over or put back
# kernels: stable old
# routine: stable
# machine: --smp 4 --mem 1024
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
export TMPDIR=/var/tmp
cd /var/tmp
/host/bin/forebay chaos --kills 10
