//! The dashboard in a real browser, which `web/test` drives.
//!
//! `FOREBAY_PICTURES=DIR` keeps a picture of each view.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::fronts::free_port;
use crate::place::{EXE, Place, signal, wait_for_end};

/// Where the page's tests are; none, with a line that says why, where they cannot run.
fn web(test: &str) -> Option<PathBuf> {
    let skip = |reason: &str| {
        println!("SKIPPED: {test}: {reason}");
        None
    };
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
    if !web.join("node_modules/playwright-core").exists() {
        return skip("`npm ci` was not run in web/");
    }
    if !Path::new("/usr/bin/chromium").exists() {
        return skip("no /usr/bin/chromium");
    }
    Some(web)
}

/// Runs one file of tests, which has to pass.
fn passes(web: &Path, file: &str, variables: &[(&str, &str)]) {
    let output = Command::new("node")
        .args(["--test", "--test-reporter=spec"])
        .arg(web.join("test").join(file))
        .envs(variables.iter().copied())
        .current_dir(web)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let ran = said.contains("skipped 0");
    assert!(
        output.status.success() && ran,
        "{file}: {said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A dashboard, ended with the test.
struct Dashboard {
    child: Child,
    url: String,
}

impl Dashboard {
    fn start(place: &Place) -> Self {
        let mut command = place.asking(&["dashboard", "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        told.read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        Self { child, url }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        signal(self.child.id(), Signal::TERM);
        if wait_for_end(&mut self.child).is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

#[test]
fn a_browser_shows_a_real_host_and_acts_on_it() {
    let test = "a_browser_shows_a_real_host_and_acts_on_it";
    let Some(web) = web(test) else { return };
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let [port, a, b] = [(); 3].map(|()| free_port());
    let service = |name: &str, port: u16| {
        format!(
            "[apps.{name}]\nclass = \"critical\"\nrestart = \"always\"\nexec = [\"{}\", \"workload\", \
             \"service\", \"--port\", \"{port}\", \"--iterations\", \"1\"]\n",
            *EXE
        )
    };
    place.configure(&format!(
        "{}{}[apps.web]\nclass = \"critical\"\nexec = [\"sh\", \"-c\", \"while :; do :; done\"]\n\
         [apps.batch]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n\
         [fronts.shop]\nmode = \"http\"\nlisten = [\"127.0.0.1:{port}\"]\n\
         instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n",
        service("a", a),
        service("b", b),
        place.seconds(1),
    ));
    place.start();
    place.await_pid("web");
    let dashboard = Dashboard::start(&place);
    let page = ("FOREBAY_PAGE", dashboard.url.as_str());
    passes(&web, "real.test.js", &[page]);
    drop(dashboard);
    place.stop_well();
}

#[test]
fn the_page_says_what_is_wrong_and_recovers() {
    let Some(web) = web("the_page_says_what_is_wrong_and_recovers") else {
        return;
    };
    passes(&web, "troubles.test.js", &[("FOREBAY_EXE", EXE.as_str())]);
}

#[test]
fn ten_messages_a_second_of_200_apps_cost_little_and_nothing_grows() {
    let test = "ten_messages_a_second_of_200_apps_cost_little_and_nothing_grows";
    let Some(web) = web(test) else { return };
    passes(&web, "endurance.test.js", &[("FOREBAY_EXE", EXE.as_str())]);
}

/// `FOREBAY_MINUTES` says how long, an hour unless told: `cargo nextest run ... --run-ignored only -E 'test(nothing_grows_while)'`.
#[test]
#[ignore = "it takes an hour"]
fn nothing_grows_while_a_real_host_is_looked_at() {
    const APPS: usize = 200;
    let test = "nothing_grows_while_a_real_host_is_looked_at";
    let Some(web) = web(test) else { return };
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let seconds = place.seconds(1);
    let apps = (0..APPS).map(|number| {
        format!("[apps.app{number}]\nclass = \"standard\"\nexec = [\"sleep\", \"{seconds}\"]\n")
    });
    let apps: String = apps.collect();
    place.configure(&format!("[policy]\non_stop = \"kill\"\n{apps}"));
    place.start();
    let dashboard = Dashboard::start(&place);
    let agent = place.daemon_pid().to_string();
    let variables = [
        ("FOREBAY_PAGE", dashboard.url.as_str()),
        ("FOREBAY_AGENT", agent.as_str()),
    ];
    passes(&web, "hour.test.js", &variables);
    drop(dashboard);
    place.stop_well();
}

#[test]
fn the_page_shows_accelerators_moves_updates_and_other_hosts() {
    let test = "the_page_shows_accelerators_moves_updates_and_other_hosts";
    let Some(web) = web(test) else { return };
    passes(&web, "views.test.js", &[("FOREBAY_EXE", EXE.as_str())]);
}

#[test]
fn a_page_that_is_held_shows_one_moment() {
    let Some(web) = web("a_page_that_is_held_shows_one_moment") else {
        return;
    };
    passes(&web, "held.test.js", &[("FOREBAY_EXE", EXE.as_str())]);
}

#[test]
fn what_the_page_computes_is_right() {
    let Some(web) = web("what_the_page_computes_is_right") else {
        return;
    };
    passes(&web, "pure.test.js", &[]);
}
