//! Makes the weights that a network starts from on a host it has never seen.
//!
//! `cargo run --release -p forebay-forecast --example lstm_pretrain -- FILE` trains on
//! synthetic series alone ([`synthetic`]): nobody's data is in the weights. Seeds are
//! fixed, so the same program makes the same file.

mod synthetic;

use std::error::Error;
use std::io::{self, Write};
use std::{env, fs};

use forebay_forecast::lstm::{History, Layout, Progress, Trainer, TrainerConfig};

const SERIES: u64 = 5000;
const SAMPLES: usize = 1600;
const HORIZONS: [usize; 3] = [1, 12, 60];
const HIDDEN: usize = 32;
const SEED: u64 = 1;
/// Steps of work between two lines of progress.
const PORTION: usize = 2_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let file = env::args().nth(1).ok_or("which file is written?")?;
    let histories: Vec<History> = (0..SERIES)
        .map(|seed| synthetic::history(seed, SAMPLES))
        .collect();
    let layout = Layout::new(&HORIZONS, HIDDEN).ok_or("the layout is out of bounds")?;
    let config = TrainerConfig {
        epochs_max: 150,
        patience: 200,
        learning_rate: 3e-3,
        judged_max: 1024,
        steps_max: usize::MAX,
        ..TrainerConfig::new(layout)
    };
    let mut trainer = Trainer::new(&config, &histories, SEED);
    let mut out = io::stdout();
    let verdict = loop {
        match trainer.advance(PORTION) {
            Progress::Working { epoch, held_out } => {
                writeln!(
                    out,
                    "epoch {epoch}: {held_out:?} of the naive loss, held out"
                )?;
            }
            Progress::Done(verdict) => break verdict,
        }
    };
    let trained = trainer
        .finish()
        .ok_or_else(|| format!("no weights: {verdict:?}"))?;
    let origin = trained.weights.origin();
    writeln!(
        out,
        "best after {} epochs: {:.4}, untrained {:.4}",
        trained.epochs, origin.loss_after, origin.loss_before
    )?;
    fs::write(&file, trained.weights.to_bytes()).map_err(|e| format!("write {file}: {e}"))?;
    Ok(())
}
