//! Forecasts recorded traces at given origins, for comparison with other models.
//!
//! `cargo run --release -p forebay-forecast --example traces -- FOLDER [mixture]` reads
//! `FOLDER/origins.csv` (series, origin: the 0-based row of the last value that may
//! be looked at) and `FOLDER/SERIES.csv` (timestamp, value), each with a heading,
//! and prints `series,origin,step,q50,q90,q95,q99` for 1, 12 and 60 steps.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::{env, fs, io};

use forebay_forecast::{Forecaster, Mixture, MixtureOptions, Series, SeriesOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args()
        .nth(1)
        .ok_or("which folder holds origins.csv?")?;
    let folder = Path::new(&folder);
    let mixture = env::args().nth(2).as_deref() == Some("mixture");
    let mut origins: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, origin) in pairs(&folder.join("origins.csv"))? {
        origins.entry(name).or_default().push(origin.parse()?);
    }
    let mut out = io::BufWriter::new(io::stdout());
    writeln!(out, "series,origin,step,q50,q90,q95,q99")?;
    for (name, origins) in &origins {
        let horizons = vec![1, 12, 60];
        let options = SeriesOptions {
            horizons,
            history_max: 1440,
            request: None,
        };
        let rows = pairs(&folder.join(format!("{name}.csv")))?;
        let mut series = Series::new(options);
        let mut mixed = Mixture::new(&MixtureOptions {
            cycle: cycle(&rows),
            ..MixtureOptions::default()
        });
        for (row, (_, value)) in rows.iter().enumerate() {
            if mixture {
                mixed.update(value.parse()?);
            } else {
                series.update(value.parse()?);
            }
            if origins.binary_search(&row).is_err() {
                continue;
            }
            for steps in [1, 12, 60] {
                let quantiles = if mixture {
                    mixed.forecast(steps)
                } else {
                    series.forecast(steps).map(|forecast| forecast.quantiles)
                };
                let quantiles = quantiles.ok_or("an origin before any value")?;
                let [q50, q90, q95, q99] = quantiles.to_array();
                writeln!(
                    out,
                    "{name},{row},{steps},{q50:.6e},{q90:.6e},{q95:.6e},{q99:.6e}"
                )?;
            }
        }
    }
    Ok(())
}

/// The two columns of a file, without the heading.
fn pairs(path: &Path) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let split = |line: &str| {
        let (a, b) = line
            .split_once(',')
            .ok_or_else(|| format!("no comma in {line:?}"))?;
        Ok((a.to_owned(), b.to_owned()))
    };
    text.lines().skip(1).map(split).collect()
}

/// A cycle that the clock suggests, in rows.
fn cycle(rows: &[(String, String)]) -> Option<usize> {
    let time = |row: Option<&(String, String)>| row?.0.parse::<f64>().ok();
    let (first, last) = (time(rows.first())?, time(rows.last())?);
    let steps = u32::try_from(rows.len().checked_sub(1)?).ok()?;
    MixtureOptions::cycle_of_clock((last - first) / f64::from(steps), 1440)
}
