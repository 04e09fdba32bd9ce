#!/bin/bash
# about: the kernel watches which memory batch touches (DAMON): what is cold goes, what is hot stays; others' use is left alone; kill -9 leaves nothing
# kernels: stable old
# routine: none
# machine: --smp 2 --mem 1024 --disk 2G
# seconds: 600
set -eu
systemctl is-system-running --wait >/dev/null || true
cd /var/tmp
. /host/tests/steps
damon=/sys/kernel/mm/damon/admin/kdamonds
hot=32
cold=256

evidence() {
  $forebay explain crunch 2>&1 | tail -n 20 || true
  $forebay explain busy 2>&1 | tail -n 20 || true
  kdamonds || true
  for each in $damon/[0-9]*; do
    echo "$each: $(cat "$each/state" "$each/pid" "$each"/contexts/0/targets/*/pid_target 2>/dev/null | tr '\n' ' ')"
  done
}

mib() { # NAME FILE
  echo $(($(cat "$root/system.slice/$1.service/$2") >> 20))
}

kdamonds() { # the kernel's threads: number and name
  for each in /proc/[0-9]*; do
    local name
    name=$(cat "$each/comm" 2>/dev/null) || continue
    case $name in kdamond*) echo "${each#/proc/} $name" ;; esac
  done
}

is_watched() { # NAME: by what explain says
  $forebay explain "$1" | grep -q "watched by DAMON"
}

cold_of() { # NAME: MiB that are said to be cold; whoever is not watched has none
  local text
  text=$($forebay explain "$1" | sed -n 's/.* \([0-9.]* [KMG]\?i\?B\) of its anonymous memory are cold: watched.*/\1/p')
  case $text in
    *MiB) echo "${text%%.*}" ;;
    *GiB) fail "more than there is: $text" ;;
    *) echo 0 ;;
  esac
}

is_about_right() {
  [ "$(cold_of crunch)" -ge $((cold * 3 / 4)) ]
}

within() { # SECONDS COMMAND...
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 1
  done
}

told() { # WORDS: in an event
  $forebay events | grep -q "$1"
}

nothing_left() {
  [ "$(cat $damon/nr_kdamonds)" = 0 ] && [ -z "$(kdamonds)" ]
}

watches_somebody() {
  [ -n "$(kdamonds)" ]
}

config() { # LINES of the policy
  cat >forebay.toml <<TOML
[daemon]
lease = "2s"
[policy]
system_memory = "64MiB"
hot_memory = "watched"
$1
[apps.crunch]
class = "batch"
cgroup = "system.slice/crunch.service"
[apps.busy]
class = "batch"
cgroup = "system.slice/busy.service"
TOML
}

config ""
$forebay check forebay.toml
start_heap crunch --hot $hot --cold $cold --rate 20000
start_heap busy --hot 96 --rate 20000

if [ ! -e $damon ]; then
  echo "== a kernel without it"
  $forebay doctor >doctor || true
  grep DAMON doctor
  grep -q "there is no $damon/nr_kdamonds" doctor || fail "doctor does not say what is missing"
  start_daemon
  await "the lack is told" told "asks to watch which memory batch touches, and this kernel cannot"
  kill $daemon
  wait $daemon || fail "a clean stop ends with status $?"
  systemctl stop crunch busy
  echo "SKIPPED: watching itself: this kernel has no DAMON"
  exit 0
fi

mkswap -q /dev/vdb
swapon /dev/vdb

echo "== estimate"
nothing_left || fail "something uses DAMON from the start"
start_daemon
await "somebody is watched" watches_somebody
kdamonds
# The first minute says nothing.
within 150 is_about_right || true
said=$(cold_of crunch)
echo "crunch: $cold MiB are cold, $said are said to be; busy: $(cold_of busy) are said to be"
is_about_right || fail "of $cold MiB cold, $said are known"
[ "$said" -le $((cold + 8)) ] || fail "of $hot MiB hot, some are said to be cold: $said of $((hot + cold))"
[ "$(cold_of busy)" -le 24 ] || fail "of 96 MiB hot, $(cold_of busy) are said to be cold"
$forebay explain crunch | grep -o "[0-9.]* MiB of its anonymous memory are cold[^.]*"
# In between, one of them may be about to begin.
doctor_says_whose_it_is() {
  $forebay doctor >doctor || true
  grep -q "DAMON.*used by Forebay" doctor
}
within 30 doctor_says_whose_it_is || { grep DAMON doctor; fail "doctor does not say who uses it"; }

ticks() { # of all kernel threads
  kdamonds | while read -r pid _; do awk '{print $14 + $15}' "/proc/$pid/stat"; done | awk '{sum += $1} END {print sum + 0}'
}
before=$(ticks)
sleep 20
echo "cost: $(($(ticks) - before)) ticks of 10 ms in 20 s for $(kdamonds | wc -l) threads"

echo "== kill -9"
kill -9 $daemon
wait $daemon || true
await "nothing is left" nothing_left
[ "$(mib crunch memory.current)" -ge $((hot + cold)) ] || fail "watching alone took memory away"

echo "== somebody else's"
theirs() {
  echo 1 >$damon/nr_kdamonds
  echo 1 >$damon/0/contexts/nr_contexts
  echo vaddr >$damon/0/contexts/0/operations
  echo 1 >$damon/0/contexts/0/targets/nr_targets
  echo $$ >$damon/0/contexts/0/targets/0/pid_target
  echo on >$damon/0/state
}
theirs
thread=$(cat $damon/0/pid)
$forebay doctor >doctor || true
grep -q "DAMON.*somebody else uses DAMON" doctor || fail "doctor does not say whose it is"
start_daemon
await "it is told" told "somebody else uses DAMON.*left alone as long as it is so"
[ "$(cat $damon/nr_kdamonds $damon/0/pid | tr '\n' ' ')" = "1 $thread " ] || fail "somebody else's was changed"
is_watched crunch && fail "watched all the same"
echo off >$damon/0/state
echo 0 >$damon/nr_kdamonds
await "it is used when it is free" watches_somebody

echo "== somebody comes between"
for each in $damon/[0-9]*; do
  if [ "$(cat "$each/state")" = on ]; then
    echo off >"$each/state"
    break
  fi
done
await "that is noticed" told "somebody switched off the DAMON.*left alone until the next reload"
await "it is left to them" nothing_left

echo "== restore by hand"
$forebay reload >/dev/null
await "after a reload it is used again" watches_somebody
guardian=$(pgrep -f "guardian --daemon" | head -n 1)
kill -9 "$guardian" $daemon
wait $daemon || true
watches_somebody || fail "nothing to restore"
$forebay restore --state-dir /var/lib/forebay
nothing_left || fail "restore left it on"

echo "== effect"
config "reclaim_cold = true"
start_daemon
is_small() {
  [ "$(mib crunch memory.current)" -le $((hot + cold / 4)) ]
}
within 240 is_small || true
echo "crunch holds $(mib crunch memory.current) MiB, $(mib crunch memory.swap.current) in swap; busy $(mib busy memory.current), $(mib busy memory.swap.current)"
is_small || fail "what is cold was not taken back"
[ "$(mib busy memory.swap.current)" -le 16 ] || fail "what is hot was taken from busy"

echo "== a clean stop"
kill $daemon
wait $daemon || fail "a clean stop ends with status $?"
nothing_left || fail "a clean stop leaves it on"
systemctl stop crunch busy
