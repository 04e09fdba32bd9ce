//! The screen as text, and what keys do to it.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::cli::tests::{crunch, status, web};

fn tick() -> api::Tick {
    api::Tick {
        status: status(),
        apps: vec![crunch(), web()],
        events: vec![api::Event {
            time_unix_ms: 1_700_000_000_000,
            app: Some("web".to_owned()),
            kind: "slice".to_owned(),
            message: "cpuset.cpus = 1".to_owned(),
        }],
        fronts: Vec::new(),
    }
}

fn front(name: &str, stage: &str, primary: &str, instances: Vec<api::FrontInstance>) -> api::Front {
    api::Front {
        front: name.to_owned(),
        mode: "redis".to_owned(),
        stage: Some(stage.to_owned()),
        primary: Some(primary.to_owned()),
        instances,
        ..api::Front::default()
    }
}

fn instance(app: &str) -> api::FrontInstance {
    api::FrontInstance {
        app: app.to_owned(),
        ready: true,
        ..api::FrontInstance::default()
    }
}

fn screen(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            line.trim_end().to_owned()
        })
        .collect()
}

fn press(state: &mut State, code: KeyCode) -> Option<Wish> {
    state.key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn everything_is_on_80_by_24() {
    let mut state = State::new(Vec::new());
    state.take(tick());
    let mut next = tick();
    next.status.period += 5;
    next.status.uptime_seconds += 0.5;
    next.status.agent.cpu_seconds += 0.002;
    next.events.clear();
    state.take(next);
    let lines = screen(&state, 80, 24);
    let rule = |title: &str| format!("{title}{}", "─".repeat(80 - title.chars().count()));
    let mut expected = vec![
        "forebay 0.1.0  partitioning  1 of 2 apps run  3.0 GiB memory available".to_owned(),
        "period 100 ms  late p99 0.4 ms  2 overruns  own use 0.4% of one CPU, 20.0 MiB".to_owned(),
        rule(" CPUs, shared: 0 "),
        "  0 |||||| 100% shared      1 ||....  41% web".to_owned(),
        rule(" Apps "),
        "APP        CLASS    STATE    USE  q50-q95-q99    CPUS    WGHT   MEM   LOW  HIGH"
            .to_owned(),
        "crunch     batch    ended       - -              -       -         -     -     -"
            .to_owned(),
        "web        critical running  0.41 0.40-0.60-0.80 1       10000  100M  150M   max"
            .to_owned(),
    ];
    expected.resize(17, String::new());
    expected.push(rule(" Events (UTC) "));
    expected.push("22:13:20 slice     web          cpuset.cpus = 1".to_owned());
    expected.resize(23, String::new());
    expected.push("q quit  p pause  up/down select  enter explain".to_owned());
    assert_eq!(lines, expected);
}

#[test]
fn who_serves_behind_a_front_and_who_stands_by_is_shown() {
    let shadow = api::FrontInstance {
        lag_bytes: Some(12 * 1024 + 100),
        lag_ms: Some(7),
        ..instance("cache-b")
    };
    let away = api::FrontInstance {
        trouble: Some("it does not run".to_owned()),
        ..instance("cache-c")
    };
    let detached = api::FrontInstance {
        detached: true,
        ..instance("pg-b")
    };
    let unknown = api::Front {
        front: "new".to_owned(),
        trouble: Some("it was not asked yet".to_owned()),
        ..api::Front::default()
    };
    let mut state = State::default();
    state.take(api::Tick {
        fronts: vec![
            front(
                "cache",
                "warm",
                "cache-a",
                vec![instance("cache-a"), shadow, away],
            ),
            front("desk", "warm", "desk", vec![instance("desk")]),
            front("pg", "down", "pg-a", vec![instance("pg-a"), detached]),
            unknown,
        ],
        ..tick()
    });
    let lines = screen(&state, 110, 24);
    let at = lines
        .iter()
        .position(|line| line.starts_with(" Fronts ─"))
        .unwrap();
    assert_eq!(
        lines[at + 1..at + 5],
        [
            "cache      warm     cache-a serves, cache-b stands by (12K behind, heard 7 ms ago), cache-c: it does not run",
            "desk       warm     desk serves",
            "pg         down     pg-a served last, pg-b is detached",
            "new        unknown  it was not asked yet",
        ]
    );
    assert!(lines[at + 5].starts_with(" Events"), "{lines:?}");

    // More than there is room for are counted.
    let mut many = tick();
    many.fronts = (0..9)
        .map(|n| front(&format!("f{n}"), "warm", "a", vec![instance("a")]))
        .collect();
    state.take(many);
    let lines = screen(&state, 80, 24);
    let at = lines
        .iter()
        .position(|line| line.starts_with(" Fronts ─"))
        .unwrap();
    assert_eq!(lines[at + 3], "f2         warm     a serves");
    assert_eq!(lines[at + 4], "6 more");
    for (width, height) in [(1, 1), (20, 5), (40, 10), (80, 12)] {
        screen(&state, width, height);
    }
}

#[test]
fn large_hosts_and_small_screens_are_shown_as_far_as_they_fit() {
    let mut large = tick();
    large.status.host.cpus = (0..128)
        .map(|id| api::Cpu {
            id,
            busy: None,
            owner: None,
            node: None,
            l3: None,
        })
        .collect();
    let mut state = State::default();
    state.take(large);
    let lines = screen(&state, 80, 24);
    assert!(lines[3].starts_with("  0    -       1    -  "), "{lines:?}");
    assert!(
        lines.iter().any(|line| line.ends_with(" more")),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|line| line.starts_with("web")),
        "{lines:?}"
    );
    for (width, height) in [(1, 1), (20, 5), (40, 10), (300, 100), (80, 3)] {
        screen(&state, width, height);
        screen(&State::default(), width, height);
    }
}

#[test]
fn the_selection_stays_with_its_app() {
    let mut state = State::default();
    assert_eq!(press(&mut state, KeyCode::Enter), None);
    state.take(tick());
    assert_eq!(state.selected(), Some(0));
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::Down);
    assert_eq!(state.selected(), Some(1));
    let mut next = tick();
    next.apps.insert(
        0,
        api::App {
            name: "a".to_owned(),
            ..crunch()
        },
    );
    state.take(next);
    assert_eq!(state.selected(), Some(2), "web moved down");
    assert_eq!(
        press(&mut state, KeyCode::Enter),
        Some(Wish::Explain("web".to_owned()))
    );
    press(&mut state, KeyCode::Home);
    assert_eq!(state.selected(), Some(0));
    press(&mut state, KeyCode::Up);
    assert_eq!(state.selected(), Some(0));
}

#[test]
fn an_explanation_covers_the_screen_until_left() {
    let mut state = State::default();
    state.take(tick());
    state.read("web is critical.\n\nIt uses 0.41 CPU now.".to_owned());
    let lines = screen(&state, 40, 10);
    assert!(lines[0].starts_with("┌ Why ─"), "{lines:?}");
    assert!(lines[1].starts_with("│web is critical."), "{lines:?}");
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::Down);
    let lines = screen(&state, 40, 10);
    assert!(lines[1].starts_with("│It uses"), "{lines:?}");
    assert_eq!(
        press(&mut state, KeyCode::Char('q')),
        None,
        "only leaves the text"
    );
    assert!(state.reading.is_none());
    assert_eq!(press(&mut state, KeyCode::Char('q')), Some(Wish::Quit));
}

#[test]
fn p_pauses_and_resumes() {
    let mut state = State::default();
    assert_eq!(press(&mut state, KeyCode::Char('p')), None);
    state.take(tick());
    assert_eq!(press(&mut state, KeyCode::Char('p')), Some(Wish::Pause));
    let mut paused = tick();
    paused.status.paused = true;
    state.take(paused);
    assert_eq!(press(&mut state, KeyCode::Char('p')), Some(Wish::Resume));
    assert!(screen(&state, 80, 24)[0].contains(" PAUSED "));
    state.say("only root may".to_owned());
    assert_eq!(screen(&state, 80, 24)[23], "only root may");
}

#[test]
fn control_c_always_ends() {
    let mut state = State::default();
    state.read("text".to_owned());
    let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.key(key), Some(Wish::Quit));
}

#[test]
fn a_new_daemon_starts_from_zero() {
    let mut state = State::default();
    state.take(tick());
    let mut restarted = tick();
    restarted.status.period = 0;
    restarted.status.uptime_seconds = 0.0;
    restarted.status.agent.cpu_seconds = 0.0;
    state.take(restarted);
    assert_eq!(state.agent_share, None);
    screen(&state, 80, 24);
}
