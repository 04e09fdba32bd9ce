#!/bin/bash
# about: units of systemd as apps: every property set, effective, kept over daemon-reload, yielded, put back; its timers known
# kernels: stable old
# routine: stable
# machine: --smp 4 --mem 1024
# seconds: 900
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
forebay=/host/bin/forebay
state=/var/tmp/state
socket=/var/tmp/socket
web=/sys/fs/cgroup/system.slice/web.service
burn=/sys/fs/cgroup/system.slice/burn.service

fail() { # TEXT
  echo "FAILED: $1"
  $forebay events --socket $socket 2>/dev/null | tail -20 || true
  cat daemon.log
  exit 1
}
until_true() { # TEXT COMMAND...
  local text=$1 n=0
  shift
  until "$@" >/dev/null 2>&1; do
    n=$((n + 1))
    [ $n -lt 600 ] || fail "not in time: $text"
    sleep 0.2
  done
}
holds() { # FILE TEXT
  [ "$(cat "$1")" = "$2" ]
}
property() { # UNIT NAME
  systemctl show --value -p "$2" "$1"
}
# Everything of both units that Forebay may set, as systemd and the kernel have it.
snapshot() {
  for unit in web burn; do
    for name in AllowedCPUs AllowedMemoryNodes CPUWeight CPUQuotaPerSecUSec MemoryMin MemoryLow \
      MemoryHigh MemoryMax MemorySwapMax IOWeight IOReadBandwidthMax IOWriteBandwidthMax \
      IOReadIOPSMax IOWriteIOPSMax TasksMax; do
      echo "$unit $name $(property $unit.service $name)"
    done
    for file in cpu.weight cpu.idle cpu.max memory.min memory.low memory.high memory.max \
      memory.swap.max pids.max; do
      echo "$unit $file $(cat /sys/fs/cgroup/system.slice/$unit.service/$file)"
    done
    # Where none were set, the file is not there, or has all.
    echo "$unit cpus $(cat /sys/fs/cgroup/system.slice/$unit.service/cpuset.cpus.effective 2>/dev/null || echo 0-3)"
  done
  find /run/systemd/system.control /run/systemd/transient -name '*.conf' 2>/dev/null | sort
}
start() {
  $forebay daemon --config forebay.toml >>daemon.log 2>&1 &
  daemon=$!
  until_true "the daemon answers" $forebay status --socket $socket
}
stop() {
  kill -TERM $daemon
  wait $daemon || fail "the daemon did not end well"
}
in_force() {
  holds $web/cpu.weight 10000 && holds $web/pids.max 77 && holds $web/memory.max 268435456 &&
    holds $web/cpu.max "150000 100000" && holds $burn/cpu.idle 1
}

# Names that cannot be, before anything runs.
cat >wrong.toml <<'EOF'
[apps.a]
systemd = "web"
[apps.b]
systemd = "system.slice/web.service"
EOF
if $forebay check wrong.toml 2>wrong; then fail "wrong names were taken"; fi
cat wrong
grep -q 'write `web.service`' wrong && grep -q 'is a path' wrong || fail "it does not say what to write"

for unit in web burn; do
  cat >/run/systemd/system/$unit.service <<EOF
[Service]
ExecStart=/bin/sh -c 'while :; do :; done'
Restart=always
TasksMax=55
EOF
done
for timer in "nightly *-*-* 03:17:00" "often *:0/5"; do
  name=${timer%% *}
  printf '[Service]\nType=oneshot\nExecStart=/bin/true\n' >/run/systemd/system/"$name".service
  printf '[Timer]\nOnCalendar=%s\n' "${timer#* }" >/run/systemd/system/"$name".timer
done
systemctl daemon-reload
systemctl start web.service burn.service nightly.timer often.timer
# Somebody set this before, as long as the host runs: it has to stay.
systemctl set-property --runtime burn.service CPUWeight=123
disk=$(cat /sys/class/block/vda/dev)
cat >forebay.toml <<EOF
[daemon]
socket = "$socket"
state_dir = "$state"
lease = "2s"
[apps.web]
class = "critical"
systemd = "web.service"
floor = { cpu = 1, memory = "32MiB" }
ceiling = { cpu = 1.5, memory = "256MiB", pids = 77 }
[apps.web.io_max."$disk"]
rbps = "10MiB"
[apps.burn]
class = "batch"
systemd = "burn.service"
EOF
$forebay check forebay.toml
snapshot >before
cat before

echo "== suggested"
$forebay adopt --suggest --seconds 2 >suggested.toml
grep -q '^systemd = "web.service"' suggested.toml || { cat suggested.toml; fail "web is not suggested"; }
$forebay check suggested.toml

echo "== set and effective"
start
until_true "all is in force" in_force
until_true "own CPUs" sh -c "grep -q '^[0-9]' $web/cpuset.cpus"
echo "web has CPUs $(cat $web/cpuset.cpus), burn $(cat $burn/cpuset.cpus)"
[ "$(cat $burn/cpuset.cpus)" != "$(cat $web/cpuset.cpus)" ] || fail "both have the same CPUs"
[ "$(property web.service CPUWeight)" = 10000 ] || fail "systemd does not know the weight"
[ "$(property burn.service CPUWeight)" = 0 ] || [ "$(property burn.service CPUWeight)" = idle ] ||
  fail "burn is not idle for systemd: $(property burn.service CPUWeight)"
until_true "the rate" grep -q "^$disk rbps=10485760" $web/io.max
# The hog runs where it was put and nowhere else.
pid=$(property burn.service MainPID)
allowed=$(awk '/^Cpus_allowed_list/ {print $2}' /proc/"$pid"/status)
[ "$allowed" = "$(cat $burn/cpuset.cpus.effective)" ] || fail "burn may run on $allowed"

echo "== timers"
# Who comes more often than every 40 minutes is known by its calendar, not by its next time alone.
timers_are_known() {
  $forebay explain web --forecast --socket $socket >explained
  grep -q 'timer nightly.timer (0 seen)' explained && grep -q 'timer often.timer (too often)' explained
}
until_true "timers" timers_are_known
grep 'timer' explained

echo "== daemon-reload and restart"
systemctl daemon-reload
in_force || fail "daemon-reload took something back"
systemctl restart web.service
until_true "all is in force after a restart" in_force
until_true "running again" sh -c "$forebay apps --socket $socket | grep -q 'web.*running'"
$forebay events --socket $socket | grep -i foreign && fail "took systemd for somebody else"

echo "== an administrator"
systemctl set-property --runtime web.service CPUWeight=444
until_true "noticed" sh -c "$forebay events --socket $socket | grep -q 'cpu.weight'"
sleep 3
[ "$(property web.service CPUWeight)" = 444 ] || fail "it was fought over"
$forebay reload --socket $socket
until_true "taken up again" in_force

echo "== a unit that goes"
systemctl stop burn.service
until_true "absent" sh -c "$forebay apps --socket $socket | grep -q 'burn.*absent'"
systemctl start burn.service
until_true "back" in_force

echo "== a clean stop"
stop
snapshot >after
diff before after || fail "a clean stop left something"

echo "== killed"
start
until_true "all is in force again" in_force
kill -KILL $daemon
wait $daemon || true
until_true "the guardian has put it back" sh -c "! ps ax | grep '[g]uardian --daemon'"
snapshot >after
diff before after || fail "the guardian left something"
systemctl daemon-reload
snapshot >after
diff before after || fail "a reload brought something back"
$forebay restore --state-dir $state
echo "log of the daemon:"
cat daemon.log
