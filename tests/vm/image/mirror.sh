#!/bin/bash
# Prints the Debian mirror that this host uses.
set -euo pipefail
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
  grep -v '^#' | grep -Eo 'https?://[^ ]+/debian/?( |$)' | head -n 1 | sed 's|/* *$||' || true)
echo "${mirror:-http://deb.debian.org/debian}"
