#!/bin/bash
# about: the power is cut before and after each write of the journal of an update that keeps applications over a reboot
# kernels: old
# routine: none
# machine: --smp 2 --mem 1024 --disk 256M --reboots
# seconds: 7200
# Begun again after each boot. $home/stage: which cut it is, as BOOT:MOMENT: the boot that it is tried in (1: that which
# the update began in) and the write, where odd ones are before and even ones after it. `late`: once the images are
# whole, and all services have ended.
set -eu
home=/var/lib/update-test
state=/disk/forebay
mkdir -p $home
cd $home
. /host/tests/steps
. /host/tests/update-steps

install() {
  mkfs.ext4 -q /dev/vdb
  cat >/etc/systemd/system/disk.mount <<'UNIT'
[Unit]
Before=local-fs.target
[Mount]
What=/dev/vdb
Where=/disk
Type=ext4
[Install]
WantedBy=local-fs.target
UNIT
  # Which write the daemon dies at, if it is its turn in this boot.
  cat >prepare <<'SH'
#!/bin/sh
cd /var/lib/update-test
grep -o '"stage":[^,]*' /disk/forebay/update.json 2>/dev/null | head -n 1 >/run/found
rm -f /run/dies
read -r boot moment first <turn || exit 0
here=$(cat /proc/sys/kernel/random/boot_id)
case $boot in
1) [ "$here" = "$first" ] || exit 0 ;;
2) [ "$here" != "$first" ] || exit 0 ;;
*) exit 0 ;;
esac
echo "FOREBAY_UPDATE_DIES_AT=$moment" >/run/dies
# In this boot, and in none after it. Nothing of the disk that is looked at is synced by that.
[ "$boot" = 1 ] || { echo over >turn; sync turn; }
SH
  # It died, or it ended with the host: the power goes.
  cat >stopped <<'SH'
#!/bin/sh
cd /var/lib/update-test
read -r turn rest <turn
if [ -e /run/dies ] && [ "$EXIT_STATUS" = KILL ]; then
  touch /run/cut
  sleep 1000
elif [ "$turn" = late ] && [ "$SERVICE_RESULT" = success ] && [ -e /run/asked ]; then
  echo cut >turn
  sync turn
  for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" = forebay ] && printf '\nmark: cut\n' >/dev/"$(basename "$(dirname "$name")")"
  done
  sleep 1000
fi
SH
  chmod +x prepare stopped
  install_apps ExecStartPre=$home/prepare ExecStopPost=$home/stopped EnvironmentFile=-/run/dies
  sed -i 's|^After=.*|&\nRequiresMountsFor=/disk|' /etc/systemd/system/forebay.service
  # Through the firmware, which is quicker here.
  mv /usr/sbin/kexec $home/
  echo none >turn
  echo 0 >receipts
  systemctl daemon-reload
  systemctl enable --now disk.mount forebay
}

receipts() {
  $forebay update history --json | tr -d ' \n' | grep -o '"outcome":"[a-z_]*"' | cut -d'"' -f4
}

is_idle() { $forebay update status --json 2>/dev/null | tr -d ' \n' | grep -q '"current":null'; }

begin() { # BOOT:MOMENT or late
  local boot=${1%:*} moment=${1#*:}
  await "redis answers" redis_answers
  await "the service answers" ledger_answers
  rm -f ran cut-at /run/asked
  echo "$boot $moment $(cat /proc/sys/kernel/random/boot_id)" >turn
  receipts | wc -l >receipts
  systemctl restart forebay
  await "the daemon answers" $forebay status >/dev/null
  await "redis answers" redis_answers
  await "the service answers" ledger_answers
  fill "at-$1-"
  next "$1"
  touch /run/asked
  $forebay update run --detach --unproved --rung checkpoint --rollback "rm -f $home/ran" \
    -- sh -c "echo x >>$home/ran" || true
}

ended() { # whether the power was cut, the update is over, or there is none
  [ -e /run/cut ] && return
  is_idle || return
  # Before the first write nothing was promised.
  [ "$(receipts | wc -l)" -gt "$(cat receipts)" ] || { [ "$stage" = 1:1 ] && [ -e cut-at ]; }
}

verify() { # prints what came of it
  local outcome=none kept=kept found
  [ "$(receipts | wc -l)" -eq "$(cat receipts)" ] || outcome=$(receipts | tail -n 1)
  await "redis answers" redis_answers
  await "the service answers" ledger_answers
  [ "$(pgrep -c redis-server)" = 1 ] || fail "$stage: more than one redis"
  [ "$(pgrep -cf ledger.py)" = 1 ] || fail "$stage: more than one ledger"
  [ "$(redis_sum) $(ledger_sum)" = "$(cat redis.sum) $(cat ledger.sum)" ] || kept=lost
  found=$(cat cut-at 2>/dev/null || echo "not cut")
  case "$outcome $(cat ran 2>/dev/null | tr -d '\n')" in
  "committed x" | "rolled_back " | "alarmed x" | "alarmed " | "none ") ;;
  *) fail "$stage: $outcome, and the command: $(cat ran)" ;;
  esac
  case "$found $kept $outcome" in
  # What was written down is there, and what was lost with the power while it was kept is told.
  *" kept "* | *departing*" lost alarmed" | *reviving*" lost alarmed") ;;
  # Before anything is kept, and after it was taken up again, the power takes what is in memory.
  *planned*lost* | *locked*lost* | *isolated*lost* | *synced*lost* | *updating*lost*) ;;
  *restoring*lost* | *verifying*lost* | *closing*lost* | *over*lost* | *rolled*lost* | "none lost none" | " lost none") ;;
  *) fail "$stage: cut with $found on disk: $outcome, and what apps had is $kept" ;;
  esac
  [ "$stage" != late ] || [ "$kept $outcome" = "kept committed" ] || fail "late: $kept, $outcome"
  echo "table: cut at $stage, on disk $found: $outcome, the command ran $(cat ran 2>/dev/null | wc -l) times, memory $kept"
}

follow() { # which cut comes next
  case $stage in
  late) echo over ;;
  1:*) [ -e cut-at ] && echo "1:$((${stage#*:} + 1))" || echo 2:1 ;;
  2:*) [ -e cut-at ] && echo "2:$((${stage#*:} + 1))" || echo late ;;
  esac
}

stage=$(cat stage 2>/dev/null || echo install)
if [ "$stage" = install ]; then
  install
  stage=1:1
  begin "$stage"
else
  await "the disk is there" mountpoint -q /disk
  await "the daemon answers" $forebay status >/dev/null
fi
while [ "$stage" != over ]; do
  deadline=$((SECONDS + 600))
  # A cut of before: this is the boot after it.
  if [ "$(cat power 2>/dev/null)" = cut ] || [ "$(cat turn)" = cut ]; then
    echo on >power
    [ "$(cat turn)" != cut ] || echo over >turn
    cat /run/found >cut-at
    sync power turn cut-at
  fi
  until ended; do
    [ $SECONDS -lt $deadline ] || fail "$stage: it is not over"
    sleep 0.2
  done
  if [ -e /run/cut ]; then
    echo cut >power
    sync power
    echo "mark: cut"
    sleep 1000
  fi
  verify
  stage=$(follow)
  [ "$stage" = over ] || begin "$stage"
done
