//! Which crate may depend on which.

use crate::workspace::{Arrow, Kind};

/// Arrows of what is shipped. `forebay` may see every library crate; a crate
/// without a row sees none.
const SHIPPED: &[(&str, &str)] = &[
    ("forebay-core", "forebay-forecast"),
    ("forebay-host", "forebay-core"),
    ("forebay-shadow", "forebay-core"),
    ("forebay-accel", "forebay-core"),
    ("forebay-sim", "forebay-core"),
];

/// Arrows allowed in tests besides those above.
const DEV: &[(&str, &str)] = &[
    ("forebay-host", "forebay-sim"),
    ("forebay-shadow", "forebay-sim"),
    ("forebay-accel", "forebay-sim"),
];

pub(super) fn check(arrows: &[Arrow]) -> Vec<String> {
    let forbidden = arrows.iter().filter(|arrow| !allowed(arrow));
    forbidden.map(finding).collect()
}

fn allowed(arrow: &Arrow) -> bool {
    let pair = (arrow.from.as_str(), arrow.to.as_str());
    let binary = pair.0 == "forebay" && pair.1 != "xtask";
    binary || SHIPPED.contains(&pair) || (arrow.kind == Kind::Dev && DEV.contains(&pair))
}

fn finding(arrow: &Arrow) -> String {
    let Arrow { from, to, kind } = arrow;
    let section = match kind {
        Kind::Shipped => "dependencies",
        Kind::Dev => "dev-dependencies",
    };
    format!(
        "{from}: must not depend on {to} ({section}); remove it, or make its case and allow it \
         in xtask/src/tidy/arrows.rs"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_arrow(from: &str, to: &str, kind: Kind, wanted: bool) {
        let arrow = Arrow {
            from: from.into(),
            to: to.into(),
            kind,
        };
        let findings = check(std::slice::from_ref(&arrow));
        assert_eq!(findings.is_empty(), wanted, "{arrow:?}: {findings:?}");
    }

    #[test]
    fn arrows_of_the_design_are_allowed_and_no_others() {
        check_arrow("forebay-core", "forebay-forecast", Kind::Shipped, true);
        check_arrow("forebay-host", "forebay-core", Kind::Shipped, true);
        check_arrow("forebay", "forebay-sim", Kind::Shipped, true);
        check_arrow("forebay-host", "forebay-sim", Kind::Dev, true);
        check_arrow("forebay-host", "forebay-sim", Kind::Shipped, false);
        check_arrow("forebay-core", "forebay-api", Kind::Shipped, false);
        check_arrow("forebay-core", "forebay-sim", Kind::Dev, false);
        check_arrow("forebay-forecast", "forebay-core", Kind::Shipped, false);
        check_arrow("forebay-api", "forebay-core", Kind::Shipped, false);
        check_arrow("forebay-api", "forebay-core", Kind::Dev, false);
        check_arrow("xtask", "forebay-api", Kind::Shipped, false);
        check_arrow("forebay", "xtask", Kind::Dev, false);
    }

    #[test]
    fn a_finding_names_both_crates_and_the_section() {
        let arrow = Arrow {
            from: "forebay-core".into(),
            to: "forebay-api".into(),
            kind: Kind::Dev,
        };
        let text = finding(&arrow);
        assert!(
            text.starts_with("forebay-core: must not depend on forebay-api (dev-dependencies)")
        );
    }
}
