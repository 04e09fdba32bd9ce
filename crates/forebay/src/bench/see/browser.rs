//! The page as a browser opens it, by the repository's `web/test/paint.js`.

use std::path::Path;
use std::process::{Command, Stdio};

use super::follower::Dashboard;
use crate::bench::Target;
use crate::demo::print as output;
use crate::demo::{Error, spread};

/// What is promised.
const PAINT_MS_MAX: f64 = 300.0;
const BYTES_MAX: f64 = 250_000.0;

/// One load of the page with nothing in a cache.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Load {
    /// Until the first view with its content was painted, by the browser's clock.
    useful_ms: f64,
    /// Of that, the processor time of the page's main thread.
    main_thread_ms: f64,
    /// Of all files, with their heads.
    bytes: f64,
    /// Wall time over processor time of something that only computes, before or after, whichever is less: 1 on an
    /// idle machine. Told, and used for nothing.
    busy: f64,
}

/// All of them.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(transparent)]
pub(super) struct Looks(Vec<Load>);

/// Opens the page so many times.
pub(super) fn look(web: &Path, dir: &Path, times: u32) -> Result<Looks, Error> {
    let dashboard = Dashboard::start(dir)?;
    let loads = loads(web, &dashboard.address, times);
    dashboard.end()?;
    let looks = Looks(loads?);
    for load in &looks.0 {
        output::line(format_args!(
            "page in a browser: first useful paint after {:.0} ms, {:.0} ms of them of its main thread; {:.0} bytes; \
             the machine is busy by {:.2}",
            load.useful_ms, load.main_thread_ms, load.bytes, load.busy
        ));
    }
    Ok(looks)
}

fn loads(web: &Path, address: &str, times: u32) -> Result<Vec<Load>, Error> {
    let output = Command::new("node")
        .arg("test/paint.js")
        .arg(times.to_string())
        .env("FOREBAY_PAGE", address)
        .current_dir(web)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::system(
            "run",
            format!("node in {}", web.display()),
            "`cargo xtask setup web` installs it",
        ))?;
    let broken = |why: String| {
        let what = format!("{why}; is `npm ci` done in {}?", web.display());
        Error::part("the browser", what)
    };
    if !output.status.success() {
        return Err(broken(format!("test/paint.js: {}", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| broken(error.to_string()))
}

impl Looks {
    pub(super) fn targets(&self) -> Vec<Target> {
        let of = |value: fn(&Load) -> f64| spread(self.0.iter().map(value));
        vec![
            Target::at_most(
                "first useful paint, median as it was measured",
                of(|load| load.useful_ms).1,
                PAINT_MS_MAX,
                "ms",
            ),
            Target::at_most(
                "bytes of the page",
                of(|load| load.bytes).2,
                BYTES_MAX,
                "bytes",
            ),
        ]
    }
}
