#!/bin/bash
# about: a daemon with exec, cgroup and match apps on two nodes: knobs and their effect, other writers, kill -9, a clean stop
# kernels: stable old
# routine: stable
# machine: --smp 4 --mem 1024 --numa
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps

evidence() {
  cat difference 2>/dev/null || true
}

holds() { # FILE TEXT: a knob holds exactly this
  [ "$(cat "$root/$1" 2>/dev/null)" = "$2" ]
}

# Every knob of a group that is not Forebay's, and what must be as before at the top. A set that
# was empty stands for all that the parent has, and comes back as that.
picture() {
  (
    cd $root/system.slice/foreign.service
    for knob in cpuset.cpus.effective cpuset.mems.effective cpu.idle cpu.weight cpu.max memory.{min,low,high,max,swap.max} io.weight io.max pids.max; do
      [ ! -e $knob ] || echo "$knob: $(cat $knob)"
    done
  )
  tail -n +1 /proc/irq/*/smp_affinity_list
  cat $root/cgroup.subtree_control $root/system.slice/cgroup.subtree_control
  ls -d $root/forebay* 2>/dev/null || true
}

is_put_back() {
  picture >after
  diff before after >difference
}

# A hog each for a service of systemd's and for a shell, to be bound.
systemd-run --quiet --unit=foreign -p CPUWeight=50 -p MemoryMax=300M sh -c 'while :; do :; done'
sh -c 'while :; do : hog-of-the-scenario; done' &
hog=$!
trap 'kill $hog 2>/dev/null || true; systemctl stop foreign 2>/dev/null || true' EXIT
picture >before

cat >forebay.toml <<TOML
[daemon]
lease = "2s"
[policy]
partition = "root"
interrupts = "shared"
[apps.web]
class = "critical"
exec = ["sleep", "infinity"]
floor = { cpu = "500m", memory = "64MiB" }
[apps.hog]
class = "batch"
match = { command_line = "hog-of-the-scenario" }
ceiling = { cpu = "1500m" }
[apps.foreign]
class = "standard"
cgroup = "system.slice/foreign.service"
TOML
$forebay check forebay.toml
start_daemon

echo "== knobs"
await "web has CPUs of its own" holds forebay.web/cpuset.cpus.partition root
own=$(cat $root/forebay.web/cpuset.cpus.effective)
node=$(basename "$(ls -d /sys/devices/system/node/node*/cpu"${own%%[-,]*}" | head -n 1 | xargs dirname)")
await "its memory comes from the node of its CPUs" holds forebay.web/cpuset.mems "${node#node}"
await "its memory floor is kept" holds forebay.web/memory.min $((64 << 20))
await "the hog is taken in" grep -qx $hog $root/forebay.hog/cgroup.procs
await "it is in the idle class" holds forebay.hog/cpu.idle 1
await "its ceiling holds" holds forebay.hog/cpu.max "150000 100000"
await "the service of systemd keeps its place" grep -q . $root/system.slice/foreign.service/cgroup.procs
web=$(head -n 1 $root/forebay.web/cgroup.procs)

echo "== effect"
# Its last CPU is known when it ran again; from then on it never runs on web's.
$forebay apps
hog_is_elsewhere() {
  cpu=$(awk '{print $39}' /proc/$hog/stat)
  [ "$cpu" != "$own" ]
}
await "the hog leaves CPU $own" hog_is_elsewhere
for _ in $(seq 50); do
  hog_is_elsewhere || fail "the hog runs on CPU $own, which web has for itself"
done
allowed=$(awk '/^Cpus_allowed_list/ {print $2}' /proc/$hog/status)
case ",$allowed," in *",$own,"*) fail "the hog may run on $allowed, web has $own" ;; esac

interrupts_leave() { # CPU
  ! grep -l "\(^\|[,-]\)$1\$" /proc/irq/*/smp_affinity_list >stay || bound_by_the_kernel $(cat stay)
}
bound_by_the_kernel() { # FILE...: it refuses to have them moved
  local file value
  for file in "$@"; do
    value=$(cat "$file")
    ! echo "$value" 2>/dev/null >"$file" || return 1
  done
}
await "interrupts leave its CPU" interrupts_leave $own
[ "$(cat /proc/irq/*/smp_affinity_list | sort -u)" != 0-3 ] || fail "no interrupt was moved"

echo "== another writer"
echo 77 >$root/system.slice/foreign.service/cpu.weight
await "the writer is noticed" bash -c "$forebay events | grep -q 'somebody set cpu.weight'"
systemctl daemon-reload
$forebay status >/dev/null || fail "the daemon does not answer after a daemon-reload"
echo 50 >$root/system.slice/foreign.service/cpu.weight

echo "== kill -9"
kill -9 $daemon
wait $daemon 2>/dev/null || true
await "the guardian puts everything back" is_put_back
[ -d /proc/$hog ] || fail "the hog ended"
[ -d /proc/$web ] || fail "web ended"

echo "== the next daemon, and a clean stop"
start_daemon
await "web has CPUs of its own again" holds forebay.web/cpuset.cpus.partition root
grep -qx $web $root/forebay.web/cgroup.procs || fail "web was started again"
$forebay doctor || fail "doctor"
$forebay doctor --json >doctor.json
grep -q '"cpuset.cpus.partition"' doctor.json || fail "doctor --json says nothing of partitions"
kill $daemon
wait $daemon || fail "a clean stop ends with status $?"
await "everything is put back" is_put_back
[ -d /proc/$hog ] || fail "the hog ended"
