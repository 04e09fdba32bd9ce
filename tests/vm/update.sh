#!/bin/bash
# about: an update of the system that keeps redis and a service of its own over a kexec and over a reboot, beside a plain reboot
# kernels: old
# routine: none
# machine: --smp 2 --mem 1024 --reboots
# seconds: 1500
# Begun again after each boot: $home/stage says how far it is. Times are measured from outside the guest.
set -eu
home=/var/lib/update-test
mkdir -p $home
cd $home
. /host/tests/steps
forebay=/usr/local/bin/forebay
redis=127.0.0.1/6379
ledger=127.0.0.1/7001

evidence() {
  journalctl -u forebay -b --no-pager -o cat 2>/dev/null | tail -n 40 || true
  tail -n 5 /var/lib/forebay/images/*/*/*.log 2>/dev/null || true
  $forebay update status || true
}

says() { # ADDRESS LINE: the answer is in $answer
  { printf '%s\r\n' "$2" >&3 && read -r -t 5 answer <&3; } 2>/dev/null 3<>/dev/tcp/"$1" || return 1
  answer=${answer%$'\r'}
}

redis_answers() { says $redis PING && [ "$answer" = +PONG ]; } 2>/dev/null
ledger_answers() { says $ledger sum; } 2>/dev/null

redis_sum() {
  redis-cli eval "local s='' for i=1,2000 do s=redis.sha1hex(s..(redis.call('get','key:'..i) or '-')) end return s" 0
}

ledger_sum() {
  says $ledger sum
  echo "$answer"
}

fill() { # NAME: gives both something to lose
  redis-cli eval "for i=1,2000 do redis.call('set','key:'..i,ARGV[1]..i) end" 0 "$1" >/dev/null
  for n in 1 2 3 4 5; do says $ledger "add $1$n"; done
  redis_sum >redis.sum
  ledger_sum >ledger.sum
}

next() { # STAGE: durable, since the guest is about to go
  echo "$1" >stage
  sync
}

down() { # NAME ANSWERS: waits until nobody answers, then until the guest goes
  while $2; do :; done
  echo "mark: down $1"
  sleep 600
  fail "the guest did not begin anew"
}

up() { # NAME ANSWERS
  local deadline=$((SECONDS + 300))
  until $2; do [ $SECONDS -lt $deadline ] || fail "$1: nobody answers"; done
  echo "mark: up $1"
}

update() {
  $forebay update run --detach --unproved --rung checkpoint -- sh -c 'echo x >>/var/lib/update-test/ran'
}

imaged() { # both were written down once, which the daemon does when they have just begun
  [ "$($forebay image --json | tr -d ' \n' | grep -o '"taken_unix_ms":[0-9]' | wc -l)" = 2 ]
}

over() { # OUTCOME
  $forebay update history --json | tr -d ' \n' | grep -q "\"outcome\":\"$1\"[^{]*.*$" &&
    $forebay update status --json | tr -d ' \n' | grep -q '"current":null'
}

install() {
  cp /host/bin/forebay $forebay
  cat >ledger.py <<'PY'
import socket, zlib
state, server = [], socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 7001))
server.listen(16)
while True:
    client, _ = server.accept()
    with client:
        words = client.makefile().readline().split()
        if words[:1] == ["add"]:
            state.append(words[1])
        client.sendall(b"%d %08x\n" % (len(state), zlib.crc32(" ".join(state).encode())))
PY
  cat >/etc/forebay.toml <<'TOML'
[daemon]
state_dir = "/var/lib/forebay"
[apps.cache]
class = "critical"
restart = "always"
directory = "/var/lib/update-test"
exec = ["redis-server", "--bind", "127.0.0.1", "--save", ""]
images = { every = "1h" }
stdout = "/var/lib/update-test/redis.log"
stderr = "/var/lib/update-test/redis.log"
[apps.ledger]
class = "standard"
restart = "always"
directory = "/var/lib/update-test"
exec = ["python3", "/var/lib/update-test/ledger.py"]
images = { every = "1h" }
stdout = "/var/lib/update-test/ledger.log"
stderr = "/var/lib/update-test/ledger.log"
TOML
  cat >damage <<'SH'
#!/bin/sh
# Before the daemon begins, once: an image of redis that is not as it was written.
[ -e /var/lib/update-test/damages ] || exit 0
rm /var/lib/update-test/damages
for file in /var/lib/forebay/images/cache/[0-9]*/pages-*.img; do
  printf x | dd of="$file" bs=1 seek=5000 conv=notrunc
done
SH
  chmod +x damage
  cat >/etc/systemd/system/forebay.service <<'UNIT'
[Unit]
After=local-fs.target
[Service]
Type=exec
ExecStartPre=/var/lib/update-test/damage
ExecStart=/usr/local/bin/forebay daemon --config /etc/forebay.toml
KillMode=process
Restart=always
RestartSec=100ms
[Install]
WantedBy=multi-user.target
UNIT
  systemctl daemon-reload
  systemctl enable --now forebay
}

stage=$(cat stage 2>/dev/null || echo install)
echo "== $stage, kernel $(uname -r)"
case $stage in
install)
  install
  await "redis answers" redis_answers
  await "the service answers" ledger_answers
  fill first
  $forebay check /etc/forebay.toml
  next plain
  # Its services go first thing in a shutdown; from then on its clients wait.
  echo "mark: down plain-reboot"
  systemctl reboot
  sleep 600
  ;;
plain)
  up plain-reboot redis_answers
  await "the service answers" ledger_answers
  [ "$(redis_sum)" != "$(cat redis.sum)" ] || fail "a plain reboot kept what was in memory"
  echo "table: plain-reboot: all that was in memory is lost"
  fill second
  await "the first images" imaged
  $forebay update plan --rung checkpoint -- true | tee plan
  grep -q 'kexec' plan || fail "kexec is not foreseen"
  uname -r >kernel
  next kexec
  update
  down checkpoint-kexec redis_answers
  ;;
kexec)
  up checkpoint-kexec redis_answers
  [ "$(redis_sum)" = "$(cat redis.sum)" ] || fail "redis lost something"
  await "the service answers" ledger_answers
  [ "$(ledger_sum)" = "$(cat ledger.sum)" ] || fail "the service lost something: $(ledger_sum), $(cat ledger.sum)"
  # The clock that it times by went on as well: in this boot it began anew, and is younger than redis.
  redis-cli set gone 1 px 100 >/dev/null
  deadline=$((SECONDS + 10))
  until [ "$(redis-cli dbsize)" = 2000 ]; do [ $SECONDS -lt $deadline ] || fail "redis waits for its clock"; done
  [ "$(uname -r)" != "$(cat kernel)" ] || fail "the same kernel runs: $(uname -r)"
  await "the update is over" over committed
  [ "$(cat ran)" = x ] || fail "the command did not run once"
  $forebay update history
  echo "table: checkpoint-kexec: redis and the service have all that they had, under $(uname -r)"
  # Without kexec, and with an image of redis that the disk gave back wrong.
  mv /usr/sbin/kexec $home/
  fill third
  touch damages
  await "the first images" imaged
  next damaged
  update
  down checkpoint-reboot ledger_answers
  ;;
damaged)
  up checkpoint-reboot ledger_answers
  [ "$(ledger_sum)" = "$(cat ledger.sum)" ] || fail "the service lost something: $(ledger_sum), $(cat ledger.sum)"
  await "redis answers" redis_answers
  [ "$(redis-cli dbsize)" = 0 ] || fail "redis began from a damaged image"
  await "the update is over" over alarmed
  $forebay update history | tee history
  grep -q 'cache lost what it had' history || fail "nobody is told"
  $forebay events --app cache | grep -q 'checksum' || fail "the reason is not told"
  echo "table: checkpoint-reboot: the service has all that it had; a damaged image is told of, and redis begins afresh"
  ;;
esac
