use super::*;

use forebay_core::outlook::Resource;

const APPS: &str = "[apps.web]\nmatch = { executable = \"nginx\" }\n";

#[track_caller]
fn check_events(text: &str, expected: &[&str]) {
    check(&format!("{APPS}{text}"), expected);
}

#[test]
fn events_and_calendars_become_sources() {
    let (host, _guard) = host();
    let ics =
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20240102\nEND:VEVENT\nEND:VCALENDAR\n";
    fs::write(host.root.join("srv/days.ics"), ics).unwrap();
    let text = format!(
        "{APPS}[[event]]\nname = \"report\"\nschedule = [\"Mon..Fri 12:00\", \"0 18 * * *\"]\n\
         timezone = \"UTC\"\nduration = \"30min\"\napps = [\"web\"]\nexcept = \"closed\"\ncpu = 2\n\
         memory = \"1GiB\"\nsent = \"8Mbit\"\nrequests = 50\n\
         [calendars.closed]\ndates = \"*-01-01\"\nics = \"/srv/days.ics\"\n"
    );
    let known = parse(&text, "f", &host).unwrap().known_future;
    let sources = known.sources();
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["event report", "calendar closed"]);
    let report = &sources[0];
    assert_eq!(report.lasts, Some(Duration::from_secs(1800)));
    assert_eq!(
        report.declared,
        [
            (Resource::Cpu, 2.0),
            (Resource::Memory, f64::from(1 << 30)),
            (Resource::Sent, 1e6),
            (Resource::Requests, 50.0),
        ]
    );
    let closed = &known.calendars["closed"];
    let new_years_eve = "2023-12-31T12:00:00Z".parse().unwrap();
    assert_eq!(
        closed.next_day(new_years_eve).unwrap().to_string(),
        "2024-01-01"
    );
    assert_eq!(closed.skipped, 0);
    // The first two days of 2024 are closed.
    let new_year = 1_704_067_200_000;
    assert_eq!(report.next_after(new_year), Some(new_year + 60 * 3_600_000));
    assert!(report.is_moment() && !sources[1].is_moment());
}

#[test]
fn a_calendar_of_which_nothing_is_understood_is_refused() {
    let (host, _guard) = host();
    let ics =
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART:20240101T090000Z\nEND:VEVENT\nEND:VCALENDAR\n";
    fs::write(host.root.join("srv/days.ics"), ics).unwrap();
    let text = format!("{APPS}[calendars.a]\nics = \"/srv/days.ics\"\n");
    let refused = parse(&text, "f", &host).unwrap_err().to_string();
    assert!(
        refused.contains(
            "f:4: calendars.a.ics: no day can be read of the file; 1 events were passed over"
        ),
        "{refused}"
    );
}

#[test]
fn mistakes_in_events_have_their_lines() {
    check_events(
        "[[event]]\nname = \"a\"\nschedule = \"25:00\"\napps = [\"wep\"]\nonly_on = \"nowhere\"\ncpus = 2\n",
        &[
            "f:5: event.1.schedule: `25` is no hour; write 0 to 23 with `,` or `..` between, `/` and a step, or `*`",
            "f:6: event.1.apps: there is no app `wep`; did you mean `web`?",
            "f:7: event.1.only_on: there is no calendar `nowhere`; write [calendars.NAME] for it",
            "f:8: unknown key `cpus` in [event.1]; did you mean `cpu`?",
        ],
    );
    check_events(
        "[[event]]\nname = \"a\"\n",
        &["f:3: event.1: the event lacks schedule, apps; an event needs name, schedule and apps"],
    );
    let event = "[[event]]\nname = \"a\"\nschedule = \"daily\"\napps = [\"web\"]\n";
    check_events(
        &format!("{event}{event}"),
        &["f:7: event.2: there is another event `a`; give each event a name of its own"],
    );
    check_events(
        &format!("{event}duration = \"1s\"\ntimezone = \"Nowhere/Else\"\n"),
        &[
            "f:7: event.1.duration: 1s is out of bounds; use 60s to 604800s",
            "f:8: event.1.timezone: there is no time zone `Nowhere/Else` on this host; write \"UTC\" or a name of /usr/share/zoneinfo, such as \"Europe/Berlin\"",
        ],
    );
    check_events(
        "event = 3\n",
        &[
            "f:3: unknown key `event` in [apps.web]; use class, exec, cgroup, systemd, container, match, user, group, directory, environment, stdout, stderr, restart, images, move, accelerators, update, response_time_max, floor, ceiling, request, uclamp_min, uclamp_max, io_weight, io_max or metrics",
        ],
    );
    check(
        "event = [3]\n",
        &["f:1: event.1: `3` is no table; write a table in its place"],
    );
    check(
        "[calendars.a]\n",
        &["f:1: calendars.a: the calendar has no days; give it dates or ics"],
    );
    check(
        "[calendars.a]\nics = \"/etc/passwd\"\n",
        &[
            "f:2: calendars.a.ics: /etc/passwd:1: the file does not begin with BEGIN:VCALENDAR; correct the file, or write its days as dates",
        ],
    );
}
