//! Durations, amounts of memory and of processor time, as people write them.

use std::time::Duration;

use forebay_core::units::{Bytes, MilliCpu, Rate};

use super::error::Problem;

/// The pattern of a duration, for the schema.
pub(super) const DURATION_PATTERN: &str = r"^[0-9]+(\.[0-9]+)? ?(us|ms|s|m|min|h|d)$";
/// The pattern of an amount of memory, for the schema.
pub(super) const BYTES_PATTERN: &str = r"^[0-9]+(\.[0-9]+)? ?([KMGT](i?B)?|kB|B)?$";
/// The pattern of an amount of processor time, for the schema.
pub(super) const CPU_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?m?$";
/// The pattern of a share, for the schema.
pub(super) const PERCENT_PATTERN: &str = r"^[0-9]+ ?%$";

/// The pattern of a rate of data, for the schema.
pub(super) const RATE_PATTERN: &str = r"^[0-9]+(\.[0-9]+)? ?[KMG]?bit$";

/// `100ms`, `5s`, `2m`, `1.5h`, `14d`. A number alone has no meaning and is refused.
pub(super) fn duration(text: &str) -> Result<Duration, Problem> {
    const UNITS: [(&str, f64); 7] = [
        ("us", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("min", 60.0),
        ("m", 60.0),
        ("h", 3600.0),
        ("d", 86_400.0),
    ];
    let problem = || {
        Problem::new(
            format!("`{text}` is not a duration"),
            "write a number and a unit, such as \"100ms\", \"5s\", \"2m\", \"1h\" or \"14d\"",
        )
    };
    let (number, unit) = number_and_unit(text).ok_or_else(problem)?;
    let (_, size) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(problem)?;
    // Nanoseconds hide that 0.1 * 3 is not 0.3.
    let seconds = (number * size * 1e9).round() / 1e9;
    Duration::try_from_secs_f64(seconds).map_err(|_| problem())
}

/// `64MiB`, `1GiB`, `1.5G`, `4096`. One-letter units are powers of 1024, as in systemd and in the
/// kernel's own files; `kB`, `MB`, `GB` and `TB` are powers of 1000.
pub(super) fn bytes(text: &str) -> Result<Bytes, Problem> {
    const UNITS: [(&str, u64); 14] = [
        ("", 1),
        ("B", 1),
        ("K", 1 << 10),
        ("KiB", 1 << 10),
        ("kB", 1_000),
        ("M", 1 << 20),
        ("MiB", 1 << 20),
        ("MB", 1_000_000),
        ("G", 1 << 30),
        ("GiB", 1 << 30),
        ("GB", 1_000_000_000),
        ("T", 1 << 40),
        ("TiB", 1 << 40),
        ("TB", 1_000_000_000_000),
    ];
    let problem = || {
        Problem::new(
            format!("`{text}` is not an amount of memory"),
            "write bytes or a number and a unit, such as 67108864, \"64MiB\" or \"1.5GiB\"",
        )
    };
    let (number, unit) = number_and_unit(text).ok_or_else(problem)?;
    let (_, size) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(problem)?;
    // A whole number stays exact beyond what a float holds.
    let digits = text.trim().trim_end_matches(unit).trim_end();
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(size).map(Bytes).ok_or_else(problem);
    }
    let amount = number * Bytes(size).as_f64();
    if amount < Bytes(u64::MAX).as_f64() {
        Ok(Bytes::from_f64(amount))
    } else {
        Err(problem())
    }
}

/// `100Mbit`, `1.5Gbit`: bits per second in powers of 1000, as tc(8) takes them. At least 8 of them,
/// so that something moves.
pub(super) fn rate(text: &str) -> Result<Rate, Problem> {
    const UNITS: [(&str, f64); 4] = [("bit", 1.0), ("Kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
    let problem = || {
        Problem::new(
            format!("`{text}` is not a rate of data"),
            "write bits per second, such as \"500Kbit\", \"100Mbit\" or \"1Gbit\"",
        )
    };
    let (number, unit) = number_and_unit(text).ok_or_else(problem)?;
    let (_, size) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(problem)?;
    let bytes = Bytes::from_f64(number * size / 8.0);
    (1..u64::MAX)
        .contains(&bytes.0)
        .then_some(Rate(bytes.0))
        .ok_or_else(problem)
}

/// `500m` (thousandths of a CPU) or a number of CPUs.
pub(super) fn cpu(text: &str) -> Result<MilliCpu, Problem> {
    let thousandths = |number: f64, unit: &str| match unit {
        "" => cpus(number).ok(),
        "m" => cpus(number / 1000.0).ok(),
        _ => None,
    };
    number_and_unit(text)
        .and_then(|(number, unit)| thousandths(number, unit))
        .ok_or_else(|| not_cpu(text))
}

/// A number of CPUs, to the nearest thousandth.
pub(super) fn cpus(number: f64) -> Result<MilliCpu, Problem> {
    const CPUS_MAX: f64 = 1e6;
    if (0.0..=CPUS_MAX).contains(&number) {
        Ok(MilliCpu::from_cpus(number))
    } else {
        Err(not_cpu(&number.to_string()))
    }
}

fn not_cpu(text: &str) -> Problem {
    Problem::new(
        format!("`{text}` is not an amount of processor time"),
        "write a number of CPUs or thousandths of one, such as 0.5, 2 or \"500m\"",
    )
}

/// `30%`.
pub(super) fn percent(text: &str) -> Result<u32, Problem> {
    let number = text.trim().strip_suffix('%').map(str::trim_end);
    number
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| {
            Problem::new(
                format!("`{text}` is not a percentage"),
                "write a whole number and `%`, such as \"30%\"",
            )
        })
}

/// Splits `1.5 GiB` into 1.5 and `GiB`. The number is never negative, infinite or in exponents.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let starts_and_ends_in_digits =
        number.starts_with(|c: char| c.is_ascii_digit()) && !number.ends_with('.');
    let number = number.parse::<f64>().ok().filter(|n| n.is_finite())?;
    starts_and_ends_in_digits.then_some((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, ms: Option<u64>| {
            assert_eq!(
                duration(text).ok(),
                ms.map(Duration::from_millis),
                "{text:?}"
            );
        };
        check("100ms", Some(100));
        check("5s", Some(5_000));
        check(" 5 s ", Some(5_000));
        check("0.3s", Some(300));
        check("2m", Some(120_000));
        check("2min", Some(120_000));
        check("1.5h", Some(5_400_000));
        check("400d", Some(400 * 86_400_000));
        check("5", None);
        check("", None);
        check("s", None);
        check("-5s", None);
        check("5 parsecs", None);
        check("1e9s", None);
        check("5.s", None);
        check(".5s", None);
        check("1.2.3s", None);
        check(&format!("{}d", "9".repeat(400)), None);
        check(&format!("{}d", "9".repeat(40)), None);
    }

    #[test]
    fn amounts_of_memory() {
        let check = |text: &str, amount: Option<u64>| {
            assert_eq!(bytes(text).ok(), amount.map(Bytes), "{text:?}");
        };
        check("0", Some(0));
        check("4096", Some(4096));
        check("64MiB", Some(64 << 20));
        check("64 MiB", Some(64 << 20));
        check("64M", Some(64 << 20));
        check("64MB", Some(64_000_000));
        check("1.5GiB", Some(3 << 29));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551615K", None);
        check("18446744073709551616", None);
        check("64mib", None);
        check("-1", None);
        check("64 apples", None);
        check("ä", None);
    }

    #[test]
    fn amounts_of_processor_time() {
        let check = |text: &str, amount: Option<u64>| {
            assert_eq!(cpu(text).ok(), amount.map(MilliCpu), "{text:?}");
        };
        check("500m", Some(500));
        check("0.5", Some(500));
        check("2", Some(2000));
        check("50%", None);
        check("-1", None);
        check("9999999999", None);
        assert!(cpus(f64::NAN).is_err());
        assert!(cpus(-0.5).is_err());
    }

    #[test]
    fn rates_of_data() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(rate(text).ok(), bytes.map(Rate), "{text:?}");
        };
        check("100Mbit", Some(12_500_000));
        check("1.5 Gbit", Some(187_500_000));
        check("8bit", Some(1));
        check("1bit", None);
        check("0Mbit", None);
        check("100", None);
        check("100MB", None);
        check("-1Mbit", None);
        check(&format!("{}Gbit", "9".repeat(300)), None);
    }

    #[test]
    fn shares() {
        let check =
            |text: &str, share: Option<u32>| assert_eq!(percent(text).ok(), share, "{text:?}");
        check("30%", Some(30));
        check("0 %", Some(0));
        check("30", None);
        check("0.3", None);
        check("-3%", None);
        check("%", None);
        check("99999999999%", None);
    }
}
