//! Who gets how much of a host's processor time.
//!
//! Critical applications are served first, then standard ones, then batch; within a class, each gets
//! what it wants or its fair part, by what its owner asked for (weighted max-min fairness, what
//! proportional weights of control groups come to).

use forebay_core::app::Class;

/// What one wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub(super) app: usize,
    pub(super) class: Class,
    pub(super) wants: f64,
    pub(super) weight: f64,
}

/// Less than this part missing is none.
const TOLERANCE: f64 = 1e-9;

/// What one gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Gets {
    pub(super) app: usize,
    pub(super) class: Class,
    pub(super) cpus: f64,
    /// That is less than it wants.
    pub(super) lacks: bool,
}

/// What each of them gets of so much.
pub(super) fn divide(capacity: f64, wants: &[Want], gets: &mut Vec<Gets>) {
    gets.clear();
    let got = |want: &Want, cpus: f64| Gets {
        app: want.app,
        class: want.class,
        cpus,
        lacks: cpus < want.wants * (1.0 - TOLERANCE),
    };
    let all: f64 = wants.iter().map(|want| want.wants).sum();
    if all <= capacity {
        return gets.extend(wants.iter().map(|want| got(want, want.wants)));
    }
    let mut left = capacity.max(0.0);
    for class in [Class::Critical, Class::Standard, Class::Batch] {
        let of = || wants.iter().filter(|want| want.class == class);
        let sum: f64 = of().map(|want| want.wants).sum();
        if sum <= left {
            gets.extend(of().map(|want| got(want, want.wants)));
            left -= sum;
            continue;
        }
        // Those that want least of their part are served first.
        let mut open: Vec<&Want> = of().collect();
        open.sort_by(|a, b| (a.wants / a.weight).total_cmp(&(b.wants / b.weight)));
        let mut weights: f64 = open.iter().map(|want| want.weight).sum();
        for want in open {
            let part = left * want.weight / weights.max(f64::MIN_POSITIVE);
            let cpus = want.wants.min(part);
            gets.push(got(want, cpus));
            left -= cpus;
            weights -= want.weight;
        }
        left = left.max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(capacity: f64, wants: &[(Class, f64)], expected: &[usize]) {
        let wants: Vec<Want> = wants
            .iter()
            .enumerate()
            .map(|(app, (class, wants))| Want {
                app,
                class: *class,
                wants: *wants,
                weight: 1.0,
            })
            .collect();
        let mut gets = Vec::new();
        divide(capacity, &wants, &mut gets);
        assert_eq!(gets.len(), wants.len());
        let sum: f64 = gets.iter().map(|of| of.cpus).sum();
        let all: f64 = wants.iter().map(|want| want.wants).sum();
        assert!((sum - all.min(capacity)).abs() < 1e-9, "{gets:?}");
        let lacks = gets.iter().filter(|of| of.lacks);
        let mut lacks: Vec<usize> = lacks.map(|of| of.app).collect();
        lacks.sort_unstable();
        assert_eq!(lacks, expected, "{wants:?}");
    }

    #[test]
    fn classes_are_served_in_order_and_small_ones_first() {
        use Class::{Batch, Critical, Standard};
        check(8.0, &[(Critical, 4.0), (Standard, 4.0)], &[]);
        check(8.0, &[(Critical, 4.0), (Standard, 3.0), (Batch, 2.0)], &[2]);
        check(
            8.0,
            &[
                (Critical, 4.0),
                (Standard, 1.0),
                (Standard, 5.0),
                (Batch, 0.1),
            ],
            &[2, 3],
        );
        check(8.0, &[(Critical, 9.0), (Standard, 1.0)], &[0, 1]);
        check(8.0, &[(Standard, 5.0), (Standard, 5.0)], &[0, 1]);
    }
}
