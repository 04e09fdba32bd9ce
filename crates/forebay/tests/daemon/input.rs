//! Bad configuration: one clear error each, nothing applied, nothing left.

use std::fs;
use std::process::Command;

use crate::place::{EXE, Place, Refusal, refusal};

fn check(place: &Place) -> Refusal {
    let mut command = Command::new(EXE.as_str());
    command.arg("check").arg(place.path("forebay.toml"));
    refusal(command)
}

/// `check` and `daemon` refuse with the same one line, and nothing is begun.
#[track_caller]
fn both_refuse(place: &Place, words: &[&str]) {
    check(place).says(words);
    place.refusal().says(words);
    assert!(!place.path("state").exists(), "a state directory was made");
    place.assert_nothing_left();
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let Some(place) = Place::new("all_mistakes_are_told_at_once_with_their_lines") else {
        return;
    };
    place.configure(
        "[policy]\nheadrom = \"30%\"\nperiod = \"1 fortnight\"\n[apps.web]\nclass = \"crit\"\nexec = [\"sleep\", \"1\"]\nfloor = { cpu = \"-1\" }\n",
    );
    for refusal in [check(&place), place.refusal()] {
        assert_eq!(refusal.code, Some(1), "{refusal:?}");
        let lines: Vec<&str> = refusal.text.lines().collect();
        assert_eq!(lines.len(), 4, "{}", refusal.text);
        for (line, (text, words)) in lines.iter().zip([
            ("headrom", "did you mean `headroom`"),
            ("fortnight", "period"),
            ("crit", "use critical, standard or batch"),
            ("\"-1\"", "floor.cpu"),
        ]) {
            let place = format!("forebay.toml:{}:", place.line_of(text));
            assert!(line.contains(&place), "{place} in {line}");
            assert!(line.contains(words), "{words} in {line}");
        }
    }
    assert!(!place.path("state").exists());
    place.assert_nothing_left();
}

#[test]
fn a_file_that_is_not_toml_is_refused_at_its_line() {
    let Some(place) = Place::new("a_file_that_is_not_toml_is_refused_at_its_line") else {
        return;
    };
    place.configure("[apps.web\n");
    let line = format!("forebay.toml:{}:", place.line_of("[apps.web"));
    both_refuse(&place, &[&line]);
}

#[test]
fn floors_above_the_host_are_refused() {
    let Some(place) = Place::new("floors_above_the_host_are_refused") else {
        return;
    };
    place.configure(
        "[apps.a]\nexec = [\"sleep\", \"1\"]\nfloor.cpu = 5000\n[apps.b]\nexec = [\"sleep\", \"1\"]\nfloor.cpu = 1\n",
    );
    both_refuse(&place, &["floor.cpu", "5000"]);
    place.configure("[apps.a]\nexec = [\"sleep\", \"1\"]\nfloor.memory = \"900TiB\"\n");
    both_refuse(&place, &["floor.memory", "900.0 TiB"]);
}

#[test]
fn an_unknown_user_is_refused() {
    let Some(place) = Place::new("an_unknown_user_is_refused") else {
        return;
    };
    place.configure("[apps.a]\nexec = [\"sleep\", \"1\"]\nuser = \"nobody-like-this\"\n");
    both_refuse(&place, &["apps.a.user", "nobody-like-this"]);
    place.configure("[apps.a]\nexec = [\"sleep\", \"1\"]\ngroup = \"no-group-like-this\"\n");
    both_refuse(&place, &["apps.a.group", "no-group-like-this"]);
}

#[test]
fn a_missing_executable_is_refused() {
    let Some(place) = Place::new("a_missing_executable_is_refused") else {
        return;
    };
    place.configure("[apps.a]\nexec = [\"no-program-like-this\"]\n");
    both_refuse(&place, &["apps.a.exec", "no-program-like-this"]);
    place.configure(&format!(
        "[apps.a]\nexec = [{}]\n",
        place.quoted("forebay.toml")
    ));
    both_refuse(&place, &["apps.a.exec", "forebay.toml"]);
}

#[test]
fn a_configuration_that_cannot_be_read_is_refused() {
    let Some(place) = Place::new("a_configuration_that_cannot_be_read_is_refused") else {
        return;
    };
    both_refuse(
        &place,
        &["forebay.toml", "read the configuration", "name a file"],
    );
    fs::create_dir(place.path("forebay.toml")).unwrap();
    both_refuse(
        &place,
        &["forebay.toml", "read the configuration", "name a file"],
    );
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let Some(place) = Place::new("an_address_that_others_can_reach_is_refused") else {
        return;
    };
    place.configure_daemon("http = \"0.0.0.0:9475\"", "");
    both_refuse(&place, &["daemon.http", "0.0.0.0", "127.0.0.1"]);
}

#[test]
fn a_taken_address_is_refused_and_nothing_is_left() {
    let Some(place) = Place::new("a_taken_address_is_refused_and_nothing_is_left") else {
        return;
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    place.configure_daemon(&format!("http = \"{address}\""), "");
    place.refusal().says(&[&address, "in use"]);
    place.assert_nothing_left();
    assert_eq!(place.guardians(), Vec::<u32>::new());
}

#[test]
fn a_socket_below_a_file_is_refused_and_nothing_is_left() {
    let Some(place) = Place::new("a_socket_below_a_file_is_refused_and_nothing_is_left") else {
        return;
    };
    fs::write(place.path("file"), "data").unwrap();
    place.configure("");
    let text = fs::read_to_string(place.path("forebay.toml")).unwrap();
    let text = text.replace(&place.quoted("socket"), &place.quoted("file/socket"));
    fs::write(place.path("forebay.toml"), text).unwrap();
    place.refusal().says(&["file/socket", "directory"]);
    place.assert_nothing_left();
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "data");
}

#[test]
fn a_file_in_place_of_the_socket_is_refused_and_stays() {
    let Some(place) = Place::new("a_file_in_place_of_the_socket_is_refused_and_stays") else {
        return;
    };
    fs::write(place.path("socket"), "data").unwrap();
    place.configure("");
    place
        .refusal()
        .says(&["socket", "something else than a socket", "move it away"]);
    assert_eq!(fs::read_to_string(place.path("socket")).unwrap(), "data");
    fs::remove_file(place.path("socket")).unwrap();
    place.assert_nothing_left();
}

#[test]
fn the_directory_of_the_socket_is_made() {
    let Some(mut place) = Place::new("the_directory_of_the_socket_is_made") else {
        return;
    };
    place.configure("");
    let text = fs::read_to_string(place.path("forebay.toml")).unwrap();
    let text = text.replace(&place.quoted("socket"), &place.quoted("run/deep/socket"));
    fs::write(place.path("forebay.toml"), text).unwrap();
    std::os::unix::fs::symlink(place.path("run/deep/socket"), place.path("socket")).unwrap();
    place.start();
    assert!(place.path("run/deep/socket").exists());
    fs::remove_file(place.path("socket")).unwrap();
    place.stop_well();
    assert!(!place.path("run/deep/socket").exists());
}

#[test]
fn a_second_daemon_is_told_who_has_the_state_directory() {
    let Some(mut place) = Place::new("a_second_daemon_is_told_who_has_the_state_directory") else {
        return;
    };
    place.configure(&format!(
        "[apps.a]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    let daemon = place.start();
    let pid = place.await_pid("a");
    let state = place.path("state").display().to_string();
    let pid_text = format!("process {daemon} has it");
    place
        .refusal()
        .says(&[&state, &pid_text, "choose another state directory"]);
    assert_eq!(
        place.await_pid("a"),
        pid,
        "the first one's app was disturbed"
    );
    assert_eq!(place.guardians().len(), 1);
    place.stop_well();
}

#[test]
fn a_second_daemon_on_the_same_socket_leaves_nothing() {
    let name = "a_second_daemon_on_the_same_socket_leaves_nothing";
    let (Some(mut first), Some(second)) = (Place::new(name), Place::new(name)) else {
        return;
    };
    first.configure(&format!(
        "[apps.a]\nexec = [\"sleep\", \"{}\"]\n",
        first.seconds(1)
    ));
    first.start();
    let pid = first.await_pid("a");
    second.configure(&format!(
        "[apps.b]\nexec = [\"sleep\", \"{}\"]\n",
        second.seconds(1)
    ));
    let text = fs::read_to_string(second.path("forebay.toml")).unwrap();
    let text = text.replace(&second.quoted("socket"), &first.quoted("socket"));
    fs::write(second.path("forebay.toml"), text).unwrap();
    let socket = first.path("socket").display().to_string();
    second
        .refusal()
        .says(&[&socket, "another daemon", "name another socket"]);
    second.assert_nothing_left();
    assert_eq!(second.guardians(), Vec::<u32>::new());
    assert_eq!(first.await_pid("a"), pid);
    first.stop_well();
}
