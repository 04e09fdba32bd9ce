#!/bin/bash
# about: batch on a calibrated disk is bounded as planned, by read-back and by effect; io.cost is installed, divides a disk by weight, and is put back; a disk is unplugged
# kernels: stable old
# routine: none
# machine: --smp 2 --mem 768 --disk 64M@8M --disk 64M
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
disk=$(cat /sys/block/vdb/dev)
state=/var/tmp/state

evidence() {
  cat $root/forebay.*/io.pressure $root/forebay.*/io.weight || true
  cat difference 2>/dev/null || true
  $forebay explain hog 2>&1 | tail -n 30 || true
  cat $root/io.cost.model $root/io.cost.qos || true
  cat $root/forebay.*/io.max $root/forebay.*/io.stat || true
}

# The line of the disk in a file of a group; nothing where it has none.
line_of() { # FILE
  sed -n "s/^$disk //p" "$root/$1"
}

is_on() { line_of io.cost.qos | grep -q enable=1; }
is_off() { ! is_on; }

picture() {
  cat $root/system.slice/other.service/io.weight $root/system.slice/other.service/io.max
  [ ! -e $root/system.slice/other.service/io.latency ] || cat $root/system.slice/other.service/io.latency
  # Where the kernel guesses, and where it goes by nothing, is as good as no line.
  grep -v "enable=0 ctrl=auto" $root/io.cost.qos || true
  grep -v "ctrl=auto" $root/io.cost.model || true
  cat $root/cgroup.subtree_control
  ls -d $root/forebay* 2>/dev/null || true
}

is_put_back() {
  picture >after
  diff before after >difference
}

refused() { # WORDS COMMAND...
  local words=$1
  shift
  ! "$@" >out 2>&1 || fail "not refused: $*"
  grep -q "$words" out || fail "$* says $(cat out)"
}

# Reads and writes by an app that is bound by its group, on a disk that serves 8 MiB/s.
systemd-run --quiet --unit=other -p IOWeight=50 sh -c 'while :; do dd if=/dev/vdb of=/dev/null bs=4k count=1 skip=$((RANDOM % 16000)) iflag=direct 2>/dev/null; done'
trap 'systemctl stop other 2>/dev/null || true' EXIT
await "the reader reads" grep -q "^$disk " $root/system.slice/other.service/io.stat

echo "== bad input"
refused "no-such" $forebay calibrate /dev/no-such --state-dir $state
refused "none was installed" $forebay calibrate /dev/vdb --remove-model --state-dir $state

echo "== a model that a command installs stays, and is taken back"
systemctl stop other
[ -e $root/io.cost.model ] || { echo "SKIPPED: io: this kernel has no io.cost"; exit 77; }
$forebay calibrate /dev/vdb --seconds 4 --install-model --state-dir $state >installed 2>/dev/null || fail "calibrate"
cat installed
is_on || fail "io.cost is off"
grep -q "$(line_of io.cost.model)" installed || fail "io.cost.model holds $(line_of io.cost.model)"
line_of io.cost.model | grep -q "ctrl=user model=linear rbps=[1-9]" || fail "no model"
$forebay doctor --state-dir $state | grep -q "io.cost.*on for $disk" || fail "doctor says nothing of io.cost"
$forebay calibrate /dev/vdb --remove-model --state-dir $state
is_off || fail "io.cost is still on"
$forebay calibrate /dev/vdb --seconds 2 --install-model --state-dir $state >/dev/null 2>&1 || fail "calibrate again"
$forebay restore --state-dir $state
is_off || fail "restore left io.cost on"

systemd-run --quiet --unit=other -p IOWeight=50 sh -c 'while :; do dd if=/dev/vdb of=/dev/null bs=4k count=1 skip=$((RANDOM % 16000)) iflag=direct 2>/dev/null; done'
await "the reader reads" grep -q "^$disk " $root/system.slice/other.service/io.stat
picture >before

cat >forebay.toml <<TOML
[daemon]
lease = "2s"
state_dir = "$state"
[policy]
on_stop = "kill"
io_protection = "cost"
hold = "60s"
[apps.web]
class = "critical"
cgroup = "system.slice/other.service"
[apps.hog]
class = "batch"
exec = ["sh", "-c", "while :; do dd if=/dev/zero of=/dev/vdb bs=64k count=256 oflag=direct; done"]
TOML
$forebay check forebay.toml
start_daemon

echo "== as planned"
await "the daemon installs the model" is_on
await "batch is bounded" grep -q "^$disk .*wbps=[0-9]" $root/forebay.hog/io.max
await "the weight of a critical app" grep -qx "default 1000" $root/system.slice/other.service/io.weight
await "the weight of a batch app" grep -qx "default 10" $root/forebay.hog/io.weight
refused "io_protection" $forebay calibrate /dev/vdb --seconds 2 --install-model --state-dir $state
wbps() { line_of forebay.hog/io.max | sed -n 's/.*wbps=\([0-9]*\) .*/\1/p'; }
wrote() { line_of forebay.hog/io.stat | sed -n 's/.*wbytes=\([0-9]*\) .*/\1/p'; }
# What it writes is at most what the limit lets through, whichever held meanwhile, and that over
# the time that really passed: beside a weight a hundred times its own, a disk that io.cost slows
# down to a quarter may take seconds for each of its requests.
most=$(wbps)
most=${most:-0}
began=$(wrote)
before_ms=$(date +%s%3N)
wrote_enough() { # four requests, in five seconds at least
  local now
  now=$(wbps)
  [ "${now:-0}" -le "$most" ] || most=$now
  [ $(($(date +%s%3N) - before_ms)) -ge 5000 ] && [ $(($(wrote) - began)) -ge $((256 << 10)) ]
}
await "batch gets on" wrote_enough
bytes=$(($(wrote) - began))
took_ms=$(($(date +%s%3N) - before_ms))
echo "limit at most $most B/s: $bytes B in $took_ms ms"
# A request and a slice may be granted ahead.
[ "$bytes" -le $((most * took_ms / 1000 + (1 << 20))) ] || fail "batch writes more than its limit"
[ "$most" -lt $((8 << 20)) ] || fail "the limit is no limit"
[ -e $root/system.slice/other.service/io.latency ] || echo "SKIPPED: io: this kernel has no io.latency"

echo "== another writer"
echo "$disk enable=0" >$root/io.cost.qos
await "the writer is noticed" bash -c "$forebay events | grep -q 'somebody changed the cost model'"
echo "$disk enable=1" >$root/io.cost.qos

echo "== kill -9"
kill -9 $daemon
wait $daemon 2>/dev/null || true
await "the guardian puts everything back" is_put_back

echo "== the next daemon, and a clean stop"
start_daemon
await "the daemon installs the model again" is_on
kill $daemon
wait $daemon || fail "a clean stop ends with status $?"
await "everything is put back" is_put_back
systemctl stop other

echo "== weights divide the disk with io.cost, and do not without"
# As much as the disk gives, a dozen requests at a time, by an app of each class that has no limit.
reads='for n in 1 2 3 4 5 6 7 8 9 10 11 12; do while :; do dd if=/dev/vdb of=/dev/null bs=64k iflag=direct 2>/dev/null; done & done; wait'
configure() { # PROTECTION
  cat >forebay.toml <<TOML
[daemon]
lease = "2s"
state_dir = "$state"
[policy]
on_stop = "kill"
io_protection = "$1"
[apps.web]
class = "critical"
exec = ["sh", "-c", "$reads"]
[apps.other]
exec = ["sh", "-c", "$reads"]
TOML
}
holds() { # FILE LINE
  grep -qx "$2" "$root/$1"
}
read_by() { # APP
  line_of "forebay.$1/io.stat" | sed -n 's/.*rbytes=\([0-9]*\) .*/\1/p'
}
reads_all() { # APP: it did since the last call
  local was=${seen[$1]:-0}
  seen[$1]=$(read_by "$1")
  [ "${seen[$1]:-0}" -gt "$was" ]
}
declare -A seen=()
# What both read in some seconds; the first of them while the change before takes effect. Where the
# host lets the guest wait, they ask for less than the disk gives, and there is nothing to divide:
# so it is looked at more than once.
divide() { # WORDS LEAST MOST: tenths to one
  local again
  for again in 1 2 3; do
    divide_once "$1"
    [ $tenfold -lt "$2" ] || [ $tenfold -gt "$3" ] || return 0
  done
  fail "$1, that is not $2 to $3 tenths to one"
}
divide_once() { # WORDS
  await "web reads" reads_all web
  await "other reads" reads_all other
  sleep 2
  local web other began_ms=$(date +%s%3N)
  web=$(read_by web) other=$(read_by other)
  sleep 8
  local took_ms=$(($(date +%s%3N) - began_ms))
  web=$((($(read_by web) - web) / took_ms)) other=$((($(read_by other) - other) / took_ms))
  [ "$other" -gt 0 ] || fail "other got nothing $1"
  tenfold=$((web * 10 / other))
  echo "$1: web $web kB/s, other $other kB/s of 8389: $((tenfold / 10)).$((tenfold % 10)) to 1"
}
configure cost
start_daemon
await "the daemon installs the model" is_on
await "the weight of a critical app" holds forebay.web/io.weight "default 1000"
await "the weight of a standard app" holds forebay.other/io.weight "default 100"
[ -z "$(line_of forebay.web/io.max)$(line_of forebay.other/io.max)" ] || fail "one of them is limited"
# Ten to one is what the weights of 1000 and 100 say.
divide "with io.cost" 70 140
configure none
$forebay reload
await "the model goes" is_off
holds forebay.web/io.weight "default 1000" || fail "the weight is gone"
divide "without io.cost" 7 14
kill $daemon
wait $daemon || fail "a clean stop ends with status $?"

echo "== a disk is unplugged"
second=$(cat /sys/block/vdc/dev)
cat >forebay.toml <<TOML
[daemon]
lease = "2s"
state_dir = "$state"
[policy]
on_stop = "kill"
io_protection = "cost"
[apps.web]
class = "critical"
exec = ["sh", "-c", "exec 3</dev/vdb; while :; do dd bs=4k count=1 iflag=direct <&3 >/dev/null 2>&1 || sleep 1; done"]
[apps.hog]
class = "batch"
exec = ["sleep", "infinity"]
[apps.hog.io_max."$disk"]
rbps = "2MiB"
[apps.hog.io_max."$second"]
rbps = "1MiB"
TOML
start_daemon
await "the daemon installs the model" is_on
await "a limit of the disk that goes" grep -q "^$disk rbps=" $root/forebay.hog/io.max
await "a limit of the disk that stays" grep -q "^$second rbps=1048576 " $root/forebay.hog/io.max
web=$(head -n 1 $root/forebay.web/cgroup.procs)
hog=$(head -n 1 $root/forebay.hog/cgroup.procs)
known=$($forebay events --limit 1000 | wc -l)
echo 1 >"$(readlink -f /sys/block/vdb/device)/../remove"
[ ! -e /sys/block/vdb ] || fail "the disk is still there"
told() { # WORDS
  $forebay events --limit 1000 | tail -n +$((known + 1)) >events
  grep -q "$1" events
}
await "its limit is named" told "failed  *hog .*there is no block device $disk now"
await "its model is named" told "failed  *(host) .*there is no such disk now"
# Whatever else there is to do goes on.
sed -i '/^\[apps.hog.io_max/,$d' forebay.toml
cat >>forebay.toml <<TOML
[apps.hog.io_max."$second"]
rbps = "3MiB"
TOML
$forebay reload
await "a limit changes" grep -q "^$second rbps=3145728 " $root/forebay.hog/io.max
grep -qx "$web" $root/forebay.web/cgroup.procs || fail "web lost its group"
grep -qx "$hog" $root/forebay.hog/cgroup.procs || fail "hog lost its group"
told . || fail "no events"
cat events
[ "$(grep -c "failed.*$disk" events)" = 2 ] || fail "not said once for each"
! grep foreign events || fail "somebody is blamed"
kill $daemon
wait $daemon || fail "a clean stop ends with status $?"
[ -z "$(ls -d $root/forebay* 2>/dev/null)" ] || fail "groups are left"
