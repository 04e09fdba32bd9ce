//! `forebay image`: images of programs that keep their state in memory.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use forebay_api as api;
use forebay_api::Client;

use super::Failure;
use crate::output::{Output, numbers, table, words};

/// What to do with images.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// What to do
    #[arg(value_enum, default_value = "list")]
    action: Action,

    /// The app; `take` needs it
    app: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// List the apps that images are taken of, with the newest of each
    List,
    /// Take one now
    Take,
}

pub(super) async fn run(
    args: ImageArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    match (args.action, args.app) {
        (Action::List, None) => {
            let images: api::ImageList = client.get("/v1/images").await?;
            output.show(&images, list)?;
            Ok(())
        }
        (Action::Take, Some(app)) => {
            let uri = format!("/v1/images/{app}");
            super::done(client.post(&uri, &()).await?, output)
        }
        (Action::List, Some(_)) => Err(Failure::Usage("`list` shows all apps".to_owned())),
        (Action::Take, None) => Err(Failure::Usage(
            "name the app: `forebay image` shows those that images are taken of".to_owned(),
        )),
    }
}

fn list(images: &api::ImageList) -> String {
    if images.images.is_empty() {
        return "no images: give an app that Forebay starts `images`".to_owned();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let age = |taken: u64| now.saturating_sub(Duration::from_millis(taken)).as_secs();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<[String; 5]> = images
        .images
        .iter()
        .map(|row| {
            #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
            let scaled = |value: u64, unit: f64| format!("{:.1}", value as f64 / unit);
            [
                row.app.clone(),
                format!("{} s", row.every_ms / 1000),
                or_none(row.taken_unix_ms.map(|taken| format!("{} s", age(taken)))),
                or_none(row.bytes.map(|bytes| scaled(bytes, 1_048_576.0))),
                or_none(row.pause_us.map(|pause| scaled(pause, 1000.0))),
            ]
        })
        .collect();
    let mut text = table(
        [
            words("APP"),
            numbers("EVERY"),
            numbers("AGE"),
            numbers("MIB"),
            numbers("PAUSE MS"),
        ],
        &rows,
    );
    for row in &images.images {
        if let Some(trouble) = &row.trouble {
            write!(text, "\n{}: {trouble}", row.app).ok();
        }
    }
    text
}
