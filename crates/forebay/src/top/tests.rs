//! The screen as text, and what keys do to it.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

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
    drawn(state, width, height).0
}

fn drawn(state: &State, width: u16, height: u16) -> (Vec<String>, Spots) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let mut spots = Spots::default();
    terminal
        .draw(|frame| spots = draw::draw(frame, state))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let lines = (0..height)
        .map(|y| {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            line.trim_end().to_owned()
        })
        .collect();
    (lines, spots)
}

fn click(state: &mut State, spots: &Spots, column: u16, row: u16) -> Option<Wish> {
    mouse(
        state,
        spots,
        MouseEventKind::Down(MouseButton::Left),
        (column, row),
    )
}

fn mouse(state: &mut State, spots: &Spots, kind: MouseEventKind, at: (u16, u16)) -> Option<Wish> {
    let (column, row) = at;
    let modifiers = KeyModifiers::NONE;
    state.mouse(
        MouseEvent {
            kind,
            column,
            row,
            modifiers,
        },
        spots,
    )
}

/// So many apps of different names, use and classes.
fn many(count: usize) -> api::Tick {
    let apps = (0..count).map(|n| {
        let mut app = web();
        app.name = format!("app-{n:04}");
        app.usage.cpu_cores = Some(f64::from(u32::try_from(n % 97).unwrap()) / 100.0);
        app
    });
    api::Tick {
        apps: apps.collect(),
        ..tick()
    }
}

fn holds(lines: &[String], word: &str) -> bool {
    lines.iter().any(|line| line.contains(word))
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
        "1 host  2 apps  3 fronts  4 offload  5 updates  6 fleet  7 events  8 accel".to_owned(),
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
    expected.push(
        "q quit  p pause  up/down select  enter explain  / filter  s sort  ? help".to_owned(),
    );
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
    assert!(lines[4].starts_with("  0    -       1    -  "), "{lines:?}");
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
    state.read(
        " Why ",
        "web is critical.\n\nIt uses 0.41 CPU now.".to_owned(),
    );
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
fn p_pauses_and_resumes_after_it_was_asked() {
    let mut state = State::default();
    assert_eq!(press(&mut state, KeyCode::Char('p')), None);
    state.take(tick());
    let pause = |state: &mut State, answer: char| {
        assert_eq!(press(state, KeyCode::Char('p')), None);
        assert!(screen(state, 80, 24)[23].ends_with("y does it"));
        press(state, KeyCode::Char(answer))
    };
    assert_eq!(pause(&mut state, 'n'), None);
    assert_eq!(pause(&mut state, 'q'), None, "only leaves the question");
    assert_eq!(pause(&mut state, 'y'), Some(Wish::Pause));
    let mut paused = tick();
    paused.status.paused = true;
    state.take(paused);
    assert_eq!(pause(&mut state, 'y'), Some(Wish::Resume));
    assert!(screen(&state, 80, 24)[1].contains(" PAUSED "));
    state.say("only root may".to_owned());
    assert_eq!(screen(&state, 80, 24)[23], "only root may");
}

#[test]
fn each_view_has_its_key_its_tab_and_its_place_on_any_screen() {
    let mut state = State::default();
    let mut full = tick();
    full.apps[1].accelerator = Some(api::Accelerator {
        devices: 1,
        kernels: 2,
        busy: 0.25,
        on_cpu_per_second: 3.0,
        on_devices_per_second: 40.0,
        shared_bytes: 1 << 20,
        cpu_price: 2.5,
        quarantined: 0,
        faults: 0,
    });
    full.fronts = vec![front("cache", "warm", "a", vec![instance("a")])];
    state.take(full);
    let mut check = |key: char, word: &str| {
        assert_eq!(press(&mut state, KeyCode::Char(key)), None);
        let view = state.view;
        if view.is_asked() {
            assert!(holds(&screen(&state, 80, 24), "asking…"), "{key}");
            state.asked = Some((view, format!("told\n{word}")));
        }
        assert!(holds(&screen(&state, 80, 24), word), "{key}: {word}");
        for (width, height) in [(1, 1), (10, 3), (20, 5), (40, 10), (200, 60)] {
            screen(&state, width, height);
        }
        // What another view was told is not shown here.
        state.asked = Some((View::Host, "of another".to_owned()));
        assert!(!holds(&screen(&state, 80, 24), "of another"), "{key}");
    };
    check('1', "CPUs, shared");
    check('2', "expected at most");
    check('3', "listens on");
    check('4', "no app is constrained");
    check('5', "no update was run");
    check('6', "a member for");
    check('7', "22:13:20 slice");
    check('8', "CPU COUNTS AS");
    // By the mouse, and around the end by Tab.
    let (lines, spots) = drawn(&state, 80, 24);
    let column = u16::try_from(lines[0].find("3 fronts").unwrap()).unwrap();
    click(&mut state, &spots, column, 0);
    assert_eq!(state.view, View::Fronts);
    press(&mut state, KeyCode::BackTab);
    press(&mut state, KeyCode::BackTab);
    press(&mut state, KeyCode::BackTab);
    assert_eq!(state.view, View::Accelerators);
    assert_eq!(screen(&state, 40, 12)[0], "1  2  3  4  5  6  7  8 accel");
}

#[test]
fn apps_are_ordered_and_filtered_by_keys_and_heads() {
    let mut state = State::default();
    state.show(View::Apps);
    state.take(many(30));
    let first = |state: &State| state.app(0).unwrap().name.clone();
    press(&mut state, KeyCode::Char('s'));
    press(&mut state, KeyCode::Char('s'));
    assert_eq!(
        (state.sort, first(&state)),
        (Sort::Cpu, "app-0029".to_owned())
    );
    assert!(holds(&screen(&state, 80, 24), " Apps: by use "));
    press(&mut state, KeyCode::Char('r'));
    assert_eq!(first(&state), "app-0000");
    let (lines, spots) = drawn(&state, 80, 24);
    let heads = lines
        .iter()
        .position(|line| line.starts_with("APP"))
        .unwrap();
    let row = u16::try_from(heads).unwrap();
    click(&mut state, &spots, 0, row);
    assert_eq!((state.sort, state.reversed), (Sort::Name, false));
    click(&mut state, &spots, 0, row);
    assert_eq!(first(&state), "app-0029", "the second time turns it round");
    click(&mut state, &spots, 0, row);

    press(&mut state, KeyCode::Char('/'));
    for letter in "APP-001q".chars() {
        press(&mut state, KeyCode::Char(letter));
    }
    assert_eq!(state.count(), 0, "q is a letter here");
    assert!(screen(&state, 80, 24)[23].starts_with("show only: APP-001q_"));
    press(&mut state, KeyCode::Backspace);
    press(&mut state, KeyCode::Enter);
    assert_eq!((state.count(), first(&state)), (10, "app-0010".to_owned()));
    assert!(holds(&screen(&state, 80, 24), "10 of 30 with `APP-001`"));
    assert_eq!(
        press(&mut state, KeyCode::Esc),
        None,
        "only shows all again"
    );
    assert_eq!(state.count(), 30);
    assert_eq!(press(&mut state, KeyCode::Esc), Some(Wish::Quit));
}

#[test]
fn a_row_is_chosen_by_a_click_and_explained_by_another() {
    let mut state = State::default();
    state.show(View::Apps);
    state.take(many(100));
    let (_, spots) = drawn(&state, 80, 24);
    let at = (2, spots.rows.y + 3);
    assert_eq!(click(&mut state, &spots, at.0, at.1), None);
    assert_eq!(state.selected(), Some(3));
    assert_eq!(
        click(&mut state, &spots, at.0, at.1),
        Some(Wish::Explain("app-0003".to_owned()))
    );
    mouse(&mut state, &spots, MouseEventKind::ScrollDown, at);
    assert_eq!(state.selected(), Some(6));
    press(&mut state, KeyCode::End);
    let (lines, spots) = drawn(&state, 80, 24);
    assert!(holds(&lines, "app-0099"), "{lines:?}");
    // Beside everything, and below the last row.
    assert_eq!(click(&mut state, &spots, 79, 23), None);
    press(&mut state, KeyCode::PageUp);
    assert_eq!(state.selected(), Some(89));
}

#[test]
fn only_what_is_seen_costs_anything() {
    let mut state = State::default();
    state.show(View::Apps);
    for count in [200, 5000] {
        let before = state.orders;
        state.take(many(count));
        press(&mut state, KeyCode::Down);
        press(&mut state, KeyCode::Char('1'));
        press(&mut state, KeyCode::Char('2'));
        let (lines, spots) = drawn(&state, 80, 24);
        assert!(holds(&lines, "app-0001"));
        drawn(&state, 80, 24);
        assert_eq!(spots.formatted, usize::from(spots.rows.height), "{count}");
        assert!(spots.formatted < 24, "{count}");
        assert_eq!(state.orders - before, 1, "one order for each message");
    }
    assert_eq!(state.trails.len(), 5000);
    state.take(many(3));
    assert_eq!(state.trails.len(), 3, "what is gone is forgotten");
    // Many apps are told of more seldom: at most so many a second.
    for count in [0, 149, 150, 599, 600, 1999, 2000, 5000] {
        let per_second = f64::from(u32::try_from(count).unwrap()) / every(count).as_secs_f64();
        assert!(per_second <= 1000.0, "{count}: {per_second}");
    }
}

#[test]
fn events_are_told_newest_first_and_filtered() {
    let mut state = State::default();
    state.show(View::Events);
    for n in 0..600 {
        let mut next = tick();
        next.events[0].message = format!("event {n}.");
        state.take(next);
    }
    let lines = screen(&state, 80, 24);
    assert!(lines[4].ends_with("event 599."), "{lines:?}");
    mouse(
        &mut state,
        &Spots::default(),
        MouseEventKind::ScrollDown,
        (0, 0),
    );
    assert!(screen(&state, 80, 24)[4].ends_with("event 596."));
    press(&mut state, KeyCode::Char('/'));
    for letter in "event 123.".chars() {
        press(&mut state, KeyCode::Char(letter));
    }
    press(&mut state, KeyCode::Enter);
    press(&mut state, KeyCode::End);
    let (lines, spots) = drawn(&state, 80, 24);
    assert!(lines[4].ends_with("event 123."), "{lines:?}");
    state.drawn(&spots);
    assert_eq!(state.above, 0, "nobody scrolls beyond the last line");
    assert!(lines[5].is_empty(), "{lines:?}");
}

#[test]
fn what_is_longer_than_the_screen_is_wide_can_be_read_to_its_end() {
    let mut state = State::default();
    state.show(View::Offload);
    state.take(tick());
    let words = "some words ".repeat(200);
    let text = format!("{words}{} last", "x".repeat(150));
    state.asked = Some((View::Offload, text));
    for _ in 0..100 {
        let (_, spots) = drawn(&state, 60, 12);
        state.drawn(&spots);
        press(&mut state, KeyCode::Down);
    }
    let (lines, spots) = drawn(&state, 60, 12);
    assert!(lines.iter().any(|line| line.ends_with("last")), "{lines:?}");
    state.drawn(&spots);
    assert!((35..50).contains(&state.above), "{}", state.above);
}

#[test]
fn names_cannot_command_the_terminal() {
    let nasty = "a\u{1b}]0;x\u{7}\u{202e}b";
    let mut state = State::default();
    let mut bad = tick();
    bad.apps[0].name = nasty.to_owned();
    bad.events[0].app = Some(nasty.to_owned());
    bad.events[0].message = nasty.to_owned();
    bad.status.host.cpus[1].owner = Some(nasty.to_owned());
    bad.status.shortfalls = vec![nasty.to_owned()];
    bad.fronts = vec![front(nasty, "warm", nasty, vec![instance(nasty)])];
    state.take(bad);
    state.say(nasty.to_owned());
    for view in View::ALL {
        state.show(view);
        state.asked = Some((view, nasty.to_owned()));
        let mut text = screen(&state, 120, 40).concat();
        text += &once::text(&state, 120).replace('\n', "");
        let obeyed = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!text.contains(obeyed), "{view:?}: {text:?}");
        assert!(
            text.contains("a\u{fffd}]0;x\u{fffd}\u{fffd}b"),
            "{view:?}: {text}"
        );
    }
}

#[test]
fn a_daemon_that_is_gone_is_said_until_it_is_back() {
    let mut state = State::default();
    state.take(tick());
    state.miss("the daemon stopped; waiting for it".to_owned());
    press(&mut state, KeyCode::Down);
    let lines = screen(&state, 80, 24);
    assert!(lines[1].contains(" NO DAEMON "), "{lines:?}");
    assert_eq!(lines[23], "the daemon stopped; waiting for it");
    state.take(tick());
    let lines = screen(&state, 80, 24);
    assert!(lines[1].contains("partitioning"), "{lines:?}");
    assert!(lines[23].starts_with("q quit"), "{lines:?}");
}

#[test]
fn one_look_has_every_app() {
    let mut state = State::default();
    state.take(many(5000));
    state.show(View::Apps);
    let text = once::text(&state, 132);
    let rows = text.lines().filter(|line| line.starts_with("app-")).count();
    assert_eq!(rows, 5000);
    assert!(text.lines().all(|line| line.chars().count() <= 132));
    assert!(!text.contains("q quit"), "keys are for who has some");
}

#[test]
fn control_c_always_ends() {
    let mut state = State::default();
    state.read(" Why ", "text".to_owned());
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
