//! What applications of a made fleet want: load that looks like that of real ones.
//!
//! An application's processor time is what it wants on average, times a day's profile that its group
//! shares, times slow noise of its own, times bursts of its own and events of its group, times steps that
//! releases bring; some run a job at fixed times besides. Nothing depends on where it runs, so that
//! every arm of a comparison has the same load, to the last sample. Parameters are in the range of
//! public traces of machines and instances (five-minute means: coefficient of variation 0.1 to 1, the
//! 99 % quantile 1.3 to 5 times the median).

use fastrand::Rng;
use forebay_core::app::Class;

/// Between two samples, in seconds.
pub(super) const STEP_S: u64 = 10;
const STEPS_PER_DAY: u64 = 86_400 / STEP_S;
const APPS_PER_GROUP: usize = 20;
/// A run begins at seven in the morning.
const BEGINS: u64 = 7 * STEPS_PER_DAY / 24;

/// A rise that comes and goes: a ramp, a plateau, a ramp. In steps.
#[derive(Debug, Clone, Copy)]
struct Rise {
    start: u64,
    up: u64,
    hold: u64,
    down: u64,
    /// What it multiplies by at its height, less one.
    gain: f32,
}

impl Rise {
    fn end(&self) -> u64 {
        self.start + self.up + self.hold + self.down
    }

    fn at(&self, step: u64) -> f32 {
        let Some(since) = step.checked_sub(self.start) else {
            return 0.0;
        };
        let part = |n: u64, of: u64| float(n) / float(of.max(1));
        let height = if since < self.up {
            part(since, self.up)
        } else if since < self.up + self.hold {
            1.0
        } else if since < self.up + self.hold + self.down {
            part(self.up + self.hold + self.down - since, self.down)
        } else {
            0.0
        };
        self.gain * height
    }
}

/// Rises in order of their start, and which may be on.
#[derive(Debug, Clone, Default)]
struct Rises {
    all: Vec<Rise>,
    first: usize,
}

impl Rises {
    /// So many a day on average, at random moments.
    fn draw(rng: &mut Rng, (steps, per_day): (u64, f64), rise: impl Fn(&mut Rng) -> Rise) -> Self {
        let mut all: Vec<Rise> = Vec::new();
        let mut at = 0.0;
        loop {
            at += exponential(rng, double(STEPS_PER_DAY) / per_day);
            if at >= double(steps) {
                return Self { all, first: 0 };
            }
            let start = whole(at);
            all.push(Rise { start, ..rise(rng) });
        }
    }

    fn factor(&mut self, step: u64) -> f32 {
        while self
            .all
            .get(self.first)
            .is_some_and(|rise| rise.end() <= step)
        {
            self.first += 1;
        }
        let on = self.all[self.first..].iter();
        let on = on.take_while(|rise| rise.start <= step);
        1.0 + on.map(|rise| rise.at(step)).sum::<f32>()
    }

    /// The same for steps in any order, where there are few.
    fn factor_at(&self, step: u64) -> f32 {
        1.0 + self.all.iter().map(|rise| rise.at(step)).sum::<f32>()
    }
}

/// A job at fixed times, in steps.
#[derive(Debug, Clone, Copy)]
struct Job {
    every: u64,
    offset: u64,
    lasts: u64,
    /// Of what the application wants on average.
    part: f32,
}

/// One application's load.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// How much it matters.
    pub(super) class: Class,
    /// What its owner asked for, in CPUs.
    pub(super) request: f64,
    base: f32,
    amplitude: f32,
    profile: usize,
    shift: u64,
    group: usize,
    noise: f32,
    sigma: f32,
    keeps: f32,
    bursts: Rises,
    levels: Vec<(u64, f32)>,
    level: usize,
    job: Option<Job>,
    rng: Rng,
}

/// The load of a fleet.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    profiles: Vec<Vec<f32>>,
    groups: Vec<Rises>,
    apps: Vec<Load>,
}

impl Trace {
    /// The load of so many applications for so many steps that comes to `cpus` on average.
    pub(super) fn new(seed: u64, apps: usize, steps: u64, cpus: f64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let profiles: [fn(f64) -> f64; 3] = [office_hours, evening, round_the_clock];
        let table = |profile: fn(f64) -> f64| -> Vec<f32> {
            let hour = |step: u64| double(step) / double(STEPS_PER_DAY) * 24.0;
            let values: Vec<f64> = (0..STEPS_PER_DAY).map(|step| profile(hour(step))).collect();
            let mean = values.iter().sum::<f64>() / double(STEPS_PER_DAY);
            let most = values
                .iter()
                .fold(0.0_f64, |most, value| most.max(value - mean));
            let scaled = values.iter().map(|value| (value - mean) / most);
            scaled.map(single).collect()
        };
        // Shift of a group, in hours: where its users are.
        let count = apps.div_ceil(APPS_PER_GROUP).max(1);
        let groups: Vec<(usize, u64, Rises)> = (0..count)
            .map(|_| {
                let rises = Rises::draw(&mut rng, (steps, 0.5), |rng| Rise {
                    start: 0,
                    up: rng.u64(60..180),
                    hold: rng.u64(120..480),
                    down: rng.u64(60..240),
                    gain: 0.2 + 0.5 * rng.f32(),
                });
                let profile = [0, 0, 1, 1, 2][rng.usize(0..5)];
                (profile, rng.u64(0..STEPS_PER_DAY / 8), rises)
            })
            .collect();
        let mut made = Self {
            profiles: profiles.into_iter().map(table).collect(),
            apps: (0..apps)
                .map(|app| {
                    let group = app / APPS_PER_GROUP;
                    Load::draw(&mut rng, (group, &groups[group]), steps)
                })
                .collect(),
            groups: groups.into_iter().map(|(_, _, rises)| rises).collect(),
        };
        made.scale(cpus);
        made
    }

    /// Makes it come to so much on a day without noise, and has owners ask for what they think it is.
    fn scale(&mut self, cpus: f64) {
        const LOOKS: u64 = 96;
        let mut trial = self.clone();
        let means: Vec<f64> = (0..trial.apps.len())
            .map(|app| {
                let looks = (0..LOOKS).map(|look| {
                    let step = look * STEPS_PER_DAY / LOOKS;
                    f64::from(trial.calm(app, step))
                });
                looks.sum::<f64>() / double(LOOKS)
            })
            .collect();
        let scale = cpus / means.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        for (load, mean) in self.apps.iter_mut().zip(means) {
            load.base *= single(scale);
            // Owners err by a third either way, and ask for a fifth more than they think.
            let error = (0.3 * f64::from(normal(&mut load.rng))).exp();
            load.request = mean * scale * 1.2 * error;
        }
    }

    pub(super) fn apps(&self) -> &[Load] {
        &self.apps
    }

    /// What an application wants in a step, without its noise. Steps do not go back.
    fn calm(&mut self, app: usize, step: u64) -> f32 {
        let load = &mut self.apps[app];
        let table = &self.profiles[load.profile];
        let place = (step + BEGINS + load.shift) % STEPS_PER_DAY;
        let day = 1.0 + load.amplitude * table[usize::try_from(place).unwrap_or(0)];
        let next = load.levels.get(load.level + 1);
        if next.is_some_and(|(from, _)| *from <= step) {
            load.level += 1;
        }
        let level = load.levels[load.level].1;
        let job = load.job.map_or(0.0, |job| {
            let on = (step + job.offset) % job.every < job.lasts;
            if on { job.part } else { 0.0 }
        });
        let group = self.groups[load.group].factor_at(step);
        load.base * (day.max(0.05) * level * load.bursts.factor(step) * group + job)
    }

    /// What an application wants in a step, in CPUs. Each step once, in order.
    pub(super) fn next(&mut self, app: usize, step: u64) -> f64 {
        let calm = self.calm(app, step);
        let load = &mut self.apps[app];
        load.noise = load.keeps * load.noise + load.sigma * normal(&mut load.rng);
        f64::from(calm * (1.0 + load.noise).max(0.2))
    }
}

impl Load {
    fn draw(rng: &mut Rng, (group, about): (usize, &(usize, u64, Rises)), steps: u64) -> Self {
        let mut own = rng.fork();
        let rng = &mut own;
        let class = match rng.u32(0..100) {
            0..20 => Class::Critical,
            20..75 => Class::Standard,
            _ => Class::Batch,
        };
        let per_day = 0.5 + 3.0 * rng.f64();
        let bursts = Rises::draw(rng, (steps, per_day), |rng| Rise {
            start: 0,
            up: rng.u64(1..12),
            hold: whole(exponential(rng, 60.0)).min(720),
            down: rng.u64(3..30),
            gain: 0.3 + 1.2 * rng.f32() * rng.f32(),
        });
        let mut levels = vec![(0, 1.0)];
        let mut at = 0.0;
        loop {
            at += exponential(rng, double(STEPS_PER_DAY) / 0.15);
            if at >= double(steps) {
                break;
            }
            levels.push((whole(at), 0.75 + 0.55 * rng.f32()));
        }
        let job = (rng.u32(0..4) == 0).then(|| {
            let every = [360, 1440, STEPS_PER_DAY][rng.usize(0..3)];
            Job {
                every,
                offset: rng.u64(0..every),
                lasts: rng.u64(30..120),
                part: 0.4 + 0.8 * rng.f32(),
            }
        });
        // Steps that remember for five to fifteen minutes.
        let keeps = 1.0 - 1.0 / rng.u32(30..90) as f32;
        let noise = 0.04 + 0.14 * rng.f32();
        Self {
            class,
            request: 0.0,
            base: (0.7 * normal(rng)).exp().clamp(0.15, 5.0),
            amplitude: 0.15 + 0.5 * rng.f32(),
            profile: about.0,
            // Within a quarter of an hour of its group.
            shift: about.1 + rng.u64(0..90),
            group,
            noise: 0.0,
            sigma: noise * (1.0 - keeps * keeps).sqrt(),
            keeps,
            bursts,
            levels,
            level: 0,
            job,
            rng: rng.fork(),
        }
    }
}

fn hill(hour: f64, at: f64, width: f64) -> f64 {
    let away = (hour - at).rem_euclid(24.0);
    let away = away.min(24.0 - away) / width;
    (-0.5 * away * away).exp()
}

fn office_hours(hour: f64) -> f64 {
    hill(hour, 10.0, 1.8) + 0.9 * hill(hour, 14.5, 2.2)
}

fn evening(hour: f64) -> f64 {
    0.4 * hill(hour, 12.0, 3.0) + hill(hour, 20.5, 2.0)
}

fn round_the_clock(hour: f64) -> f64 {
    1.0 + 0.5 * hill(hour, 12.0, 5.0)
}

/// Of a normal distribution, nearly: the sum of four.
fn normal(rng: &mut Rng) -> f32 {
    (rng.f32() + rng.f32() + rng.f32() + rng.f32() - 2.0) * 1.732
}

pub(super) fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

#[expect(clippy::cast_precision_loss, reason = "steps of a few days")]
fn float(n: u64) -> f32 {
    n as f32
}

#[expect(clippy::cast_precision_loss, reason = "steps of a few days")]
fn double(n: u64) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a load needs no more than that"
)]
fn single(value: f64) -> f32 {
    value as f32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times, which are positive and few"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_load_and_it_comes_to_what_was_asked() {
        let steps = STEPS_PER_DAY;
        let sum = |trace: &mut Trace| {
            let mut sum = 0.0;
            for step in (0..steps).step_by(20) {
                sum += (0..100).map(|app| trace.next(app, step)).sum::<f64>();
            }
            sum / double(steps / 20)
        };
        let mut one = Trace::new(5, 100, steps, 80.0);
        let mut other = one.clone();
        let mean = sum(&mut one);
        assert!((72.0..92.0).contains(&mean), "{mean}");
        assert!((mean - sum(&mut other)).abs() < 1e-12);
        let mut again = Trace::new(5, 100, steps, 80.0);
        assert!((mean - sum(&mut again)).abs() < 1e-12);
    }

    #[test]
    fn it_varies_like_the_load_of_real_machines() {
        let mut trace = Trace::new(11, 60, 2 * STEPS_PER_DAY, 60.0);
        let mut within = 0;
        for app in 0..60 {
            // Means of five minutes, over two days.
            let mut means: Vec<f64> = (0..576)
                .map(|at| {
                    let steps = at * 30..(at + 1) * 30;
                    steps.map(|step| trace.next(app, step)).sum::<f64>() / 30.0
                })
                .collect();
            let mean = means.iter().sum::<f64>() / 576.0;
            let variance = means.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 576.0;
            means.sort_by(f64::total_cmp);
            let variation = variance.sqrt() / mean;
            let peak = means[570] / means[288];
            if (0.08..1.2).contains(&variation) && (1.2..6.0).contains(&peak) {
                within += 1;
            }
        }
        assert!(within >= 54, "{within} of 60");
    }
}
