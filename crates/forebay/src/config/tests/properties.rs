//! What holds for every text.

use forebay_core::units::Bytes;
use proptest::prelude::*;

use super::super::*;

/// Texts made of the words of real ones, which reach deeper than random characters.
fn near_miss() -> impl Strategy<Value = String> {
    let words = [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "\n",
        "\"",
        "apps",
        "a",
        "b",
        "exec",
        "cgroup",
        "match",
        "floor",
        "ceiling",
        "io_max",
        "\"8:0\"",
        "rbps",
        "cpu",
        "memory",
        "\"max\"",
        "1",
        "-1",
        "0.5",
        "1e400",
        "nan",
        "inf",
        "true",
        "1979-05-27",
        "\"sh\"",
        "\"5s\"",
        "\"1GiB\"",
        "policy",
        "daemon",
        "period",
        "http",
        "[apps.a]\n",
        "[policy]\n",
        "class = \"batch\"\n",
        "ä",
        "exec = [\"sh\"]\n",
        "0xffffffffffffffff",
        "\"\\u0000\"",
        "\"/../..\"",
        "executable",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..24)
        .prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn nothing_panics_and_every_error_is_whole(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        near_miss in near_miss(),
    ) {
        let host = HostFacts {
            cpus: 4,
            memory: Bytes::mib(1024),
            root: "/nonexistent".into(),
            executable: "/usr/bin/forebay".into(),
            search_path: String::new(),
        };
        for text in [String::from_utf8_lossy(&noise).into_owned(), near_miss] {
            let Err(errors) = parse(&text, "f", &host) else { continue };
            prop_assert!(errors.iter().count() > 0);
            for error in errors.iter() {
                prop_assert!(!error.message.is_empty() && !error.fix.is_empty());
                prop_assert!(error.line.is_some_and(|line| line <= text.lines().count().max(1) + 1));
                prop_assert_eq!(error.to_string().lines().count(), 1);
            }
        }
    }

    #[test]
    fn quantities_never_panic(text in "[0-9.a-zA-Z% -]{0,24}") {
        let results = (
            quantity::duration(&text).is_ok(),
            quantity::bytes(&text).is_ok(),
            quantity::cpu(&text).is_ok(),
            quantity::percent(&text).is_ok(),
        );
        // No text is two kinds at once, but for plain numbers and thousandths (`5m`).
        let (duration, bytes, _, percent) = results;
        prop_assert!(u8::from(duration) + u8::from(bytes) + u8::from(percent) <= 1);
    }
}
