//! What apps used and were planned for lately, and how that looks in a few characters.

use std::collections::{HashMap, VecDeque};

use forebay_api as api;

/// Messages of the stream that are remembered for each app.
pub(super) const TRAIL_MAX: usize = 60;
/// A bar of so many eighths of a line.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns of the forecast to the right of the present.
const FAN: usize = 8;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Processor time used, in CPUs.
    pub(super) used: Option<f64>,
    /// The 95 % quantile that was planned for, in CPUs.
    pub(super) planned: Option<f64>,
}

/// The latest points of all apps, oldest first. As many as there are apps, and no more.
#[derive(Debug, Default)]
pub(super) struct Trails {
    apps: HashMap<String, VecDeque<Point>>,
}

impl Trails {
    pub(super) fn take(&mut self, apps: &[api::App]) {
        for app in apps {
            let point = Point {
                used: app.usage.cpu_cores,
                planned: app.demand.as_ref().map(|demand| demand.cpu.q95),
            };
            if let Some(trail) = self.apps.get_mut(&app.name) {
                if trail.len() == TRAIL_MAX {
                    trail.pop_front();
                }
                trail.push_back(point);
            } else {
                self.apps.insert(app.name.clone(), VecDeque::from([point]));
            }
        }
        // Only where some are gone: this looks at every one.
        if self.apps.len() > apps.len() {
            let names: std::collections::HashSet<&str> =
                apps.iter().map(|app| app.name.as_str()).collect();
            self.apps.retain(|name, _| names.contains(name.as_str()));
        }
    }

    /// The latest `count` of an app, oldest first.
    pub(super) fn latest(&self, app: &str, count: usize) -> Vec<Point> {
        let trail = self.apps.get(app);
        trail.map_or_else(Vec::new, |trail| {
            let skip = trail.len().saturating_sub(count);
            trail.iter().skip(skip).copied().collect()
        })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.apps.len()
    }
}

/// How a character of a trail is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Used,
    /// More was used than was planned for.
    Above,
    Band,
    Plain,
}

/// One line: a bar for each point, all to the height of the greatest of use and plan.
pub(super) fn spark(points: &[Point]) -> Vec<(char, Ink)> {
    let most = most(points, None);
    points
        .iter()
        .map(|point| match point.used {
            None => (' ', Ink::Plain),
            Some(used) => {
                let above = point.planned.is_some_and(|planned| used > planned);
                let bar = EIGHTHS[eighths(used, most, 8).clamp(1, 8)];
                (bar, if above { Ink::Above } else { Ink::Used })
            }
        })
        .collect()
}

fn most(points: &[Point], fan: Option<&api::Band>) -> f64 {
    let past = points.iter().flat_map(|point| [point.used, point.planned]);
    let past = past.flatten().chain(fan.map(|band| band.q99));
    past.fold(0.0, f64::max)
}

/// How many of `all` parts a value fills.
fn eighths(value: f64, most: f64, all: usize) -> usize {
    if most <= 0.0 {
        return 0;
    }
    let all_parts = f64::from(u32::try_from(all).unwrap_or(u32::MAX));
    let filled = value / most * all_parts;
    (1..=all)
        .take_while(|part| f64::from(u32::try_from(*part).unwrap_or(u32::MAX)) <= filled + 0.5)
        .count()
}

/// Several lines, the highest first: use as bars, what was planned for as shade behind them, and to the
/// right of the present what will be needed: up to the median, the 95 % and the 99 % quantile.
pub(super) fn chart(
    points: &[Point],
    fan: Option<&api::Band>,
    width: usize,
    height: usize,
) -> Vec<Vec<(char, Ink)>> {
    let room = width.saturating_sub(FAN + 1);
    let points = &points[points.len().saturating_sub(room)..];
    let most = most(points, fan);
    let all = height * 8;
    (0..height)
        .rev()
        .map(|line| {
            let floor = line * 8;
            let past = points.iter().map(|point| {
                let used = point.used.map_or(0, |used| eighths(used, most, all));
                let planned = point.planned.map_or(0, |q95| eighths(q95, most, all));
                let above = used > planned && point.planned.is_some();
                match used.saturating_sub(floor).min(8) {
                    0 if planned > floor => ('░', Ink::Band),
                    0 => (' ', Ink::Plain),
                    bar => (EIGHTHS[bar], if above { Ink::Above } else { Ink::Used }),
                }
            });
            let mut cells = vec![(' ', Ink::Plain); room - points.len()];
            cells.extend(past);
            cells.push(('│', Ink::Plain));
            let shade = fan.map_or(' ', |band| {
                let reaches = |value| eighths(value, most, all) > floor;
                match (reaches(band.q50), reaches(band.q95), reaches(band.q99)) {
                    (true, _, _) => '▓',
                    (_, true, _) => '▒',
                    (_, _, true) => '░',
                    _ => ' ',
                }
            });
            cells.extend(std::iter::repeat_n((shade, Ink::Band), FAN));
            cells.truncate(width);
            cells
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(used: f64, planned: f64) -> Point {
        Point {
            used: Some(used),
            planned: Some(planned),
        }
    }

    #[test]
    fn a_line_has_the_height_of_use_and_plan_together() {
        let gap = Point {
            used: None,
            planned: Some(1.0),
        };
        let line = spark(&[point(0.0, 1.0), point(0.5, 1.0), gap, point(2.0, 1.0)]);
        let text: String = line.iter().map(|(sign, _)| *sign).collect();
        assert_eq!(text, "▁▂ █");
        assert_eq!(line[1].1, Ink::Used);
        assert_eq!(line[3].1, Ink::Above);
    }

    #[test]
    fn the_band_stands_behind_the_bars_and_ahead_of_the_present() {
        let band = api::Band {
            q50: 0.5,
            q90: 0.7,
            q95: 0.75,
            q99: 1.0,
            model: String::new(),
            cold: false,
        };
        let lines = chart(&[point(0.5, 0.75)], Some(&band), 11, 4);
        let text: Vec<String> = lines
            .iter()
            .map(|line| line.iter().map(|(sign, _)| *sign).collect())
            .collect();
        assert_eq!(
            text,
            ["  │░░░░░░░░", " ░│▒▒▒▒▒▒▒▒", " █│▓▓▓▓▓▓▓▓", " █│▓▓▓▓▓▓▓▓"]
        );
        // No room and nothing known are no trouble.
        for (width, height) in [(0, 0), (3, 1), (9, 2)] {
            chart(&[point(0.0, 0.0)], None, width, height);
        }
    }

    #[test]
    fn trails_are_bounded_and_go_with_their_apps() {
        let mut trails = Trails::default();
        let (web, crunch) = (crate::cli::tests::web(), crate::cli::tests::crunch());
        for _ in 0..TRAIL_MAX * 2 {
            trails.take(&[crunch.clone(), web.clone()]);
        }
        assert_eq!(trails.latest("web", usize::MAX).len(), TRAIL_MAX);
        assert_eq!(trails.latest("web", 3).len(), 3);
        trails.take(&[web]);
        assert_eq!(trails.len(), 1);
        assert!(trails.latest("crunch", 9).is_empty());
    }
}
