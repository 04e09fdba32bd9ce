//! The daemon moves files by itself and when asked, beside applications that use them.

use std::path::Path;

use forebay_host::mounts::{Controller, Hierarchies};

use crate::check;

/// What the scripts below have: a daemon of their own, and bounded waits.
const DAEMON: &str = r#"
ROOT=$1; EXE=$2; DAEMON=
cat >> forebay.toml <<END
[daemon]
socket = "$ROOT/socket"
state_dir = "$ROOT/state"
cgroup_root = "forebay-tier-test-$$"
lease = "1s"
END
give_up() { echo "GAVE UP: $1"; cat log; test -z "$DAEMON" || kill $DAEMON; exit 1; }
eventually() {
    n=0
    until eval "$1"; do
        n=$((n + 1)); test $n -lt 600 || give_up "$1"; sleep 0.1
    done
}
start() {
    rm -f socket
    "$EXE" daemon --config forebay.toml 2>> log & DAEMON=$!
    eventually '"$EXE" status --socket socket > /dev/null 2>&1'
}
stop() { kill $DAEMON; wait $DAEMON; RESULT=$?; DAEMON=; echo "daemon ended with $RESULT"; }
# Touches that are not merged into one, and then none: an opened file cannot be moved.
warm() { for n in 1 2 3; do cat "$@" > /dev/null; sleep 0.2; done; }
api() { curl -s --unix-socket socket "http://localhost/v1/$1"; }
touches() { api tiers | sed 's/.*"events":\([0-9]*\).*/\1/'; }
tier() { "$EXE" tier "$@" --config forebay.toml; }
state() { tier status --json | grep -q "\"state\": \"$1\""; }
# For a while: that nothing happens is no event to wait for.
stays_plain() { for n in 1 2 3 4 5 6 7 8; do plain; sleep 0.2; done; }
plain() {
    test -z "$(find slow/data -type l)" -a -z "$(ls fast/tier/files)" || give_up "not plain"
    for part in moves stage links kept; do
        test -z "$(ls slow/tier/$part)" || give_up "left in $part"
    done
}
"#;

fn with_daemon(test: &str, script: &str, words: &[&str]) {
    let hierarchies = Hierarchies::read(Path::new("/proc")).ok();
    let writable = hierarchies.is_some_and(|hierarchies| {
        let cpu = hierarchies.of(Controller::Cpu);
        cpu.is_some_and(|(_, hierarchy)| hierarchy.writable)
    });
    if !writable {
        println!("SKIPPED: {test}: no writable cpu control group");
        return;
    }
    check(test, &format!("{DAEMON}{script}"), true, words);
}

#[test]
fn what_is_used_is_promoted_and_drain_brings_it_back() {
    with_daemon(
        "what_is_used_is_promoted_and_drain_brings_it_back",
        r#"
        mkdir slow/data/deep
        for i in 1 2 3 4 5 6 7 8 9; do echo "content $i" > slow/data/deep/$i; done
        start
        eventually 'state idle'
        warm slow/data/deep/[25]
        eventually 'test -L slow/data/deep/2 -a -L slow/data/deep/5'
        test "$(find slow/data -type l | wc -l)" = 2 || give_up "others were promoted"
        tier status
        tier promote data "$ROOT/slow/data/deep/9" || give_up promote
        tier promote data absent && give_up "what is absent was promoted"
        test -L slow/data/deep/9 || give_up "not promoted"
        eventually 'curl -s --unix-socket socket http://localhost/metrics | grep -q "forebay_tier_files{tier=\"data\",side=\"fast\"} 3.0"'
        tier drain data || give_up drain
        plain
        eventually 'state drained'
        events=$(touches); warm slow/data/deep/[25]
        eventually 'test $(touches) -gt $events'
        stays_plain
        "$EXE" events --socket socket
        tier promote data deep/4 || give_up "promote after drain"
        stop
        test -L slow/data/deep/4 -a "$(cat slow/data/deep/4)" = "content 4" || give_up "4 is lost"
        start
        tier drain data || give_up "drain of the next daemon"
        stop
        plain
        for i in 1 2 3 4 5 6 7 8 9; do
            test "$(cat slow/data/deep/$i)" = "content $i" || give_up "$i is another"
        done
        "#,
        &[
            "to fast  deep/2  ",
            "touches/s over 10 B",
            "left absent: it is gone",
            "tier data: promoted 2 file(s) (20 B)",
            "moved deep/4 (10 B)\ndaemon ended with 0",
        ],
    );
}

#[test]
fn moves_wait_while_forebay_is_paused() {
    with_daemon(
        "moves_wait_while_forebay_is_paused",
        r#"
        echo content > slow/data/a
        start
        eventually 'state idle'
        "$EXE" pause --socket socket
        eventually 'state held'
        warm slow/data/a
        eventually 'test $(touches) -gt 0'
        stays_plain
        "$EXE" resume --socket socket
        warm slow/data/a
        eventually 'test -L slow/data/a'
        tier drain data
        stop
        plain
        "#,
        &["moved a (8 B)", "daemon ended with 0"],
    );
}

#[test]
fn a_file_that_is_held_open_for_ever_stops_no_other() {
    with_daemon(
        "a_file_that_is_held_open_for_ever_stops_no_other",
        r#"
        echo content > slow/data/held; echo content > slow/data/free
        sleep 1000 < slow/data/held & HOLDER=$!
        start
        eventually 'state idle'
        warm slow/data/held slow/data/free
        eventually 'test -L slow/data/free'
        eventually 'tier status | grep -q "held.*a process holds it open"'
        test -L slow/data/held && give_up "what is open was moved"
        kill $HOLDER; wait $HOLDER
        tier promote data held || give_up "closed, and not moved"
        tier drain data
        stop
        plain
        "#,
        &[
            "moved held (8 B)",
            "moved free (8 B)",
            "daemon ended with 0",
        ],
    );
}

#[test]
fn one_broken_tier_stops_nobody_and_comes_back() {
    with_daemon(
        "one_broken_tier_stops_nobody_and_comes_back",
        r#"
        mkdir slow/tier2 slow/data2 fast/tier2; chmod 755 slow/tier2 slow/data2 fast/tier2
        cat >> forebay.toml <<END
[tiers.other]
directory = "$ROOT/slow/data2"
fast = "$ROOT/fast/none"
slow = "$ROOT/slow/tier2"
fast_size_max = "1MiB"
volatile = true
END
        echo content > slow/data/a; echo content > slow/data2/b
        start
        eventually 'state broken || tier status 2>&1 | grep -q "make that directory for tier other"'
        warm slow/data/a
        eventually 'test -L slow/data/a'
        eventually '"$EXE" events --socket socket | grep -q "tier other: find $ROOT/fast/none"'
        tier status > status && give_up "a broken tier is no success"
        mv fast/tier2 fast/none
        # By the daemon, which tries again after a while.
        eventually 'api tiers | grep -q "\"tier\":\"other\",\"directory\":\"[^\"]*\",\"state\":\"idle\""'
        warm slow/data2/b
        eventually 'test -L slow/data2/b'
        tier status || give_up status
        tier drain data && tier drain other
        stop
        plain
        "#,
        &["moved a (8 B)\nmoved b (8 B)\ndaemon ended with 0"],
    );
}

/// kill -9 at random moments, while files go to and fro and an application appends to them:
/// every file is intact without Forebay, and the next daemon goes on.
#[test]
fn a_killed_daemon_loses_no_file() {
    let number = |name: &str, usual: u64| {
        let set = std::env::var(name).ok().and_then(|text| text.parse().ok());
        set.unwrap_or(usual)
    };
    let (kills, seed) = (number("FOREBAY_KILLS", 10), number("FOREBAY_SEED", 7));
    println!("{kills} kills of seed {seed}");
    let script = format!("KILLS={kills}; SEED={seed}\n{KILLS}");
    with_daemon("a_killed_daemon_loses_no_file", &script, &["all intact"]);
}

const KILLS: &str = r#"
random() { SEED=$(( (SEED * 1103515245 + 12345) % 2147483648 )); RANDOM_NUMBER=$(( SEED / 65536 % $1 )); }
app() {
    i=$1
    while test ! -e halt; do
        i=$(( (i * 5 + 7) % 24 ))
        echo "line $i" >> slow/data/$i && echo "line $i" >> ref/$i
        cat slow/data/$(( (i + 11) % 24 )) > /dev/null
    done
}
# Not by `forebay tier`, which would go on by itself when the daemon is dead.
ask() {
    curl -s --unix-socket socket http://localhost/v1/tiers/data/moves \
        -d "{\"order\":\"$1\",\"files\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\"]}"
}
sed -i 's/volatile = true/volatile = true\nbandwidth_max = "8MiB"/; s/1MiB/2MiB/' forebay.toml
mkdir ref
for i in $(seq 0 23); do head -c 150000 /dev/urandom > slow/data/$i; cp slow/data/$i ref/$i; done
recovered=0
for round in $(seq $KILLS); do
    start
    "$EXE" events --socket socket | grep -q "killed mover had left" && recovered=$((recovered + 1))
    rm -f halt; app $round & APP=$!
    (while test ! -e halt; do ask promote; ask demote; done) > /dev/null 2>&1 & MOVES=$!
    random 900
    sleep 0.$(printf %03d $RANDOM_NUMBER)
    kill -9 $DAEMON; wait $DAEMON 2> /dev/null
    touch halt; wait $APP
    wait $MOVES
    for i in $(seq 0 23); do
        cmp slow/data/$i ref/$i || give_up "round $round: $i is another"
    done
done
echo "$recovered of $KILLS daemons found a move to end or undo"
start
tier drain data > /dev/null || give_up drain
stop
plain
for i in $(seq 0 23); do cmp slow/data/$i ref/$i || give_up "in the end $i is another"; done
test $KILLS -lt 50 -o $recovered -gt 0 || give_up "nothing was tried"
echo all intact
"#;
