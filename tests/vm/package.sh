#!/bin/bash
# about: the Debian package: installed, its first decision timed, a service protected by setup, held to its unit, upgraded, purged
# kernels: stable
# routine: none
# needs: package
# machine: --smp 2 --mem 768
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
forebay=forebay
package=$(ls /host/forebay_*.deb)

evidence() {
  journalctl -u forebay --no-pager | tail -n 30 || true
  cat /etc/forebay/forebay.toml 2>/dev/null || true
}

milliseconds() { # since START, in milliseconds of uptime
  awk -v start="$1" '{printf "%d", $1 * 1000 - start}' /proc/uptime
}

# What a host already runs: a service that listens.
cat >/run/systemd/system/shop.service <<'UNIT'
[Service]
CPUWeight=150
ExecStart=/host/bin/forebay workload service --port 8099 --iterations 1000
UNIT
systemctl daemon-reload
systemctl start shop
shop=/sys/fs/cgroup/system.slice/shop.service
weight=$(cat $shop/cpu.weight)
[ "$weight" = 150 ] || fail "the weight is $weight, and 150 was asked for"

echo "== install, and the first decision"
start=$(milliseconds 0)
dpkg -i "$package"
installed=$(milliseconds "$start")
# The package brings comments alone; this is what a new user would have from setup, without its watching.
printf '[apps.shop]\nclass = "critical"\nsystemd = "shop.service"\n' >>/etc/forebay/forebay.toml
await "the daemon answers" $forebay status >/dev/null 2>&1
$forebay reload
decided() { [ "$(cat $shop/cpu.weight)" = 10000 ]; }
main_pid() { systemctl show --value -p MainPID "$1"; }
answers_anew() { # OLD: another process than this one does
  [ "$(main_pid forebay)" != "$1" ] && $forebay status >/dev/null 2>&1
}
until decided; do
  [ "$(milliseconds "$start")" -lt 120000 ] || fail "no decision"
  sleep 0.05
done
total=$(milliseconds "$start")
echo "table: installed within $installed ms, first decision in force after $total ms"
# Ten seconds are promised of a host. An emulated one takes ten times as long to unpack, and longer beside others.
[ "$total" -lt 100000 ] || fail "$total ms from installation to the first decision, which is too long for a guest, too"
systemctl is-enabled --quiet forebay || fail "it is not enabled"

echo "== setup"
printf '# only words\n' >/etc/forebay/forebay.toml
$forebay reload
is_put_back() { [ "$(cat $shop/cpu.weight)" = "$weight" ]; }
await "it is put back" is_put_back
$forebay setup --seconds 2
grep -q '^mode = "observe"' /etc/forebay/forebay.toml || fail "it does not only observe"
grep -q '^systemd = "shop.service"' /etc/forebay/forebay.toml || fail "the service was not found"
$forebay reload
await "it only observes" sh -c "$forebay status | grep -q paused"
is_put_back || fail "something was changed"
$forebay setup --protect shop 2>refusal && fail "a configuration was written over"
grep -q "left as it is" refusal || fail "it does not say why: $(cat refusal)"
printf '# only words\n' >/etc/forebay/forebay.toml
$forebay setup --seconds 2 --protect shop
$forebay reload
await "the service is protected" decided

echo "== its unit"
systemd-analyze security forebay.service --no-pager | tail -n 1 | sed 's/^/table: /'
pid=$(main_pid shop)
old=$(main_pid forebay)
# The daemon cannot write the files of the system, and an app that it starts sees the host as it is.
grep -Eq ' /usr ro[, ]' /proc/"$old"/mountinfo || fail "the daemon could write /usr"
cat >>/etc/forebay/forebay.toml <<'TOML'
[apps.job]
class = "batch"
exec = ["/bin/sh", "-c", "touch /usr/of-an-app && exec sleep 1000000"]
directory = "/var"
TOML
$forebay reload
await "an app may what the daemon may not" test -e /usr/of-an-app
await "the app is known" sh -c "$forebay apps | grep -q 'job.*running'"
job=$(pgrep -f 'sleep 1000000')
[ "$(readlink /proc/"$job"/ns/mnt)" = "$(readlink /proc/1/ns/mnt)" ] || fail "it has another view than the host"
[ "$(readlink /proc/"$job"/cwd)" = /var ] || fail "it runs in $(readlink /proc/"$job"/cwd)"
# One that hangs is started anew, and nobody else.
mkdir -p /run/systemd/system/forebay.service.d
printf '[Service]\nWatchdogSec=5s\nTimeoutAbortSec=1s\n' >/run/systemd/system/forebay.service.d/soon.conf
systemctl daemon-reload
systemctl restart forebay
await "it answers" answers_anew "$old"
old=$(main_pid forebay)
kill -STOP "$old"
await "the watchdog bites" answers_anew "$old"
await "the service is protected still" decided
[ "$(main_pid shop)" = "$pid" ] || fail "the service was disturbed"
[ "$(pgrep -f 'sleep 1000000')" = "$job" ] || fail "the app was disturbed"
rm -r /run/systemd/system/forebay.service.d
systemctl daemon-reload

echo "== upgrade"
old=$(main_pid forebay)
dpkg -i "$package"
await "another daemon answers" answers_anew "$old"
await "the service is protected still" decided
[ "$(main_pid shop)" = "$pid" ] || fail "the service was disturbed"
[ "$(pgrep -f 'sleep 1000000')" = "$job" ] || fail "the app was disturbed"

echo "== purge"
dpkg --purge forebay
is_put_back || fail "the weight is $(cat $shop/cpu.weight), and was $weight"
for left in /usr/bin/forebay /etc/forebay /var/lib/forebay /run/forebay /lib/systemd/system/forebay.service \
  /etc/systemd/system/multi-user.target.wants/forebay.service; do
  [ ! -e $left ] || fail "$left is left: $(find $left)"
done
! getent group forebay >/dev/null || fail "the group is left"
! ls -d /sys/fs/cgroup/forebay* 2>/dev/null || fail "a group is left"
[ "$(main_pid shop)" = "$pid" ] || fail "the service was disturbed"
