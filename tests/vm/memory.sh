#!/bin/bash
# about: batch gives memory back before a critical app's forecast rise arrives
# kernels: stable old
# machine: --smp 2 --mem 1024 --disk 2G
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
period=16
mkswap -q /dev/vdb
swapon /dev/vdb

evidence() {
  $forebay explain crunch 2>&1 | tail -n 20 || true
  $forebay explain web 2>&1 | tail -n 20 || true
}

start() { # NAME ARGS...: a workload as a service of systemd's
  local name=$1
  shift
  systemd-run --quiet --collect --unit="$name" -p OOMScoreAdjust=-500 \
    $forebay workload heap --count-file "/var/tmp/$name" "$@"
  await "$name starts" test -s "/var/tmp/$name"
}

start_web() {
  start web --hot 48 --swing 192 --swing-period $period --rate 2000
}

start_crunch() {
  start crunch --hot 64 --cold 560 --rate 20000
  await "crunch holds its memory" at_least crunch 580
}

stop() {
  systemctl stop "$@" 2>/dev/null || true
  rm -f "${@/#//var/tmp/}"
}

current() { # NAME: in MiB
  echo $(($(cat $root/system.slice/"$1".service/memory.current) >> 20))
}

at_least() { # NAME MIB
  [ "$(current "$1")" -ge "$2" ]
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

measure() { # SECONDS: what web suffers meanwhile, in $faults and $wait
  local before_faults before_wait
  before_faults=$(refaults web)
  before_wait=$(waited web)
  sleep "$1"
  faults=$(($(refaults web) - before_faults))
  wait=$((($(waited web) - before_wait) / 1000))
}

echo "== alone"
start_web
sleep $period
measure $((2 * period))
alone=$faults
echo "alone: $faults refaults, waited $wait ms, $(available) MiB available"
stop web

echo "== uncontrolled"
start_crunch
start_web
sleep $period
measure $((2 * period))
echo "uncontrolled: $faults refaults, waited $wait ms"
[ "$faults" -gt 200 ] || fail "nothing to protect from"
stop web crunch
swapoff /dev/vdb
swapon /dev/vdb

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
start_crunch
start_web
$forebay daemon --config forebay.toml >>daemon.log 2>&1 &
daemon=$!
await "the daemon answers" $forebay status >/dev/null 2>&1
$forebay doctor | grep -E "memory.reclaim|swap" || true
# It has to see the season a few times before it is believed.
sleep $((5 * period))

# At half of a rise there is room for the other half.
rises=0
was=$(current web)
deadline=$((SECONDS + 4 * period))
before_faults=$(refaults web)
before_wait=$(waited web)
while [ $SECONDS -lt $deadline ]; do
  now=$(current web)
  if [ "$was" -lt 144 ] && [ "$now" -ge 144 ]; then
    room=$(available)
    echo "web holds $now MiB and rises, $room MiB are available, crunch holds $(current crunch) MiB"
    [ "$room" -ge $((240 - now)) ] || fail "no room for the rest of the rise"
    rises=$((rises + 1))
  fi
  was=$now
  sleep 0.2
done
faults=$(($(refaults web) - before_faults))
wait=$((($(waited web) - before_wait) / 1000))
echo "with Forebay: $faults refaults in 4 periods, waited $wait ms"
[ $rises -ge 2 ] || fail "$rises rises were seen"
$forebay explain crunch
# By memory.reclaim, or by memory.high where the plan for the next second came to it first.
[ "$(current crunch)" -le 560 ] || fail "crunch gave nothing"
# A tenth more than alone; a few pages of the program itself come and go in either.
[ $((faults * 10)) -le $((alone * 2 * 11 + 640)) ] || fail "$faults refaults, $((alone * 2)) alone"

kill $daemon
wait $daemon || fail "a clean stop ends with status $?"
[ "$(cat $root/system.slice/crunch.service/memory.high)" = max ] || fail "memory.high is left"
[ "$(cat $root/system.slice/web.service/memory.low)" = 0 ] || fail "memory.low is left"
stop web crunch
