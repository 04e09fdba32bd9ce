//! Who gets how much CPU time when more is wanted than there is.
//!
//! # Problem
//! Groups want CPU time, each on its own set of CPUs, with weights; idle groups take only
//! what nobody else wants. The kernel divides each CPU by weight and moves tasks to CPUs
//! with room. How much does each group get in one period?
//!
//! # Approach
//! CPUs that the same groups may use form a *region* and are one pool. In rounds, each
//! group spreads what it still wants over its regions in proportion to the room there,
//! and its weight likewise, as the kernel does with a task group's shares; each region is
//! divided by weighted water-filling. A round satisfies a group or fills a region, so the
//! rounds end. Then, as idle balancing does, a group with room elsewhere makes place for
//! one that has none. Idle groups go through the same afterwards, with what is left.
//!
//! # Properties
//! Held by the tests below.
//! 1. No CPU is used above its capacity, no group gets more than it wants.
//! 2. Work conserving: no CPU has room that a hungry group may use.
//! 3. Hungry groups on the same CPUs get time in proportion to their weights.
//! 4. An idle group gets nothing on a CPU that another group is hungry for.

use forebay_core::idset::{CpuSet, IdSet};

/// Amounts below this are rounding.
const EPSILON: f64 = 1e-12;

/// What one group wants.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// Where it may run.
    pub cpus: CpuSet,
    /// CPU time wanted.
    pub wanted: f64,
    /// cpu.weight
    pub weight: f64,
    /// cpu.idle
    pub idle: bool,
}

/// CPUs that the same groups may use.
#[derive(Debug, Clone)]
pub struct Region {
    /// Positions in the list of CPUs.
    cpus: Vec<usize>,
    /// Positions in the list of claims.
    claims: Vec<usize>,
}

/// What each group got, and what it waited for.
#[derive(Debug, Clone, Default)]
pub struct Shares {
    /// CPU time for each claim.
    pub got: Vec<f64>,
    /// Part of the time, 0 to 1, in which a task of the claim waited for a CPU.
    pub waited: Vec<f64>,
    /// CPU time used on each CPU.
    pub busy: Vec<f64>,
}

/// Puts CPUs together that the same sets contain. At most 1,024 sets.
#[must_use]
pub fn regions(ids: &[usize], sets: &[CpuSet]) -> Vec<Region> {
    let mut keys: Vec<IdSet> = Vec::new();
    let mut regions: Vec<Region> = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        let key: IdSet = (0..sets.len()).filter(|&i| sets[i].contains(id)).collect();
        match keys.iter().position(|known| *known == key) {
            Some(known) => regions[known].cpus.push(position),
            None => {
                keys.push(key);
                regions.push(Region {
                    cpus: vec![position],
                    claims: (0..sets.len()).filter(|&i| sets[i].contains(id)).collect(),
                });
            }
        }
    }
    regions
}

/// Divides `capacity` (CPU time, of each CPU) among `claims`; `regions` come from
/// [`regions`] for the sets of these claims.
#[must_use]
pub fn share(regions: &[Region], capacity: &[f64], claims: &[Claim]) -> Shares {
    let total: Vec<f64> = regions
        .iter()
        .map(|region| region.cpus.iter().map(|&cpu| capacity[cpu]).sum())
        .collect();
    // The idle class must not be noticed by the others, so they are divided first, over regions
    // in which its sets draw no borders.
    let merged = without_idle(regions, claims);
    let busy: Vec<Region> = merged.iter().map(|(region, _)| region.clone()).collect();
    let busy_total: Vec<f64> = merged
        .iter()
        .map(|(_, parts)| parts.iter().map(|&part| total[part]).sum())
        .collect();
    let mut first = Division::new(&busy, claims, busy_total.clone());
    first.fill(false);
    first.balance(false);

    let mut division = Division::new(regions, claims, total.clone());
    division.left.clone_from(&first.left);
    for (m, (_, parts)) in merged.iter().enumerate() {
        for &part in parts.iter().filter(|&&part| total[part] > 0.0) {
            let share = total[part] / busy_total[m];
            division.room[part] = first.room[m] * share;
            for (used, whole) in division.used[part].iter_mut().zip(&first.used[m]) {
                *used = whole * share;
            }
        }
    }
    division.fill(true);
    division.balance(true);
    division.shares(&total, capacity)
}

/// Regions of the claims that are not idle, each with the regions it is made of.
fn without_idle(regions: &[Region], claims: &[Claim]) -> Vec<(Region, Vec<usize>)> {
    let mut merged: Vec<(Region, Vec<usize>)> = Vec::new();
    for (part, region) in regions.iter().enumerate() {
        let busy = region.claims.iter().copied();
        let busy: Vec<usize> = busy.filter(|&claim| !claims[claim].idle).collect();
        match merged.iter_mut().find(|(known, _)| known.claims == busy) {
            Some((known, parts)) => {
                known.cpus.extend(&region.cpus);
                parts.push(part);
            }
            None => {
                let cpus = region.cpus.clone();
                merged.push((Region { cpus, claims: busy }, vec![part]));
            }
        }
    }
    merged
}

struct Division<'a> {
    regions: &'a [Region],
    claims: &'a [Claim],
    /// Unused time of each region.
    room: Vec<f64>,
    /// Ungranted time of each claim.
    left: Vec<f64>,
    /// Time granted, by region and claim.
    used: Vec<Vec<f64>>,
}

impl<'a> Division<'a> {
    fn new(regions: &'a [Region], claims: &'a [Claim], room: Vec<f64>) -> Self {
        Self {
            regions,
            claims,
            room,
            left: claims.iter().map(|claim| claim.wanted.max(0.0)).collect(),
            used: vec![vec![0.0; claims.len()]; regions.len()],
        }
    }

    fn fill(&mut self, idle: bool) {
        let mut reach = vec![0.0; self.claims.len()];
        for _ in 0..=self.regions.len() + self.claims.len() {
            reach.fill(0.0);
            for (r, region) in self.regions.iter().enumerate() {
                for &i in &region.claims {
                    reach[i] += self.room[r];
                }
            }
            let before = self.left.clone();
            let mut granted = 0.0;
            for (r, region) in self.regions.iter().enumerate() {
                let mut hungry: Vec<(usize, f64, f64)> = region
                    .claims
                    .iter()
                    .filter(|&&i| {
                        self.claims[i].idle == idle && before[i] > EPSILON && reach[i] > EPSILON
                    })
                    .map(|&i| {
                        let part = self.room[r] / reach[i];
                        (i, before[i] * part, self.claims[i].weight * part)
                    })
                    .filter(|(_, wanted, _)| *wanted > 0.0)
                    .collect();
                let given = water_fill(self.room[r], &mut hungry);
                for (i, time) in given {
                    self.grant(r, i, time);
                    granted += time;
                }
            }
            if granted <= EPSILON {
                break;
            }
        }
    }

    fn grant(&mut self, region: usize, claim: usize, time: f64) {
        self.used[region][claim] += time;
        self.room[region] = (self.room[region] - time).max(0.0);
        self.left[claim] = (self.left[claim] - time).max(0.0);
    }

    /// Moves groups that have room elsewhere out of the way of hungry ones.
    fn balance(&mut self, idle: bool) {
        for r in 0..self.regions.len() {
            for &hungry in &self.regions[r].claims {
                if self.claims[hungry].idle != idle {
                    continue;
                }
                for &other in &self.regions[r].claims {
                    for s in 0..self.regions.len() {
                        let time = self.left[hungry].min(self.used[r][other]).min(self.room[s]);
                        if other == hungry
                            || s == r
                            || time <= EPSILON
                            || !self.regions[s].claims.contains(&other)
                        {
                            continue;
                        }
                        self.used[r][other] -= time;
                        self.used[s][other] += time;
                        self.room[s] -= time;
                        self.used[r][hungry] += time;
                        self.left[hungry] -= time;
                    }
                }
            }
        }
    }

    fn shares(&self, total: &[f64], capacity: &[f64]) -> Shares {
        let mut shares = Shares {
            got: vec![0.0; self.claims.len()],
            waited: vec![0.0; self.claims.len()],
            busy: vec![0.0; capacity.len()],
        };
        for (r, region) in self.regions.iter().enumerate() {
            if total[r] <= 0.0 {
                continue;
            }
            let in_use = 1.0 - self.room[r] / total[r];
            for &cpu in &region.cpus {
                shares.busy[cpu] = capacity[cpu] * in_use;
            }
            // With all CPUs taken a waking task meets another one; with some free it
            // goes there. The more CPUs, the likelier one is free.
            let taken = in_use.powi(i32::try_from(region.cpus.len()).unwrap_or(i32::MAX));
            for &i in &region.claims {
                let others: f64 = region
                    .claims
                    .iter()
                    .filter(|&&j| j != i && (self.claims[i].idle || !self.claims[j].idle))
                    .map(|&j| {
                        let weights = self.claims[i].weight + self.claims[j].weight;
                        self.used[r][j] * self.claims[j].weight / weights
                    })
                    .sum();
                shares.got[i] += self.used[r][i];
                shares.waited[i] += taken * others / total[r] * self.used[r][i] / total[r];
            }
        }
        for (i, claim) in self.claims.iter().enumerate() {
            if claim.wanted > 0.0 {
                let hungry = self.left[i] / claim.wanted;
                shares.waited[i] = (shares.waited[i] + hungry.sqrt()).min(1.0);
            }
        }
        shares
    }
}

/// Divides `room` among (claim, wanted, weight) so that none gets more than wanted and
/// those that get less get it by weight.
fn water_fill(mut room: f64, hungry: &mut [(usize, f64, f64)]) -> Vec<(usize, f64)> {
    hungry.sort_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)));
    let mut weights: f64 = hungry.iter().map(|(_, _, weight)| weight).sum();
    hungry
        .iter()
        .map(|&(claim, wanted, weight)| {
            let time = wanted.min(room * (weight / weights.max(weight)));
            room -= time;
            weights -= weight;
            (claim, time)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn divide(cpus: usize, claims: &[Claim]) -> Shares {
        let ids: Vec<usize> = (0..cpus).collect();
        let sets: Vec<CpuSet> = claims.iter().map(|claim| claim.cpus).collect();
        share(&regions(&ids, &sets), &vec![1.0; cpus], claims)
    }

    fn claim(cpus: &str, wanted: f64, weight: f64) -> Claim {
        Claim {
            cpus: cpus.parse().unwrap(),
            wanted,
            weight,
            idle: false,
        }
    }

    fn check(cpus: usize, claims: &[Claim], got: &[f64]) {
        let shares = divide(cpus, claims);
        for (i, (is, should)) in shares.got.iter().zip(got).enumerate() {
            assert!(
                (is - should).abs() < 1e-6,
                "claim {i}: {is}, not {should}: {shares:?}"
            );
        }
    }

    #[test]
    fn a_cpu_is_divided_by_weight() {
        let all = [claim("0-1", 2.0, 100.0), claim("0-1", 2.0, 300.0)];
        check(2, &all, &[0.5, 1.5]);
    }

    #[test]
    fn what_one_leaves_the_others_get() {
        let all = [
            claim("0-1", 0.25, 100.0),
            claim("0-1", 2.0, 100.0),
            claim("0-1", 2.0, 100.0),
        ];
        check(2, &all, &[0.25, 0.875, 0.875]);
    }

    #[test]
    fn an_exclusive_cpu_is_exclusive() {
        let all = [claim("0", 0.7, 100.0), claim("1-3", 8.0, 10_000.0)];
        check(4, &all, &[0.7, 3.0]);
    }

    #[test]
    fn a_group_with_room_elsewhere_makes_place() {
        let all = [claim("0-1", 1.0, 100.0), claim("1", 1.0, 100.0)];
        check(2, &all, &[1.0, 1.0]);
    }

    #[test]
    fn idle_waits_for_all_others() {
        let idle = Claim {
            idle: true,
            ..claim("0", 1.0, 10_000.0)
        };
        check(1, &[idle, claim("0", 1.0, 1.0)], &[0.0, 1.0]);
        check(1, &[idle, claim("0", 0.4, 1.0)], &[0.6, 0.4]);
    }

    #[test]
    fn waiting_shows_only_where_cpus_are_contended() {
        let waited = |claims: &[Claim]| divide(2, claims).waited[0];
        assert_eq!(
            waited(&[claim("0", 0.5, 100.0), claim("1", 1.0, 100.0)]),
            0.0
        );
        assert!(waited(&[claim("0-1", 0.5, 100.0), claim("0-1", 2.0, 100.0)]) > 0.01);
        assert_eq!(
            waited(&[claim("0", 9.0, 0.001), claim("0", 9.0, 1e9)]).round(),
            1.0
        );
    }

    fn claims(cpus: usize) -> impl Strategy<Value = Vec<Claim>> {
        let one = (
            proptest::collection::vec(0..cpus, 1..=cpus),
            0.0..2.0 * cpus as f64,
            1.0..10_000.0,
            proptest::bool::weighted(0.3),
        );
        let one = one.prop_map(|(ids, wanted, weight, idle)| Claim {
            cpus: ids.into_iter().collect(),
            wanted,
            weight,
            idle,
        });
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn nothing_is_used_twice(all in claims(12)) {
            let shares = divide(12, &all);
            for (i, claim) in all.iter().enumerate() {
                prop_assert!(shares.got[i] <= claim.wanted + 1e-6);
                prop_assert!(shares.got[i] <= claim.cpus.len() as f64 + 1e-6);
                prop_assert!((0.0..=1.0).contains(&shares.waited[i]));
            }
            prop_assert!(shares.busy.iter().all(|busy| (-1e-9..=1.0 + 1e-6).contains(busy)));
            let (got, busy): (f64, f64) = (shares.got.iter().sum(), shares.busy.iter().sum());
            prop_assert!((got - busy).abs() < 1e-6, "{} given, {} used", got, busy);
        }

        #[test]
        fn no_cpu_idles_while_a_group_hungers(all in claims(12)) {
            let shares = divide(12, &all);
            for (i, claim) in all.iter().enumerate() {
                if shares.got[i] < claim.wanted - 1e-6 {
                    for cpu in claim.cpus.iter() {
                        prop_assert!(shares.busy[cpu] > 1.0 - 1e-6, "cpu {} for claim {}", cpu, i);
                    }
                }
            }
        }

        #[test]
        fn the_hungry_get_by_weight(weights in proptest::collection::vec(1.0..10_000.0, 2..8)) {
            let all: Vec<Claim> = weights.iter().map(|&w| claim("0-3", 4.0, w)).collect();
            let shares = divide(4, &all);
            let sum: f64 = weights.iter().sum();
            for (got, weight) in shares.got.iter().zip(&weights) {
                prop_assert!((got - 4.0 * weight / sum).abs() < 1e-6);
            }
        }

        #[test]
        fn idle_groups_take_only_leftovers(all in claims(8)) {
            let without: Vec<Claim> = all.iter().filter(|c| !c.idle).copied().collect();
            let alone = divide(8, &without);
            let together = divide(8, &all);
            let busy = all.iter().zip(&together.got).filter(|(c, _)| !c.idle);
            for ((_, with), without) in busy.zip(&alone.got) {
                prop_assert!((with - without).abs() < 1e-6, "{} instead of {}", with, without);
            }
        }
    }
}
