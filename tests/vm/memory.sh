#!/bin/bash
# about: batch gives memory back before a critical app's forecast rise arrives
# kernels: stable old
# routine: none
# machine: --smp 2 --mem 1024 --disk 2G
# seconds: 1200
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
mkswap -q /dev/vdb
swapon /dev/vdb

evidence() {
  $forebay explain crunch 2>&1 | tail -n 20 || true
  $forebay explain web 2>&1 | tail -n 20 || true
}

start_web() {
  start_heap web --hot 48 --swing 192 --swing-period $period --rate 2000
}

start_crunch() {
  start_heap crunch --hot 64 --cold 560 --rate 20000
}

stop() {
  systemctl stop "$@" 2>/dev/null || true
  rm -f "${@/#//var/tmp/}"
}

current() { # NAME: in MiB
  echo $(($(cat $root/system.slice/"$1".service/memory.current) >> 20))
}

is_low() { # less than half of the swing is there
  [ "$(current web)" -lt 144 ]
}

is_half() {
  ! is_low
}

refaults() { # NAME
  awk '/^workingset_refault_/ {sum += $2} END {print sum + 0}' $root/system.slice/"$1".service/memory.stat
}

waited() { # NAME: microseconds in which it waited for memory
  sed -n 's/^some .*total=//p' $root/system.slice/"$1".service/memory.pressure
}

available() { # in MiB
  awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo
}

# Waits for the next rise; at half of it, what is left of it in $rest, what there is for it in $room.
half_of_a_rise() {
  await "web falls" is_low
  await "web rises" is_half
  room=$(available)
  local now
  now=$(current web)
  rest=$((240 - now))
  echo "web holds $now MiB and rises, $room MiB are available, crunch holds $(current crunch) MiB"
}

# Crunch asks for its memory while web has little, so that it is missing in the next rise.
start_crunch_between_rises() {
  await "web rises" is_half
  await "web falls" is_low
  start_crunch
}

# All that it asked for, wherever that is by now.
crunch_has_all() {
  local group=$root/system.slice/crunch.service
  [ $((($(cat $group/memory.current) + $(cat $group/memory.swap.current)) >> 20)) -ge 600 ]
}

echo "== how fast this machine is"
# Crunch has to have all that it asks for within the half of a swing in which web has little.
began_ms=$(date +%s%3N)
start_crunch
await "crunch has all" crunch_has_all
took_s=$((($(date +%s%3N) - began_ms + 999) / 1000))
stop crunch
period=$((took_s * 3))
[ $period -ge 16 ] || period=16
[ $period -le 48 ] || { echo "SKIPPED: memory: this machine takes $took_s s to fill 624 MiB"; exit 77; }
echo "crunch had all after $took_s s; web swings in $period s"

echo "== alone"
start_web
sleep $period
before=$(refaults web)
sleep $((2 * period))
alone=$(($(refaults web) - before))
echo "alone: $alone refaults in 2 periods, $(available) MiB available"
stop web

echo "== uncontrolled"
start_web
start_crunch_between_rises
half_of_a_rise
crunch_has_all || fail "crunch was too slow"
[ "$room" -lt "$rest" ] || fail "nothing to protect from"
stop web crunch

echo "== with Forebay"
cat >forebay.toml <<TOML
[daemon]
lease = "2s"
[policy]
system_memory = "64MiB"
[apps.web]
class = "critical"
cgroup = "system.slice/web.service"
[apps.crunch]
class = "batch"
cgroup = "system.slice/crunch.service"
TOML
start_web
start_daemon
$forebay doctor | grep -E "memory.reclaim|swap" || true
# It has to see the season a few times before it is believed.
sleep $((5 * period))
start_crunch_between_rises
before_faults=$(refaults web)
before_wait=$(waited web)
for rise in 1 2 3; do
  # At half of a rise there is room for the other half.
  half_of_a_rise
  [ "$room" -ge "$rest" ] || fail "rise $rise: no room for the rest of it"
  crunch_has_all || fail "crunch was too slow"
  # By memory.reclaim, or by memory.high where the plan for the next second came to it first.
  [ "$(current crunch)" -le 560 ] || fail "rise $rise: crunch gave nothing"
done
await "web falls" is_low
faults=$(($(refaults web) - before_faults))
wait=$((($(waited web) - before_wait) / 1000))
echo "with Forebay: $faults refaults in 3 rises, waited $wait ms"
$forebay explain crunch
# A tenth more than alone; a few pages of the program itself come and go in either.
[ $((faults * 20)) -le $((alone * 3 * 11 + 1280)) ] || fail "$faults refaults in 3 rises, $alone in 2 alone"

kill $daemon
wait $daemon || fail "a clean stop ends with status $?"
[ "$(cat $root/system.slice/crunch.service/memory.high)" = max ] || fail "memory.high is left"
[ "$(cat $root/system.slice/web.service/memory.low)" = 0 ] || fail "memory.low is left"
stop web crunch
