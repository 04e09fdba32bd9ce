#!/bin/bash
# about: containers of Docker and Podman as apps on control groups v2, in groups of their own and in scopes of systemd's
# kernels: stable
# machine: --smp 2 --mem 1536
# seconds: 1200
set -eu
systemctl is-system-running --wait >/dev/null || true
export TMPDIR=/var/tmp
cd /var/tmp
. /host/tests/steps
# Programs that run often are read from the guest's own disk.
cp /host/bin/forebay /host/bin/daemon .
forebay=/var/tmp/forebay
export FOREBAY_EXE=$forebay

mkdir -p rootfs/bin rootfs/etc
cp "$(command -v busybox)" rootfs/bin/
ln -s busybox rootfs/bin/sleep

holds() { # FILE TEXT
  [ "$(cat "$group/$1")" = "$2" ]
}
picture() {
  (cd $group && tail -n +1 cpu.weight cpu.max cpuset.cpus.effective memory.max memory.swap.max pids.max)
}
in_force() {
  holds pids.max 99 && holds memory.max 314572800 && holds cpu.max "$quota" && holds cpu.weight 10000
}
is_put_back() {
  picture >after
  diff before after >difference
}
evidence() {
  cat difference 2>/dev/null || true
  picture || true
  systemctl show "$(basename "$group")" | grep -E '^(CPUWeight|CPUQuota|TasksMax|MemoryMax|AllowedCPUs)' || true
  tail -n 20 runtime.log 2>/dev/null || true
}
look_for_its_group() { # RUNTIME
  local pid
  pid=$($1 inspect --format '{{.State.Pid}}' web)
  group=$root$(sed -n 's/^0:://p' /proc/$pid/cgroup)
  # Podman has its container in a group below.
  while [ "${group%.scope}" = "$group" ]; do group=$(dirname "$group"); done
  echo "$1: $group"
}

# As both come: each container in a scope of systemd's.
in_a_scope() { # RUNTIME SOCKET QUOTA
  local runtime=$1 socket=$2 quota=$3
  look_for_its_group "$runtime"
  picture >before
  cat >forebay.toml <<TOML
[daemon]
lease = "2s"
state_dir = "/var/tmp/state-$runtime"
container_socket = "$socket"
[apps.web]
class = "critical"
container = "web"
ceiling = { cpu = 1.5, memory = "300MiB", pids = 99 }
TOML
  start_daemon
  await "all is in force" in_force
  systemctl daemon-reload
  in_force || fail "daemon-reload took something back"
  $runtime update --cpu-shares=321 web >/dev/null
  theirs=$(cat $group/cpu.weight)
  await "the writer is noticed" bash -c "$forebay events | grep -q 'somebody set cpu.weight'"
  [ "$(cat $group/cpu.weight)" = "$theirs" ] || fail "it was fought over"
  $forebay reload
  await "taken up again" in_force
  $runtime restart --time=0 web >/dev/null
  look_for_its_group "$runtime"
  await "all is in force after a restart" in_force
  kill -9 $daemon
  wait $daemon 2>/dev/null || true
  await "the guardian has it put back" is_put_back
  start_daemon
  await "all is in force with the next daemon" in_force
  [ "$quota" != "max 100000" ] || await "said" bash -c "$forebay events | grep -q 'cpu.max.*no way to set it'"
  kill $daemon
  wait $daemon || fail "a clean stop ends with status $?"
  is_put_back || fail "not put back"
  start_daemon
  await "all is in force once more" in_force
  $runtime rm --force web >/dev/null
  await "it is said that it is gone" bash -c "$forebay events --app web | grep -q 'has none of this name'"
  kill $daemon
  wait $daemon || fail "a clean stop without the container ends with status $?"
}

echo "== Podman"
podman --events-backend=none system service --time=0 unix:///run/forebay-podman.sock >runtime.log 2>&1 &
service=$!
podman run --detach --name=web --network=none --stop-timeout=0 --memory=400m --rootfs /var/tmp/rootfs /bin/sleep 1000000 >/dev/null
# What it answers with is read from the disk the first time, which may take longer than the daemon
# waits for an answer.
podman_answers() {
  [ -S /run/forebay-podman.sock ] && podman --url unix:///run/forebay-podman.sock version >/dev/null 2>&1
}
await "Podman answers" podman_answers
# What crun tells systemd of "no quota" leaves a hundredth of a CPU, so none is set.
in_a_scope podman /run/forebay-podman.sock "max 100000"
kill $service
wait $service || true
rm -f daemon.log

echo "== Docker"
echo '{"bridge": "none", "iptables": false, "ip6tables": false, "storage-driver": "vfs"}' >docker.json
dockerd --config-file=docker.json >runtime.log 2>&1 &
service=$!
await "Docker answers" docker info >/dev/null 2>&1
tar -C rootfs -c . | docker import - image >/dev/null
docker run --detach --name=web --network=none --stop-timeout=0 --memory=400m image /bin/sleep 1000000 >/dev/null
in_a_scope docker /var/run/docker.sock "150000 100000"
kill $service
wait $service || true

echo "== groups of their own"
./daemon --test-threads=2 --show-output a_container_is_limited_through_its_runtime_and_put_back
