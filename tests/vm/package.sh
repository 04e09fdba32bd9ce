#!/bin/bash
# about: the Debian package: installed, first decision within 10 s, a service protected by setup, upgraded, purged
# kernels: stable
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
ExecStart=/host/bin/forebay workload service --port 8099 --iterations 1000
UNIT
systemctl daemon-reload
systemctl start shop
shop=/sys/fs/cgroup/system.slice/shop.service
weight=$(cat $shop/cpu.weight)

echo "== install, and the first decision"
start=$(milliseconds 0)
dpkg -i "$package"
installed=$(milliseconds "$start")
# The package brings comments alone; this is what a new user would have from setup, without its watching.
printf '[apps.shop]\nclass = "critical"\nsystemd = "shop.service"\n' >>/etc/forebay/forebay.toml
await "the daemon answers" $forebay status >/dev/null 2>&1
$forebay reload
decided() { [ "$(cat $shop/cpu.weight)" = 10000 ]; }
until decided; do
  [ "$(milliseconds "$start")" -lt 120000 ] || fail "no decision"
  sleep 0.05
done
total=$(milliseconds "$start")
echo "installed within $installed ms, first decision in force after $total ms"
[ "$total" -lt 10000 ] || fail "$total ms from installation to the first decision, and 10000 were promised"
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

echo "== upgrade"
pid=$(systemctl show --value -p MainPID shop)
old=$(systemctl show --value -p MainPID forebay)
dpkg -i "$package"
await "another daemon answers" sh -c "[ \"\$(systemctl show --value -p MainPID forebay)\" != $old ] && forebay status"
await "the service is protected still" decided
[ "$(systemctl show --value -p MainPID shop)" = "$pid" ] || fail "the service was disturbed"

echo "== purge"
dpkg --purge forebay
is_put_back || fail "the weight is $(cat $shop/cpu.weight), and was $weight"
for left in /usr/bin/forebay /etc/forebay /var/lib/forebay /run/forebay /lib/systemd/system/forebay.service; do
  [ ! -e $left ] || fail "$left is left"
done
! getent group forebay >/dev/null || fail "the group is left"
[ "$(systemctl show --value -p MainPID shop)" = "$pid" ] || fail "the service was disturbed"
