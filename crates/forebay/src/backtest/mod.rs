//! `forebay backtest`: how good forecasts would have been on a recorded series.
//!
//! Problem: whether a model forecasts this application well, nobody can say but its own past.
//!
//! Approach: rolling origins. A recording is told to every model step by step, as the daemon
//! would have met it; from a warm-up on, what each model says is kept until the time that it is
//! about, and judged then. The models of others stand beside ours, and all losses are put into
//! proportion to those of the last value with the changes seen from it.
//!
//! Source: Tashman, "Out-of-sample tests of forecasting accuracy: an analysis and review",
//! International Journal of Forecasting 2000 (rolling origins).

mod chart;
mod csv;
mod models;
mod recorded;
mod replay;
mod report;
mod score;
pub(crate) mod time;
mod traces;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use forebay_forecast::Target;
use forebay_forecast::select::{HISTORY_MAX, HORIZONS_MAX};

use crate::cli::Exit;
use crate::demo::print;
use crate::output::{Format, Output};
use crate::store::Resource;
use csv::{Recording, Spacing};
pub(crate) use models::{Kind, Model, Setting};
use recorded::{Step, Wanted};
pub(crate) use replay::thread_time;
use replay::{Fan, Origins};
use report::{FileReport, Report};
pub(crate) use score::{Losses, Scale, Score, truth};
pub(crate) use traces::{Series, from_folder};

/// A comparison that is likely to take longer is foretold.
const TOLD_SECONDS: f64 = 60.0;
/// The fewest steps that models look back on.
const HISTORY_MIN: usize = 16;

/// Compare forecasters on recorded series: who would have been right, and at what cost
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Recorded series: CSV files with a column of times (seconds, or dates such as 2026-02-28
    /// 13:05:09) and one of values, named `timestamp` and `value` if there are more than two.
    /// Missing rows are gaps. Or apps, whose history the daemon recorded; a file of the same name
    /// goes before
    #[arg(value_name = "FILE|APP", required_unless_present = "data")]
    files: Vec<PathBuf>,
    /// Of apps: what is forecast, cpu, cpu_stalled, memory, io, received, sent, requests or
    /// response_time [default: cpu]
    #[arg(long, value_name = "RESOURCE", conflicts_with = "data")]
    resource: Option<Resource>,
    /// Of apps: how much time a step covers, of which the mean is taken for values and the maximum
    /// for peaks [default: 10s]
    #[arg(long, value_enum, value_name = "STEP", conflicts_with = "data")]
    step: Option<Step>,
    /// Of apps: where the daemon keeps its history
    #[arg(long, value_name = "DIR", default_value = "/var/lib/forebay")]
    state_dir: PathBuf,
    /// Models to compare; all that stand alone unless given
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODEL,...")]
    models: Vec<Kind>,
    /// How many steps ahead, at most four numbers
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "STEPS,...",
        default_value = "1,12,60"
    )]
    horizons: Vec<usize>,
    /// What is forecast
    #[arg(long, value_enum, default_value_t = TargetArg::Value)]
    target: TargetArg,
    /// How many steps models look back on, 16 to 4096
    #[arg(long, value_name = "STEPS", default_value_t = 1440, value_parser = history)]
    history: usize,
    /// Part of a series that is only for warming up
    #[arg(long, value_name = "PART", default_value_t = 0.4, value_parser = part)]
    warm_up: f64,
    /// Forecast at every n-th step only
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Look at the last so many steps of each series only
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "data")]
    last: Option<u32>,
    /// Write all numbers, of each series and together, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw what the first model said about the end of the first series: .svg or .png
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Forecast DIR/SERIES.csv at given origins with the first model (ensemble unless given), and
    /// judge nothing: for comparisons made elsewhere. Each row is one step, whatever its time
    #[arg(long, value_name = "DIR", requires_all = ["origins", "out"], conflicts_with_all = ["files", "json", "chart", "warm_up", "every"])]
    data: Option<PathBuf>,
    /// CSV file with a heading and lines `series,origin`: the row, counted from 0, of the last value
    /// that may be looked at
    #[arg(long, value_name = "FILE", requires = "data")]
    origins: Option<PathBuf>,
    /// Where to write `series,origin,step,q50,q90,q95,q99`; the cost is written to FILE.json
    #[arg(long, value_name = "FILE", requires = "data")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TargetArg {
    /// The value exactly so many steps ahead
    Value,
    /// The greatest value within so many steps
    Peak,
}

impl From<TargetArg> for Target {
    fn from(target: TargetArg) -> Self {
        match target {
            TargetArg::Value => Self::Value,
            TargetArg::Peak => Self::Peak,
        }
    }
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A recording was not read.
    #[error(transparent)]
    Recording(#[from] csv::Error),
    /// An app's history was not read.
    #[error(transparent)]
    History(#[from] recorded::Error),
    /// A recording is too short.
    #[error(
        "{}: of {steps} steps none is left to be judged; record more, or choose a smaller --warm-up or shorter --horizons",
        file.display()
    )]
    TooShort { file: PathBuf, steps: usize },
    /// The origins make no sense.
    #[error("{0}")]
    Origins(String),
    /// A result was not written.
    #[error("write {}; name a file in a directory that may be written to", file.display())]
    Write { file: PathBuf, source: io::Error },
    /// A picture was not made.
    #[error("draw {}: {what}", file.display())]
    Draw { file: PathBuf, what: String },
    /// The result was not printed.
    #[error("print the result")]
    Print(#[source] io::Error),
}

impl Error {
    fn write(file: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        |source| Self::Write { file, source }
    }
}

/// Compares, and says who was how good.
///
/// # Errors
/// When a recording is not understood or too short, or a result cannot be written.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let horizons = match checked(args) {
        Ok(horizons) => horizons,
        Err(what) => {
            print::progress(format_args!("forebay: {what}"));
            return Ok(Exit::Usage.into());
        }
    };
    if let (Some(data), Some(origins), Some(out)) = (&args.data, &args.origins, &args.out) {
        let kind = args.models.first().copied().unwrap_or(Kind::Ensemble);
        let setting = Setting {
            target: args.target.into(),
            horizons,
            history: args.history,
            period_seconds: None,
            reference: 1.0,
        };
        traces::run(data, origins, out, kind, &setting)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kinds: Vec<Kind> = match args.models.as_slice() {
        [] => Kind::all().collect(),
        named => named.to_vec(),
    };
    let mut files = Vec::new();
    for (i, file) in args.files.iter().enumerate() {
        if args.files.len() > 1 {
            let all = args.files.len();
            print::progress(format_args!("{} of {all}: {}", i + 1, file.display()));
        }
        let (recording, setting, report, fan) = compare(file, args, &kinds, &horizons)?;
        if i == 0
            && let Some(picture) = &args.chart
        {
            let name = match recorded::is_file(file) {
                true => PathBuf::from(file.file_stem().unwrap_or_default()),
                false => label(file, args),
            };
            let name = name.to_string_lossy();
            draw(picture, &name, &kinds, &recording, &setting, &report, &fan)?;
        }
        files.push(report);
    }
    let report = Report::new(args.target.into(), horizons, args.history, files);
    if let Some(file) = &args.json {
        let mut text = serde_json::to_string_pretty(&report)
            .map_err(|error| Error::write(file)(error.into()))?;
        text.push('\n');
        std::fs::write(file, text).map_err(Error::write(file))?;
    }
    match Output::stdout(Format::People).show(&report, report::text) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever read our output has enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::Print(error)),
    }
}

/// The horizons in order, where the command line makes sense as a whole.
fn checked(args: &Args) -> Result<Vec<usize>, String> {
    let mut horizons = args.horizons.clone();
    horizons.sort_unstable();
    horizons.dedup();
    if !(1..=HORIZONS_MAX).contains(&horizons.len()) {
        return Err(format!(
            "--horizons has {} numbers; name 1 to {HORIZONS_MAX}",
            horizons.len()
        ));
    }
    let longest = args.history / 2;
    if let Some(steps) = horizons
        .iter()
        .find(|steps| !(1..=longest).contains(*steps))
    {
        return Err(format!(
            "--horizons has {steps}; name 1 to {longest}, half of --history"
        ));
    }
    if (args.resource.is_some() || args.step.is_some())
        && args
            .files
            .iter()
            .all(|argument| recorded::is_file(argument))
    {
        return Err("--resource and --step are of apps, and only files are named".to_owned());
    }
    if let Some(twice) =
        (1..args.models.len()).find(|&i| args.models[..i].contains(&args.models[i]))
    {
        let name = args.models[twice].name();
        return Err(format!("--models has {name} twice; name it once"));
    }
    if let Some(picture) = &args.chart
        && chart::Kind::of(picture).is_none()
    {
        return Err(format!(
            "--chart {}: name a file that ends in .svg or .png",
            picture.display()
        ));
    }
    Ok(horizons)
}

fn compare(
    file: &Path,
    args: &Args,
    kinds: &[Kind],
    horizons: &[usize],
) -> Result<(Recording, Setting, FileReport, Fan), Error> {
    let mut recording = read(file, args)?;
    if let Some(last) = args.last {
        recording = recording.latest(usize::try_from(last).unwrap_or(usize::MAX));
    }
    foretell(file, &recording, kinds);
    let steps = recording.samples.len();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part of a count far below 2^52"
    )]
    let warm_up = (args.warm_up * steps as f64) as usize;
    let known = recording.samples.iter().take(warm_up.max(1)).flatten();
    let setting = Setting {
        target: args.target.into(),
        horizons: horizons.to_vec(),
        history: args.history,
        period_seconds: recording.period_seconds,
        reference: known.fold(0.0, f64::max),
    };
    let origins = Origins {
        first: warm_up,
        every: usize::try_from(args.every).unwrap_or(usize::MAX),
    };
    let (results, fan) = replay::replay(&recording, kinds, &setting, origins);
    let report = FileReport::new(&label(file, args), &recording, &setting, warm_up, &results);
    if results
        .iter()
        .flat_map(|result| &result.scores)
        .all(Option::is_none)
    {
        let file = file.to_owned();
        return Err(Error::TooShort { file, steps });
    }
    Ok((recording, setting, report, fan))
}

/// Says beforehand that a comparison takes long, and how it takes less.
fn foretell(named: &Path, recording: &Recording, kinds: &[Kind]) {
    let steps = recording.samples.len();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let seconds = kinds.iter().map(|kind| usual_us(*kind)).sum::<f64>() * steps as f64 / 1e6;
    if seconds > TOLD_SECONDS {
        print::progress(format_args!(
            "{}: {steps} steps and {} model(s) take about {:.0} min of processor time; --last 100000 \
             or fewer --models take less",
            named.display(),
            kinds.len(),
            (seconds / 60.0).ceil()
        ));
    }
}

/// Processor time that a step with its share of fits usually takes, in microseconds, as measured on
/// series of 4,000 steps with three horizons.
fn usual_us(kind: Kind) -> f64 {
    match kind {
        Kind::Ensemble | Kind::WithoutLstm => 240.0,
        Kind::Arima => 215.0,
        Kind::Mixture => 16.0,
        Kind::WithoutArima => 22.0,
        Kind::Lstm => 5.0,
        Kind::Series => 2.3,
        Kind::LastValue | Kind::Histogram | Kind::Seasonal => 1.6,
        // Of a day in seconds; less of coarser steps.
        Kind::MovingMax => 8.0,
        Kind::Window | Kind::Smoothing => 0.4,
    }
}

/// A file, or an app's history.
fn read(named: &Path, args: &Args) -> Result<Recording, Error> {
    let gap_max = args.history;
    if recorded::is_file(named) {
        return Ok(csv::read(named, Spacing::Times { gap_max })?);
    }
    Ok(recorded::read(&Wanted {
        name: &named.to_string_lossy(),
        resource: args.resource.unwrap_or(Resource::Cpu),
        step: args.step.unwrap_or(Step::TenSeconds),
        state_dir: &args.state_dir,
        target: args.target.into(),
        gap_max,
    })?)
}

/// What a report calls a recording.
fn label(named: &Path, args: &Args) -> PathBuf {
    match recorded::is_file(named) {
        true => named.to_owned(),
        false => {
            let resource = args.resource.unwrap_or(Resource::Cpu);
            PathBuf::from(format!("{} {resource}", named.display()))
        }
    }
}

fn draw(
    picture: &Path,
    name: &str,
    kinds: &[Kind],
    recording: &Recording,
    setting: &Setting,
    report: &FileReport,
    fan: &Fan,
) -> Result<(), Error> {
    let model = kinds.first().map(|kind| kind.name()).unwrap_or_default();
    let title = format!("{name}: {model}");
    let covered: Vec<Option<f64>> = (0..setting.horizons.len())
        .map(|i| Some(report.scores.get(i)?.score.as_ref()?.covered[1]))
        .collect();
    let drawing = chart::fans(&title, recording, setting, fan, &covered);
    let bytes = match chart::Kind::of(picture) {
        Some(chart::Kind::Png) => chart::png(&drawing).map_err(|what| Error::Draw {
            file: picture.to_owned(),
            what,
        })?,
        _ => chart::svg(&drawing).into_bytes(),
    };
    std::fs::write(picture, bytes).map_err(Error::write(picture))
}

fn history(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(steps) if (HISTORY_MIN..=HISTORY_MAX).contains(&steps) => Ok(steps),
        _ => Err(format!("write a number of {HISTORY_MIN} to {HISTORY_MAX}")),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok(part),
        _ => Err("write a part of 1, such as 0.4".to_owned()),
    }
}
