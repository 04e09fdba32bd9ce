//! Forecasts at given origins: of series in a folder, for comparisons that are made elsewhere too.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde::Serialize;

use super::Error;
use super::csv::{self, Samples, Spacing};
use super::models::{Kind, Model, Setting};
use super::replay::thread_time;

/// What the forecasts cost, as the comparison reads it.
#[derive(Debug, Serialize)]
struct Cost {
    fit_ms: f64,
    predict_ms: f64,
    rss_mb: f64,
    note: String,
}

/// Forecasts every series of `origins` in `data` and writes what was said to `out`.
///
/// # Errors
/// When a file is not understood, an origin is beyond its series or before any forecast, or the
/// result is not written.
pub(crate) fn run(
    data: &Path,
    origins: &Path,
    out: &Path,
    kind: Kind,
    setting: &Setting,
) -> Result<(), Error> {
    let wanted = read_origins(origins)?;
    let file = fs::File::create(out).map_err(Error::write(out))?;
    let mut file = BufWriter::new(file);
    let mut spent = Spent::default();
    writeln!(file, "series,origin,step,q50,q90,q95,q99").map_err(Error::write(out))?;
    for (name, origins) in &wanted {
        let mut lines = String::new();
        let series = Series::read(data, name, origins.clone(), setting)?;
        forecast(&series, kind, &mut spent, &mut lines)?;
        file.write_all(lines.as_bytes())
            .map_err(Error::write(out))?;
    }
    file.flush().map_err(Error::write(out))?;
    let by_step = |time: Duration| time.as_secs_f64() * 1e3 / f64::from(spent.steps.max(1));
    let cost = Cost {
        fit_ms: by_step(spent.fitting),
        predict_ms: by_step(spent.stepping),
        rss_mb: greatest_memory_mb().unwrap_or(0.0),
        note: "one step: an update and the forecasts at all horizons; fits are divided by \
               all steps"
            .to_owned(),
    };
    let mut path = out.as_os_str().to_owned();
    path.push(".json");
    let text = serde_json::to_string(&cost).map_err(|error| Error::write(out)(error.into()))?;
    fs::write(&path, text).map_err(Error::write(Path::new(&path)))
}

/// Processor time.
#[derive(Debug, Default)]
struct Spent {
    steps: u32,
    stepping: Duration,
    fitting: Duration,
}

/// A series, and where it is forecast.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) samples: Samples,
    /// The steps of the last values that may be looked at: at least one.
    pub(crate) origins: BTreeSet<usize>,
    pub(crate) setting: Setting,
}

impl Series {
    /// Of a file `data/name.csv`. What `setting` leaves open is found in it.
    fn read(
        data: &Path,
        name: &str,
        origins: BTreeSet<usize>,
        setting: &Setting,
    ) -> Result<Self, Error> {
        let file = data.join(format!("{name}.csv"));
        let recording = csv::read(&file, Spacing::Rows)?;
        let rows = recording.samples.len();
        let (first, last) = match (origins.first(), origins.last()) {
            (Some(&first), Some(&last)) if last < rows => (first, last),
            (_, last) => {
                let last = last.copied().unwrap_or_default();
                return Err(Error::Origins(format!(
                    "{}: it has {rows} rows and the origins name row {last}; count rows from 0",
                    file.display()
                )));
            }
        };
        debug_assert!(first <= last);
        let known = recording.samples.iter().take(first + 1).flatten();
        Ok(Self {
            name: name.to_owned(),
            setting: Setting {
                period_seconds: recording.period_seconds,
                reference: known.fold(0.0, f64::max),
                ..setting.clone()
            },
            samples: recording.samples,
            origins,
        })
    }

    /// The first origin.
    pub(crate) fn first(&self) -> usize {
        self.origins.first().copied().unwrap_or(0)
    }
}

/// The series of `data/origins.csv`.
///
/// # Errors
/// When a file is not understood, or an origin is beyond its series.
pub(crate) fn from_folder(data: &Path, setting: &Setting) -> Result<Vec<Series>, Error> {
    read_origins(&data.join("origins.csv"))?
        .into_iter()
        .map(|(name, origins)| Series::read(data, &name, origins, setting))
        .collect()
}

/// Appends what was said.
fn forecast(
    series: &Series,
    kind: Kind,
    spent: &mut Spent,
    lines: &mut String,
) -> Result<(), Error> {
    let Series {
        name,
        samples,
        origins,
        setting,
    } = series;
    let last = origins.last().copied().unwrap_or(0);
    let mut model = Model::new(kind, setting);
    let mut said = Vec::new();
    let mut fitting = Duration::ZERO;
    let before = thread_time();
    for (row, sample) in samples.iter().enumerate().take(last + 1) {
        model.update(sample);
        if model.wants_fit() {
            let before = thread_time();
            model.fit();
            fitting += thread_time().saturating_sub(before);
        }
        for &steps in &setting.horizons {
            let answer = std::hint::black_box(model.answer(setting.target, steps));
            if origins.contains(&row) {
                said.push((row, steps, answer));
            }
        }
    }
    let all = thread_time().saturating_sub(before);
    spent.stepping += all.saturating_sub(fitting);
    spent.fitting += fitting;
    let passed = u32::try_from(last + 1).unwrap_or(u32::MAX);
    spent.steps = spent.steps.saturating_add(passed);
    for (row, steps, answer) in said {
        let Some(quantiles) = answer else {
            return Err(Error::Origins(format!(
                "{name}: {} says nothing at row {row} about {steps} steps ahead; choose later \
                 origins or another model",
                kind.name()
            )));
        };
        let [q50, q90, q95, q99] = quantiles.to_array();
        // A string takes everything.
        writeln!(
            lines,
            "{name},{row},{steps},{q50:e},{q90:e},{q95:e},{q99:e}"
        )
        .ok();
    }
    Ok(())
}

/// Rows by series, in the order of the file.
fn read_origins(file: &Path) -> Result<Vec<(String, BTreeSet<usize>)>, Error> {
    let text = fs::read_to_string(file).map_err(|source| csv::Error::System {
        file: file.to_owned(),
        advice: "name a CSV file with lines series,origin",
        source,
    })?;
    wanted(file, &text)
}

/// The same of its text.
fn wanted(file: &Path, text: &str) -> Result<Vec<(String, BTreeSet<usize>)>, Error> {
    let mut wanted: Vec<(String, BTreeSet<usize>)> = Vec::new();
    let lines = text.lines().enumerate().skip(1);
    for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = line.split_once(',').and_then(|(name, origin)| {
            let plain = !name.is_empty() && !name.contains('/');
            Some((plain.then_some(name)?, origin.trim().parse().ok()?))
        });
        let Some((name, origin)) = parsed else {
            return Err(Error::Origins(format!(
                "{}:{}: this is not `series,origin`; name a file DIR/series.csv and a row of it",
                file.display(),
                i + 1
            )));
        };
        let place = match wanted.iter().position(|(known, _)| known == name) {
            Some(place) => place,
            None => {
                wanted.push((name.to_owned(), BTreeSet::new()));
                wanted.len() - 1
            }
        };
        wanted[place].1.insert(origin);
    }
    Ok(wanted)
}

/// The most memory that this process had, in MiB.
fn greatest_memory_mb() -> Option<f64> {
    let status: io::Result<String> = fs::read_to_string("/proc/self/status");
    let status = status.ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_grouped_by_series() {
        let text = "series,origin\nb,7\na,3\r\nb,2\n\n";
        let wanted = wanted(Path::new("o.csv"), text).unwrap();
        let expected = [
            ("b".to_owned(), [2, 7].into()),
            ("a".to_owned(), [3].into()),
        ];
        assert_eq!(wanted, expected);
    }

    #[test]
    fn an_origin_that_is_none_is_named() {
        for line in ["a", "a,x", "a,-1", "../a,1", ",1"] {
            let text = format!("series,origin\n{line}\n");
            let error = wanted(Path::new("o.csv"), &text).unwrap_err().to_string();
            assert!(error.starts_with("o.csv:2: this is not"), "{error}");
        }
    }

    #[test]
    fn memory_is_known() {
        assert!(greatest_memory_mb().unwrap() > 0.5);
    }
}
