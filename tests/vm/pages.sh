#!/bin/bash
# about: pages follow apps to their nodes while these work; when memory is out, batch is ended first
# kernels: stable old
# routine: stable
# machine: --smp 4 --mem 1536 --numa
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
hot=200

evidence() {
  $forebay explain stray 2>&1 | tail -n 20 || true
  $forebay explain service 2>&1 | tail -n 20 || true
}

# On the CPUs and the memory of one node, with a marker in its command line.
start_on_node() { # NODE NAME
  local cpus
  cpus=$(cat /sys/devices/system/node/node"$1"/cpulist)
  systemd-run --quiet --collect --unit="$2" $3 taskset -c "$cpus" \
    $forebay workload heap --hot $hot --rate 500 --count-file "/var/tmp/$2"
  await "$2 starts" test -s "/var/tmp/$2"
}

pid_of() { # NAME
  systemctl show --property MainPID --value "$1"
}

# Pages on a node, of a process.
pages_on() { # NODE PID
  awk -v node="N$1=" '
    {for (at = 1; at <= NF; at++) if (index($at, node) == 1) sum += substr($at, length(node) + 1)}
    END {print sum + 0}' /proc/"$2"/numa_maps
}

count() { # NAME
  cat "/var/tmp/$1"
}

holds() { # FILE TEXT: a knob holds exactly this
  [ "$(cat "$root/$1" 2>/dev/null)" = "$2" ]
}

most_pages_on() { # NODE PID: 95 of 100 pages of its heap
  [ "$(pages_on "$1" "$2")" -ge $((hot * 256 * 95 / 100)) ]
}

score() { # PID
  cat /proc/"$1"/oom_score_adj
}

echo "== before"
# Both start on node 0 and work on. Their CPUs will be on node 1: the highest are given first.
start_on_node 0 stray ""
start_on_node 0 service ""
stray=$(pid_of stray)
service=$(pid_of service)
for pid in $stray $service; do
  await "the pages of $pid are on node 0" most_pages_on 0 "$pid"
  taskset -apc 0-3 "$pid" >/dev/null
done

cat >forebay.toml <<TOML
[daemon]
lease = "2s"
[apps.stray]
class = "critical"
match = { command_line = "--count-file /var/tmp/stray" }
[apps.service]
class = "critical"
cgroup = "system.slice/service.service"
[apps.small]
class = "batch"
match = { command_line = "--count-file /var/tmp/small" }
TOML
start_daemon

echo "== pages follow"
nodes_of() { # GROUP: the node of its CPUs
  local first
  first=$(cat "$root/$1/cpuset.cpus.effective")
  first=${first%%[-,]*}
  [ -e /sys/devices/system/node/node0/cpu"$first" ] && echo 0 || echo 1
}
has_own_node() { # GROUP
  [ "$(cat "$root/$1/cpuset.mems" 2>/dev/null)" = "$(nodes_of "$1")" ]
}
await "the stray has the node of its CPUs" has_own_node forebay.stray
await "the service has the node of its CPUs" has_own_node system.slice/service.service
[ "$(nodes_of forebay.stray)$(nodes_of system.slice/service.service)" != 00 ] || fail "nobody had to move"
for app in stray service; do
  group=forebay.stray
  [ $app = stray ] || group=system.slice/service.service
  pid=$(pid_of $app)
  # On one node by now, or on both when it needs CPUs of both.
  follow() {
    has_own_node $group && most_pages_on "$(nodes_of $group)" "$pid"
  }
  await "the pages of $app follow" follow
  echo "$app: $(pages_on 0 "$pid") pages on node 0, $(pages_on 1 "$pid") on node 1"
done
$forebay explain stray
$forebay explain stray | grep -q "were moved" || $forebay explain service | grep -q "were moved" || fail "nobody says what was moved"
before=$(count stray)
works_on() {
  [ "$(count stray)" != "$before" ]
}
await "the stray works on" works_on

echo "== memory is out"
systemd-run --quiet --collect --unit=small $forebay workload heap --hot 20 --rate 100 --count-file /var/tmp/small
await "small starts" test -s /var/tmp/small
small=$(pid_of small)
is_first() {
  [ "$(score "$small")" = 503 ]
}
await "batch is the first to be ended" is_first
for pid in $stray $service; do
  [ "$(score "$pid")" = -903 ] || fail "a critical app has the score $(score "$pid")"
done
echo f >/proc/sysrq-trigger
is_gone() {
  [ ! -d /proc/"$small" ]
}
await "the kernel ends the small batch app" is_gone
for pid in $stray $service; do
  [ -d /proc/"$pid" ] || fail "the kernel ended a critical app"
done

echo "== kill -9"
kill -9 $daemon
wait $daemon 2>/dev/null || true
is_put_back() {
  [ "$(score "$stray")$(score "$service")" = 00 ] && [ ! -d $root/forebay.stray ] \
    && [ "$(cat $root/system.slice/service.service/cpuset.mems.effective)" = 0-1 ]
}
await "everything is put back" is_put_back
echo "== alone again, the kernel would have taken a large one"
echo f >/proc/sysrq-trigger
one_is_gone() {
  [ ! -d /proc/"$stray" ] || [ ! -d /proc/"$service" ]
}
await "a large one is ended" one_is_gone
systemctl stop stray service 2>/dev/null || true
