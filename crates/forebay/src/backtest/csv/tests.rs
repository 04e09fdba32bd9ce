use proptest::prelude::*;

use super::*;

const GAP_MAX: usize = 5;

fn parsed(text: impl AsRef<[u8]>) -> Result<Recording, String> {
    let spacing = Spacing::Times { gap_max: GAP_MAX };
    parse(Path::new("a.csv"), text.as_ref(), spacing).map_err(|error| error.to_string())
}

fn samples(recording: &Recording) -> Vec<Option<f64>> {
    recording.samples.iter().collect()
}

/// The values 1, 2 and 3, a minute apart.
fn check_same(text: impl AsRef<[u8]>) {
    let recording = parsed(&text).unwrap();
    let values = [Some(1.0), Some(2.0), Some(3.0)];
    let shown = String::from_utf8_lossy(text.as_ref()).into_owned();
    assert_eq!(samples(&recording), values, "{shown}");
    assert_eq!(recording.period_seconds, Some(60.0), "{shown}");
    assert_eq!(recording.counts.rows, 3, "{shown}");
}

#[test]
fn many_ways_of_writing_say_the_same() {
    check_same("timestamp,value\n0,1\n60,2\n120,3\n");
    check_same("value,timestamp\n1,0\n2,60\n3,120");
    check_same("host,Time,Value\na,0,1\na,60,2\nb,120,3\n");
    check_same("ts,cpu\n0,1\n60,2\n120,3\n");
    check_same("cpu,date\n1,1970-01-01\n2,1970-01-01 00:01:00\n3,1970-01-01T00:02:00Z\n");
    check_same("when,value\n0,1\n60,2\n120,3\n");
    check_same("this,that\n0,1\n60,2\n120,3\n");
    check_same("0,1\n60,2\n120,3\n");
    check_same("\u{feff}timestamp,value\r\n0,1\r\n60,2\r\n120,3\r\n");
    check_same("\u{feff}0,1\n60,2\n120,3\n");
    check_same("\n\n timestamp , value \n0,1\n\n  \n60, 2\n120 ,3\n\n");
    check_same("\"timestamp\",\"value\"\n\"0\",\"1\"\n\"60\" , \"2\"\n120,\"3\"\n");
    check_same("note,time,value\n\"a \"\"b\"\", c\",0,1\n\"\",60,2\n,120,3\n");
    check_same("timestamp;value\n0;1.0\n60;2.0\n120;3e0\n");
    check_same("timestamp\tvalue\n0\t1\n60\t2\n120\t3\n");
    check_same("1700000000000,1\n1700000060000,2\n1700000120000,3\n");
}

#[test]
fn one_column_is_the_value() {
    for text in ["value\n1\n2\n", "1\n2\n", "cpu\n1\n2\n"] {
        let recording = parsed(text).unwrap();
        assert_eq!(samples(&recording), [Some(1.0), Some(2.0)], "{text}");
        assert_eq!(recording.period_seconds, None);
    }
    assert_eq!(samples(&parsed("5").unwrap()), [Some(5.0)]);
}

#[test]
fn what_is_missing_is_a_gap_and_counted() {
    let text = "0,1\n1,\n2,NaN\n3,inf\n4,-inf\n5,NA\n6,null\n7,8\n";
    let recording = parsed(text).unwrap();
    let gaps = std::iter::repeat_n(None, 6);
    let expected: Vec<_> = [Some(1.0)]
        .into_iter()
        .chain(gaps)
        .chain([Some(8.0)])
        .collect();
    assert_eq!(samples(&recording), expected);
    let counts = recording.counts;
    assert_eq!((counts.rows, counts.empty, counts.not_finite), (8, 3, 3));
}

#[test]
fn rows_that_are_missing_or_repeated_are_told() {
    let recording = parsed("0,1\n10,2\n20,3\n50,6\n50,7\n60.4,8\n69,9\n").unwrap();
    let expected = [1.0, 2.0, 3.0, 0.0, 0.0, 7.0, 8.0, 9.0].map(|v| (v > 0.0).then_some(v));
    assert_eq!(samples(&recording), expected);
    assert_eq!((recording.counts.absent, recording.counts.repeated), (2, 1));
    assert!(recording.restarts.is_empty());
}

#[test]
fn more_missing_rows_than_are_remembered_start_anew() {
    let check = |last: u32, steps: usize, restarts: &[usize]| {
        let recording = parsed(format!("0,1\n10,1\n20,1\n{last},1\n")).unwrap();
        assert_eq!(recording.samples.len(), steps, "{last}");
        assert_eq!(recording.restarts, restarts, "{last}");
    };
    check(80, 9, &[]);
    check(90, 4, &[3]);
    check(u32::MAX, 4, &[3]);
    let recording = parsed("0,1\n1,1\n1e300,1\n").unwrap();
    assert_eq!(recording.restarts, [2]);
}

#[test]
fn the_last_steps_keep_their_new_starts() {
    let check = |steps: usize, values: &[f64], restarts: &[usize]| {
        let recording = parsed("0,1\n10,2\n20,3\n90,4\n100,5\n").unwrap();
        let recording = recording.latest(steps);
        let found: Vec<f64> = recording.samples.iter().flatten().collect();
        assert_eq!(
            (found.as_slice(), recording.restarts.as_slice()),
            (values, restarts)
        );
    };
    check(9, &[1.0, 2.0, 3.0, 4.0, 5.0], &[3]);
    check(3, &[3.0, 4.0, 5.0], &[1]);
    check(2, &[4.0, 5.0], &[]);
    check(1, &[5.0], &[]);
}

#[test]
fn rows_may_be_steps_whatever_their_times() {
    let text = "5,1\n5,2\n1,3\n900,4\n";
    let recording = parse(Path::new("a"), text.as_bytes(), Spacing::Rows).unwrap();
    let expected = [1.0, 2.0, 3.0, 4.0].map(Some);
    assert_eq!(samples(&recording), expected);
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    let check = |text: &[u8], words: &str| {
        let error = parsed(text).unwrap_err();
        assert!(error.contains(words), "{error} does not say {words}");
        let parts = error.split("; ").count();
        assert!(parts >= 2, "{error} does not say what to do");
    };
    check(b"", "a.csv: it is empty");
    check(b"\n \n", "a.csv: no row has a value");
    check(b"timestamp,value\n", "a.csv: no row has a value");
    check(b"0,\n1,nan\n", "a.csv: no row has a value");
    check(b"0,1\n1,-2\n", "a.csv:2: -2 is negative");
    check(b"0,1\n1,2e18\n", "a.csv:2: 2e18 is more than 1e18");
    check(b"0,1\n2,1\n1,1\n", "a.csv:3: its time is 1 s before");
    check(b"time,value\n\n0,1\nx,1\n", "a.csv:4: `x` is not a time");
    check(b"time,value\n0,lots\n", "a.csv:2: `lots` is not a number");
    check(b"time;value\n0;1,5\n", "write decimals with a point");
    check(
        b"time,value\n0,1,5\n",
        "a.csv:2: 3 fields, where line 1 has 2",
    );
    check(b"time,value\n0\n", "a.csv:2: 1 fields");
    check(b"a,b,c\n0,1,2\n", "a.csv:1: which of 3 columns");
    check(b"0,1,2\n", "a.csv:1: which of 3 columns");
    check(b"time,host,cpu\n0,1,2\n", "a.csv:1: which of 3 columns");
    check(b"time,value,ts\n0,1,2\n", "a.csv:1: two columns");
    check(b"time\n0\n", "a.csv:1: there is a column of times");
    check(b"0,\"1\n1,2\n", "a.csv:1: a quoted field does not end");
    check(b"0,\"1\"2\n", "a.csv:1: a quoted field is followed by text");
    check(b"\x7fELF\x02\x01\0\0", "a.csv:1: this is not text");
    check(b"0,1\n1,\xff\n", "a.csv:2: this is not text");
    check(&[b'1'; 70_000], "a.csv:1: the line is longer");
    let escape = "0,1\n1,\u{1b}[2J\n".as_bytes();
    check(escape, "a.csv:2: `\\u{1b}[2J` is not a number");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        parsed(bytes).ok();
    }

    /// Of the characters that matter, which random bytes seldom put together.
    #[test]
    fn no_text_makes_it_panic(text in "[0-9eE.,;\"\t\n\r:TZ+ a\u{e9}-]{0,200}") {
        for spacing in [Spacing::Rows, Spacing::Times { gap_max: 1 }] {
            if let Ok(recording) = parse(Path::new("a"), text.as_bytes(), spacing) {
                let plausible = |value: f64| (0.0..=VALUE_MAX).contains(&value);
                prop_assert!(recording.samples.iter().flatten().all(plausible));
                prop_assert!(recording.restarts.iter().all(|&step| step < recording.samples.len()));
            }
        }
    }
}
