#!/bin/bash
# about: userspace begins anew under critical apps that serve on: a program, one behind a front, a unit of systemd's; a prober counts
# kernels: stable
# routine: none
# machine: --smp 2 --mem 1024 --reboots
# seconds: 1500
# Begun again after each soft reboot: $home/stage says how far it is.
set -eu
home=/var/lib/soft-test
mkdir -p $home
cd $home
. /host/tests/steps
forebay=/usr/local/bin/forebay
asked=http://127.0.0.1:7000/

evidence() {
  journalctl -u forebay -b --no-pager -o cat 2>/dev/null | tail -n 60 || true
  $forebay update status || true
  $forebay update history || true
  tail -n 5 prober.log 2>/dev/null || true
}

reboots() { systemctl show --value -p SoftRebootsCount; }
pid_of() { # APP: systemd knows that of its unit
  [ "$1" != unit ] || { systemctl show --value -p MainPID survivor; return; }
  $forebay apps --json | python3 -c "
import json, sys
apps = json.load(sys.stdin)
apps = apps['apps'] if isinstance(apps, dict) else apps
print(next((app.get('main_pid') or '' for app in apps if app['name'] == '$1'), ''))"
}
runs() { [ "$(pid_of "$1" 2>/dev/null || echo 0)" != 0 ] && [ -n "$(pid_of "$1" 2>/dev/null)" ]; }
listens() { (exec 3<>/dev/tcp/127.0.0.1/"$1") 2>/dev/null; }
serves() { python3 -c "import urllib.request as u; u.urlopen('$asked', timeout=5).read()" 2>/dev/null; }
over() { # OUTCOME NUMBER
  $forebay update status --json >status.json && $forebay update history --json >history.json && python3 -c "
import json, sys
history = json.load(open('history.json'))
history = history['history'] if isinstance(history, dict) else history
done = {one['number']: one['outcome'] for one in history}
sys.exit(done.get($2) != '$1' or json.load(open('status.json')).get('current') is not None)"
}
marked() { python3 -c "import os; os.getxattr('$root/$1', 'user.survive_final_kill_signal')" 2>/dev/null; }

next() { # STAGE: durable
  echo "$1" >stage
  sync
}

gone() { # waits until this very script is ended with userspace
  sleep 900
  fail "userspace did not begin anew"
}

install() {
  cp /host/bin/forebay $forebay
  cat >server.py <<'PY'
# Answers each request with its process number; says so on its output now and then, as programs do.
import os, socket, sys, threading
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", int(sys.argv[1])))
server.listen(128)
body = b"%d\n" % os.getpid()
answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
served = 0
def serve(client):
    global served
    with client:
        pending = b""
        while True:
            while b"\r\n\r\n" in pending:
                pending = pending.split(b"\r\n\r\n", 1)[1]
                client.sendall(answer)
                served += 1
                if served % 50 == 0:
                    print("served", served, flush=True)
            try:
                more = client.recv(65536)
            except ConnectionError:
                return
            if not more:
                return
            pending += more
while True:
    client, _ = server.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
PY
  cat >prober.py <<'PY'
# Asks all that is to serve on, from a group that systemd spares, by new connections and by one that is kept; looks
# whether the slice is in force. Ends when the file `stop` is there.
import os, socket, time
group = "/sys/fs/cgroup/prober"
os.makedirs(group, exist_ok=True)
open(group + "/cgroup.procs", "w").write("0")
os.setxattr(group, "user.survive_final_kill_signal", b"1")
ports = {"front": 7000, "program": 7001, "unit": 7003}
asked = dict.fromkeys(list(ports) + ["kept"], 0)
failed, longest, first = dict(asked), dict.fromkeys(asked, 0.0), {}
weights, pids = set(), {name: set() for name in asked}
def ask(name, connection):
    began = time.monotonic()
    asked[name] += 1
    try:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.recv(4096)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise OSError("answered %r" % answer[:60])
        pids[name].add(answer.split()[-1].decode())
    except OSError as error:
        failed[name] += 1
        first.setdefault(name, "%s" % error)
    longest[name] = max(longest[name], time.monotonic() - began)
def connected(name, port):
    began = time.monotonic()
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    except OSError as error:
        asked[name] += 1
        failed[name] += 1
        first.setdefault(name, "connect: %s" % error)
        return None
    longest[name] = max(longest[name], time.monotonic() - began)
    return connection
kept = connected("kept", 7001)
while not os.path.exists("stop"):
    for name, port in ports.items():
        connection = connected(name, port)
        if connection:
            with connection:
                ask(name, connection)
    ask("kept", kept)
    try:
        weights.add(open("/sys/fs/cgroup/forebay.program/cpu.weight").read().strip())
    except OSError as error:
        weights.add("%s" % error.strerror.replace(" ", "-"))
    time.sleep(0.02)
with open("probed.new", "w") as file:
    for name in asked:
        print(name, asked[name], failed[name], "%.1f" % (longest[name] * 1000), ",".join(sorted(pids[name])), first.get(name, ""), file=file)
    print("weights", *sorted(weights), file=file)
os.rename("probed.new", "probed")
PY
  cat >other.py <<'PY'
# Not critical: it ends when it is asked to, and saves then.
import os, signal, sys, time
def end(*_):
    with open("/var/lib/soft-test/saved", "a") as file:
        print(os.getpid(), file=file)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(3600)
PY
  cat >/etc/forebay.toml <<'TOML'
[daemon]
state_dir = "/var/lib/forebay"
[apps.program]
class = "critical"
restart = "always"
directory = "/var/lib/soft-test"
exec = ["python3", "/var/lib/soft-test/server.py", "7001"]
[apps.shop-a]
class = "critical"
restart = "always"
directory = "/var/lib/soft-test"
exec = ["python3", "/var/lib/soft-test/server.py", "7002"]
[apps.shop-b]
class = "critical"
restart = "always"
directory = "/var/lib/soft-test"
exec = ["python3", "/var/lib/soft-test/server.py", "7004"]
[apps.unit]
class = "critical"
systemd = "survivor.service"
[apps.other]
class = "standard"
restart = "never"
exec = ["python3", "/var/lib/soft-test/other.py"]
[fronts.shop]
mode = "http"
listen = ["127.0.0.1:7000"]
instances = { shop-a = "127.0.0.1:7002", shop-b = "127.0.0.1:7004" }
TOML
  cat >/etc/systemd/system/survivor.service <<'UNIT'
[Service]
ExecStart=/usr/bin/python3 /var/lib/soft-test/server.py 7003
UNIT
  cat >/etc/systemd/system/forebay.service <<'UNIT'
[Unit]
After=local-fs.target dbus.service
[Service]
Type=exec
ExecStart=/usr/local/bin/forebay daemon --config /etc/forebay.toml
KillMode=process
Restart=always
RestartSec=100ms
[Install]
WantedBy=multi-user.target
UNIT
  $forebay check /etc/forebay.toml
  systemctl daemon-reload
  systemctl start survivor
  systemctl enable --now forebay
}

remember() { # what must be the same afterwards
  for app in program shop-a shop-b shop.front unit; do pid_of $app; done >pids
  pid_of other >other.pid
  cat /proc/sys/kernel/random/boot_id >boot
}

probed() { # TABLE: what the prober saw, who was probed all the time
  touch stop
  await "the prober ends" test -e probed
  rm stop
  cat probed
  [ "$(sed -n 's/^weights //p' probed)" = 10000 ] || fail "the slice was not in force all the time"
  while read -r name asked failed longest pids first; do
    [ "$name" != weights ] || continue
    [ "$failed" = 0 ] || fail "$name: $failed of $asked requests failed: $first"
    [ "$asked" -gt 100 ] || fail "$name: only $asked requests"
    case $pids in *,*) fail "$name: another process answered: $pids" ;; esac
    echo "table: $1, $name: $asked requests, $failed failed, longest $longest ms, one process"
  done <probed
  rm probed
}

same() { # NUMBER of the update
  [ "$(cat /proc/sys/kernel/random/boot_id)" = "$(cat boot)" ] || fail "the kernel began anew"
  await "the daemon answers" $forebay status >/dev/null 2>&1
  await "update $1 is over" over committed "$1"
  $forebay update history
  for app in program shop-a shop-b shop.front unit; do await "$app runs" runs $app; pid_of $app; done >pids.now
  diff pids pids.now || fail "not the same processes run"
  await "the other begins again" runs other
  [ "$(pid_of other)" != "$(cat other.pid)" ] || fail "the other did not end"
  grep -qx "$(cat other.pid)" saved || fail "the other was not asked to end"
  ! marked forebay.program || fail "the mark is left"
  [ ! -e /var/lib/forebay/respite.json ] || fail "the respite is left"
}

probe() {
  setsid python3 prober.py >prober.log 2>&1 </dev/null &
}

stage=$(cat stage 2>/dev/null || echo install)
echo "== $stage, systemd $(systemctl --version | head -n 1), soft reboots: $(reboots)"
case $stage in
install)
  install
  await "the front serves" serves
  for app in program shop-a shop-b unit other; do await "$app runs" runs $app; done
  # A unit that would end with all others is named, and nothing happens.
  $forebay update plan --rung soft-reboot -- true | tee plan || true
  grep -q 'survivor.service lacks SurviveFinalKillSignal=yes' plan || fail "it is not said what the unit lacks"
  grep -q 'survivor.service lacks DefaultDependencies=no' plan || fail "it is not said what the unit lacks"
  if $forebay update run --unproved --rung soft-reboot -- touch $home/never; then fail "it went on"; fi
  [ ! -e never ] || fail "the command ran"
  cat >/etc/systemd/system/survivor.service <<'UNIT'
[Unit]
SurviveFinalKillSignal=yes
IgnoreOnIsolate=yes
DefaultDependencies=no
After=basic.target
Conflicts=reboot.target kexec.target poweroff.target halt.target
Before=reboot.target kexec.target poweroff.target halt.target
[Service]
ExecStart=/usr/bin/python3 /var/lib/soft-test/server.py 7003
[Install]
WantedBy=multi-user.target
UNIT
  systemctl daemon-reload
  systemctl enable survivor
  systemctl restart survivor
  for port in 7001 7003; do await "somebody listens at $port" listens $port; done
  $forebay update plan --rung soft-reboot -- true | tee plan
  grep -q 'soft-reboot' plan || fail "it is not planned"
  remember
  probe
  next soft
  echo "mark: down soft-reboot"
  $forebay update run --detach --unproved --rung soft-reboot -- sh -c 'echo x >>/var/lib/soft-test/ran'
  gone
  ;;
soft)
  echo "mark: up soft-reboot"
  [ "$(reboots)" = 1 ] || fail "not one soft reboot"
  same 1
  [ "$(cat ran)" = x ] || fail "the command did not run once"
  probed "soft reboot"
  # By its command alone.
  remember
  probe
  next again
  $forebay update run --detach --unproved -- systemctl soft-reboot
  gone
  ;;
again)
  [ "$(reboots)" = 2 ] || fail "not two soft reboots"
  same 2
  probed "by its command"
  ;;
esac
