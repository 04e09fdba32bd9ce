#!/bin/bash
# about: a client of a front keeps its one connection over a kexec into another kernel: nothing fails, nothing is done twice
# kernels: old
# routine: none
# machine: --smp 2 --mem 1024 --reboots --forward 8080
# seconds: 1200
# Begun again after the boot: $home/stage says how far it is. The client is outside the guest.
set -eu
. /host/tests/update-steps

install() {
  install_network
  install_apps
  cp /host/tests/counter.py .
  cat >>/etc/forebay.toml <<TOML
[apps.counter]
class = "critical"
restart = "always"
directory = "$home"
exec = ["python3", "-B", "$home/counter.py", "7101"]
images = { every = "1h" }
stdout = "$home/counter.log"
stderr = "$home/counter.log"
[fronts.site]
mode = "http"
listen = ["0.0.0.0:8080"]
instances = { counter = "127.0.0.1:7101" }
TOML
  systemctl daemon-reload
  systemctl enable --now net forebay
}

is_warm() { $forebay shadow status site --json | tr -d ' \n' | grep -q '"stage":"warm"'; }

stage=$(cat stage 2>/dev/null || echo install)
echo "== $stage, kernel $(uname -r)"
case $stage in
install)
  install
  await "the service answers" ledger_answers
  await "the front serves" is_warm
  await "the first images" imaged 3
  uname -r >kernel
  next kexec
  echo "mark: hold client 8080"
  sleep 2
  update
  gone
  ;;
kexec)
  await "the update is over" over committed
  [ "$(uname -r)" != "$(cat kernel)" ] || fail "the same kernel runs: $(uname -r)"
  $forebay update history
  echo "mark: held client"
  receipt=$($forebay update history --json | tr -d ' \n')
  echo "$receipt" | grep -qE '"front":"site",[^}]*"kept":1' || fail "it was not written down: $receipt"
  echo "$receipt" | grep -qE '"front":"site",[^}]*"back":1' || fail "it did not go on: $receipt"
  echo "table: update-clients: one connection over a kexec, under $(uname -r)"
  ;;
esac
