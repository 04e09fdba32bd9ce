#!/bin/bash
# about: the power is cut after each write of the journal of an update that keeps an application over a reboot, and for the reboot
# kernels: old
# routine: none
# machine: --smp 2 --mem 1024 --disk 512M --init bare --reboots
# seconds: 1800
# Begun again after each boot. One update after the other, each with two cuts beside the one that is its reboot: after a
# write of the daemon that it began with ($notes/one), and after one of the daemon after the reboot ($notes/two), until
# neither has a further one. A cut before a write finds what the write before it left, and what was done since: core's
# tests enumerate those, and here it is tried where the command has ended and that is not written yet.
# What the script notes is on another file system, so that it makes nothing of Forebay's durable.
set -eu
notes=/var/lib/cuts
home=/disk
mkdir -p $notes $home
[ "$(blkid -o value -s TYPE /dev/vdb)" = ext4 ] || mkfs.ext4 -q /dev/vdb
mountpoint -q $home || mount /dev/vdb $home
. /host/tests/update-steps
forebay=$home/bin/forebay
state=$home/state
daemon=
# The write by which the command's end becomes known, and the moment before it.
ended=12

evidence() {
  tail -n 60 daemon.log || true
  $forebay update status || true
  $forebay update history || true
  $forebay events --app cache | tail -n 20 || true
}

note() { # FILE TEXT: durable, and nothing else is by that
  echo "$2" >"$notes/$1"
  sync "$notes/$1"
}

noted() { cat "$notes/$1"; }

install() {
  mkdir -p bin
  cp /host/bin/forebay bin/
  # The power goes in its place: what it would have written to disks is not.
  printf '#!/bin/sh\ntouch /run/asked\n' >bin/reboot
  chmod +x bin/reboot
  # Through the firmware, which is quicker here.
  mv /usr/sbin/kexec $home/
  cat >forebay.toml <<TOML
[daemon]
state_dir = "$state"
[apps.cache]
class = "standard"
restart = "always"
directory = "$home"
exec = ["redis-server", "--bind", "127.0.0.1", "--save", ""]
images = { every = "1h" }
stdout = "$home/redis.log"
stderr = "$home/redis.log"
TOML
  for each in phase one two receipts sum found; do note $each ''; done
  note one 2
  note two 2
  sync
}

begin_daemon() { # [MOMENT]: that it dies at
  PATH=$home/bin:$PATH FOREBAY_UPDATE_DIES_AT=${1:-} setsid $forebay daemon --config forebay.toml \
    >>daemon.log 2>&1 </dev/null &
  daemon=$!
}

is_dead() { ! kill -0 "$daemon" 2>/dev/null || grep -q '^State:.Z' "/proc/$daemon/status"; }
answers() { $forebay status >/dev/null 2>&1; }
receipts() { $forebay update history --json | tr -d ' \n' | grep -o '"outcome":"[a-z_]*"' | cut -d'"' -f4; }
is_idle() { $forebay update status --json 2>/dev/null | tr -d ' \n' | grep -q '"current":null'; }
is_over() { is_idle && [ "$(receipts | wc -l)" -gt "$(noted receipts)" ]; }
on_disk() { # the stage, and of departing whether anybody may be ended
  local at
  at=$(grep -o '"stage":{*[^,}]*' $state/update.json | head -n 1 | tr -d '"{' | cut -d: -f2-)
  ! grep -q '"departs_from":null' $state/update.json || at=${at/departing/nearly-departing}
  echo "$at"
}

fill_cache() {
  await "redis answers" redis_answers
  redis-cli eval "for i=1,2000 do redis.call('set','key:'..i,ARGV[1]..i) end" 0 "$1" >/dev/null
  note sum "$(redis_sum)"
}

lose_power() { # PHASE of the boot that comes
  note phase "$1"
  echo "mark: cut"
  sleep 1000
}

follow() { # MOMENT: the next one
  case $1 in
  $((ended - 2)) | $((ended - 1))) echo $(($1 + 1)) ;;
  *) echo $(($1 + 2)) ;;
  esac
}

happens() { # prints what of dead, asked and over comes first
  local deadline=$((SECONDS + 300))
  while :; do
    if is_dead; then echo dead && return; fi
    if [ -e /run/asked ]; then echo asked && return; fi
    if is_over; then echo over && return; fi
    [ $SECONDS -lt $deadline ] || { echo nothing && return; }
    sleep 0.2
  done
}

begin() {
  note receipts "$(receipts | wc -l)"
  note found ''
  rm -f ran
  kill -KILL "$daemon"
  wait "$daemon" || true
  echo "== one $(noted one), two $(noted two)"
  begin_daemon "$(noted one)"
  await "the daemon answers" answers
  fill_cache "$(noted one)-$(noted two)-"
  sync
  # A daemon that dies at its first write may not say that it began.
  $forebay update run --detach --unproved --rung checkpoint --rollback "rm -f $home/ran" \
    -- sh -c "echo x >>$home/ran && sync $home/ran" || true
  case $(happens) in
  dead) lose_power resumes ;;
  asked) note one none && lose_power arrives ;;
  *) fail "it neither died nor was to reboot" ;;
  esac
}

verify() { # after the last boot of an update
  local outcome memory=kept found count said
  outcome=$(receipts | tail -n 1)
  found=$(noted found)
  count=$(cat ran 2>/dev/null | wc -l)
  await "redis answers" redis_answers
  [ "$(pgrep -c redis-server)" = 1 ] || fail "$found: not one redis"
  case "$outcome $count" in
  "committed 1" | "rolled_back 0" | "alarmed 1") ;;
  *) fail "$found: $outcome, and the command ran $count times" ;;
  esac
  [ "$(redis_sum)" = "$(noted sum)" ] || memory=lost
  said=$($forebay update history | tr '\n' ' ')
  case "$memory $outcome" in
  kept*) ;;
  # What was lost while it was kept is told, with what to do.
  "lost alarmed")
    [[ $said == *"lost what it had"*"somebody has to look"* ]] || fail "$found: nobody is told: $said"
    ;;
  # Before it is kept, and after it was taken up again, the power takes what is in memory, as without any update.
  *) [[ $found == *nearly-departing* || $found == *restoring* || $found == *verifying* || $found == *closing* || $found == *over* ]] ||
    fail "$found: $outcome, and what redis had is lost" ;;
  esac
  echo "table: cut on disk at:${found:- nothing, but for the reboot}: $outcome, the command ran $count time(s), memory $memory"
}

if [ ! -e $notes/two ]; then
  install
  begin_daemon
  await "the daemon answers" answers
  await "redis answers" redis_answers
else
  at=$(on_disk || true)
  case $(noted phase) in
  resumes)
    note found "$(noted found) ${at:-nothing}"
    note one "$(follow "$(noted one)")"
    begin_daemon
    # What was in memory is gone with the power; what comes now is to be kept.
    case $at in
    *departing | over*) ;;
    *) fill_cache again- ;;
    esac
    case $(happens) in
    asked) lose_power arrives ;;
    over) ;;
    *) fail "it neither ended nor was to reboot" ;;
    esac
    ;;
  arrives)
    begin_daemon "$(noted two)"
    case $(happens) in
    dead) lose_power ends ;;
    over) note two none ;;
    *) fail "it neither died nor ended" ;;
    esac
    ;;
  ends)
    note found "$(noted found) ${at:-over}"
    note two "$(($(noted two) + 2))"
    begin_daemon
    [ "$(happens)" = over ] || fail "it did not end"
    ;;
  esac
  verify
fi
[ "$(noted one) $(noted two)" != "none none" ] || exit 0
begin
