//! A picture of what a model said about the end of a series, beside what came.
//!
//! One panel for each horizon. The bands are what the model said that many steps before: from the
//! median to the bounds at 0.9, 0.95 and 0.99, the darker the nearer to the median. A dot is a
//! truth above the bound at 0.95. The picture needs no fonts of the host.

mod png;
mod strokes;
mod svg;

use std::path::Path;

use forebay_forecast::{Quantiles, Target};

use super::csv::Recording;
use super::models::Setting;
use super::replay::Fan;
use super::report::significant;
use super::score::truth;

pub(crate) use png::png;
pub(crate) use svg::svg;

const WIDTH: f64 = 1080.0;
const MARGIN: f64 = 16.0;
/// Room for the numbers left of a panel.
const LEFT: f64 = 72.0;
const HEADER: f64 = 64.0;
const PANEL: f64 = 200.0;
/// Room for the title of a panel, and for the times below it.
const PANEL_TITLE: f64 = 28.0;
const PANEL_FOOT: f64 = 28.0;
const TEXT: f64 = 13.0;
/// A spike of the bound may be cut off so many times above the greatest truth.
const CUT: f64 = 1.6;

const INK: Colour = Colour(0x1f, 0x29, 0x33);
const FAINT: Colour = Colour(0x6b, 0x77, 0x85);
const GRID: Colour = Colour(0xe3, 0xe8, 0xed);
const MEDIAN: Colour = Colour(0x1d, 0x5f, 0xa8);
const ABOVE: Colour = Colour(0xc8, 0x32, 0x1f);
/// From the median up.
const BANDS: [Colour; 3] = [
    Colour(0x8f, 0xbc, 0xe6),
    Colour(0xb9, 0xd6, 0xf0),
    Colour(0xdd, 0xeb, 0xf8),
];

/// A format of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Svg,
    Png,
}

impl Kind {
    /// The one that the name of a file asks for.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let extension = file.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "svg" => Some(Self::Svg),
            "png" => Some(Self::Png),
            _ => None,
        }
    }
}

/// Red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Colour(u8, u8, u8);

type Point = (f64, f64);

/// Where a text is from its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Area {
        outline: Vec<Point>,
        colour: Colour,
    },
    Line {
        points: Vec<Point>,
        width: f64,
        colour: Colour,
    },
    Dot {
        at: Point,
        radius: f64,
        colour: Colour,
    },
    Text {
        at: Point,
        anchor: Anchor,
        text: String,
        size: f64,
        colour: Colour,
    },
}

/// Shapes on white, in pixels from the upper left.
#[derive(Debug, Clone)]
pub(crate) struct Drawing {
    width: f64,
    height: f64,
    shapes: Vec<Shape>,
}

impl Drawing {
    fn text(&mut self, at: Point, anchor: Anchor, colour: Colour, text: impl Into<String>) {
        self.shapes.push(Shape::Text {
            at,
            anchor,
            text: text.into(),
            size: TEXT,
            colour,
        });
    }

    fn line(&mut self, points: Vec<Point>, width: f64, colour: Colour) {
        self.shapes.push(Shape::Line {
            points,
            width,
            colour,
        });
    }
}

/// The end of a recording with the fan of each horizon. `covered` is the share of truths within
/// the bound at 0.95, over all that was judged.
pub(crate) fn fans(
    title: &str,
    recording: &Recording,
    setting: &Setting,
    fan: &Fan,
    covered: &[Option<f64>],
) -> Drawing {
    let count = u32::try_from(fan.answers.len()).unwrap_or(1);
    let mut drawing = Drawing {
        width: WIDTH,
        height: HEADER + f64::from(count) * (PANEL_TITLE + PANEL + PANEL_FOOT) + MARGIN / 2.0,
        shapes: Vec::new(),
    };
    header(&mut drawing, title, setting.target);
    let mut top = HEADER;
    for (i, (&steps, answers)) in setting.horizons.iter().zip(&fan.answers).enumerate() {
        let judged = covered.get(i).copied().flatten();
        let mut caption = ahead(steps, setting.period_seconds);
        if let Some(judged) = judged {
            caption += &format!(": {:.1} % within the .95 bound", 100.0 * judged);
        }
        drawing.text((LEFT, top + 18.0), Anchor::Start, INK, caption);
        let panel = Panel::new(
            recording,
            setting,
            steps,
            fan.from,
            answers,
            top + PANEL_TITLE,
        );
        panel.draw(&mut drawing, setting.period_seconds);
        top += PANEL_TITLE + PANEL + PANEL_FOOT;
    }
    drawing
}

fn header(drawing: &mut Drawing, title: &str, target: Target) {
    drawing.shapes.push(Shape::Text {
        at: (LEFT, 26.0),
        anchor: Anchor::Start,
        text: title.to_owned(),
        size: 17.0,
        colour: INK,
    });
    let seen = match target {
        Target::Value => "value",
        Target::Peak => "greatest value",
    };
    let mut x = LEFT;
    let y = 48.0;
    let mut entry = |drawing: &mut Drawing, text: &str, swatch: &dyn Fn(f64) -> Shape| {
        drawing.shapes.push(swatch(x));
        drawing.text((x + 26.0, y), Anchor::Start, FAINT, text);
        x += 26.0 + 26.0 + 7.0 * f64::from(u32::try_from(text.len()).unwrap_or(0));
    };
    let stroke = |colour: Colour| {
        move |x: f64| Shape::Line {
            points: vec![(x, y - 4.5), (x + 20.0, y - 4.5)],
            width: 2.0,
            colour,
        }
    };
    let band = |colour: Colour| {
        move |x: f64| Shape::Area {
            outline: vec![
                (x, y - 10.0),
                (x + 20.0, y - 10.0),
                (x + 20.0, y + 1.0),
                (x, y + 1.0),
            ],
            colour,
        }
    };
    entry(drawing, seen, &stroke(INK));
    entry(drawing, "median", &stroke(MEDIAN));
    entry(drawing, "to .9", &band(BANDS[0]));
    entry(drawing, "to .95", &band(BANDS[1]));
    entry(drawing, "to .99", &band(BANDS[2]));
    entry(drawing, "above .95", &|x| Shape::Dot {
        at: (x + 12.0, y - 4.5),
        radius: 3.0,
        colour: ABOVE,
    });
}

/// `12 steps (1 h) ahead`.
fn ahead(steps: usize, period_seconds: Option<f64>) -> String {
    let unit = if steps == 1 { "step" } else { "steps" };
    match period_seconds.zip(u32::try_from(steps).ok()) {
        Some((period, count)) => {
            format!(
                "{steps} {unit} ({}) ahead",
                duration(period * f64::from(count))
            )
        }
        None => format!("{steps} {unit} ahead"),
    }
}

/// Seconds in the unit that suits them.
fn duration(seconds: f64) -> String {
    let (count, unit) = match seconds {
        s if s < 1.0 => (s * 1e3, "ms"),
        s if s < 60.0 => (s, "s"),
        s if s < 3600.0 => (s / 60.0, "min"),
        s if s < 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "d"),
    };
    let tenths = format!("{count:.1}");
    format!("{} {unit}", tenths.strip_suffix(".0").unwrap_or(&tenths))
}

/// One horizon: what was said about each step of the end, and what came.
struct Panel<'a> {
    truths: Vec<Option<f64>>,
    answers: &'a [Option<Quantiles>],
    /// Of the values, bottom and top.
    range: (f64, f64),
    top: f64,
}

impl<'a> Panel<'a> {
    fn new(
        recording: &Recording,
        setting: &Setting,
        steps: usize,
        from: usize,
        answers: &'a [Option<Quantiles>],
        top: f64,
    ) -> Self {
        let end = recording.samples.len();
        let came = |about: usize| {
            let origin = about.checked_sub(steps)?;
            truth(&recording.samples, origin, steps, setting.target, end)
        };
        let truths: Vec<Option<f64>> = (from..end).map(came).collect();
        let known = truths.iter().copied().flatten();
        let said = |level: usize| answers.iter().flatten().map(move |q| q.to_array()[level]);
        let greatest = known.clone().chain(said(0)).fold(0.0, f64::max);
        let bound = said(3).fold(greatest, f64::max).min(CUT * greatest);
        let least = known.chain(said(0)).fold(greatest, f64::min);
        // From zero, but where that would leave most of the panel empty.
        let bottom = if least > 0.6 * bound {
            (least - 0.3 * (bound - least)).max(0.0)
        } else {
            0.0
        };
        let top_value = if bound > bottom {
            bound + 0.04 * (bound - bottom)
        } else {
            bottom + 1.0
        };
        Self {
            truths,
            answers,
            range: (bottom, top_value),
            top,
        }
    }

    fn x(&self, place: usize) -> f64 {
        let count = u32::try_from(self.answers.len().max(2) - 1).unwrap_or(u32::MAX);
        let place = u32::try_from(place).unwrap_or(0);
        LEFT + (WIDTH - LEFT - MARGIN) * f64::from(place) / f64::from(count)
    }

    fn y(&self, value: f64) -> f64 {
        let (bottom, top) = self.range;
        let part = ((value - bottom) / (top - bottom)).clamp(0.0, 1.0);
        self.top + PANEL * (1.0 - part)
    }

    fn draw(&self, drawing: &mut Drawing, period_seconds: Option<f64>) {
        self.scale(drawing, period_seconds);
        let apart = self.apart();
        for (i, colour) in BANDS.into_iter().enumerate().rev() {
            let edge = |level: usize| move |q: &Quantiles| q.to_array()[level];
            for run in self.runs(apart, |place| self.answers[place]) {
                let upper = run
                    .iter()
                    .map(|(place, q)| (self.x(*place), self.y(edge(i + 1)(q))));
                let lower = run
                    .iter()
                    .rev()
                    .map(|(place, q)| (self.x(*place), self.y(edge(i)(q))));
                let outline = upper.chain(lower).collect();
                drawing.shapes.push(Shape::Area { outline, colour });
            }
        }
        let curve = |apart: usize, of: &dyn Fn(usize) -> Option<f64>| -> Vec<Vec<Point>> {
            let points = |run: Vec<(usize, f64)>| {
                run.into_iter()
                    .map(|(place, value)| (self.x(place), self.y(value)))
                    .collect()
            };
            self.runs(apart, of).into_iter().map(points).collect()
        };
        for points in curve(apart, &|place| Some(self.answers[place]?.q50())) {
            drawing.line(points, 1.5, MEDIAN);
        }
        for points in curve(1, &|place| self.truths[place]) {
            drawing.line(points, 1.3, INK);
        }
        for (place, (truth, answer)) in self.truths.iter().zip(self.answers).enumerate() {
            if let (Some(truth), Some(answer)) = (truth, answer)
                && *truth > answer.q95() * (1.0 + 1e-7)
            {
                let at = (self.x(place), self.y(*truth));
                drawing.shapes.push(Shape::Dot {
                    at,
                    radius: 2.6,
                    colour: ABOVE,
                });
            }
        }
    }

    /// From one answer to the next, where forecasts are not made at every step.
    fn apart(&self) -> usize {
        let said = |place: &usize| self.answers[*place].is_some();
        let places: Vec<usize> = (0..self.answers.len()).filter(said).collect();
        let apart = places.windows(2).map(|pair| pair[1] - pair[0]);
        apart.min().unwrap_or(1)
    }

    /// What is there, in runs whose parts are at most so far apart.
    fn runs<T>(&self, apart: usize, of: impl Fn(usize) -> Option<T>) -> Vec<Vec<(usize, T)>> {
        let mut runs: Vec<Vec<(usize, T)>> = Vec::new();
        for place in 0..self.answers.len() {
            let Some(one) = of(place) else { continue };
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|&(last, _)| place - last <= apart) => {
                    run.push((place, one));
                }
                _ => runs.push(vec![(place, one)]),
            }
        }
        runs
    }

    fn scale(&self, drawing: &mut Drawing, period_seconds: Option<f64>) {
        let (bottom, top) = self.range;
        let step = round_step((top - bottom) / 4.0);
        let mut mark = (bottom / step).ceil() * step;
        while mark <= top {
            let y = self.y(mark);
            drawing.line(vec![(LEFT, y), (WIDTH - MARGIN, y)], 1.0, GRID);
            drawing.text((LEFT - 8.0, y + 4.5), Anchor::End, FAINT, short(mark, step));
            mark += step;
        }
        let last = self.answers.len().saturating_sub(1);
        let foot = self.top + PANEL + 18.0;
        for part in 0..=4 {
            let place = last * part / 4;
            let back = last - place;
            let (anchor, text) = match part {
                4 => (Anchor::End, "end".to_owned()),
                _ => {
                    let anchor = if part == 0 {
                        Anchor::Start
                    } else {
                        Anchor::Middle
                    };
                    (anchor, before_end(back, period_seconds))
                }
            };
            drawing.text((self.x(place), foot), anchor, FAINT, text);
        }
    }
}

fn before_end(steps: usize, period_seconds: Option<f64>) -> String {
    match period_seconds.zip(u32::try_from(steps).ok()) {
        Some((period, count)) => format!("-{}", duration(period * f64::from(count))),
        None => format!("-{steps}"),
    }
}

/// The next of 1, 2, 5, 10 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|factor| factor * power >= step);
    factor.unwrap_or(10.0) * power
}

/// A mark of a scale: with a factor of a thousand where it is great, as exact as the step needs.
fn short(mark: f64, step: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (factor, unit) = units
        .into_iter()
        .find(|&(factor, _)| mark.abs() >= factor)
        .unwrap_or((1.0, ""));
    if mark == 0.0 {
        return "0".to_owned();
    }
    let step = step / factor;
    let decimals = (0..4).find(|&digits| {
        let scaled = step * 10_f64.powi(digits);
        (scaled - scaled.round()).abs() < 1e-6 * scaled
    });
    match decimals.and_then(|digits| usize::try_from(digits).ok()) {
        Some(digits) => format!("{:.digits$}{unit}", mark / factor),
        None => significant(mark),
    }
}

#[cfg(test)]
mod tests;
