use super::*;

fn drawing(values: &[Option<f64>], target: Target) -> Drawing {
    drawing_of(values, 1, target)
}

/// With a forecast of every so many values.
fn drawing_of(values: &[Option<f64>], every: usize, target: Target) -> Drawing {
    let recording = Recording {
        samples: values.iter().copied().collect(),
        ..Recording::default()
    };
    let setting = Setting {
        target,
        horizons: vec![1, 12],
        history: 100,
        period_seconds: Some(300.0),
        reference: 1.0,
    };
    let quantiles = |(place, value): (usize, &Option<f64>)| {
        let value = value.filter(|_| place.is_multiple_of(every))?;
        Quantiles::new([value, value * 1.1, value * 1.2, value * 9.0])
    };
    let answers = vec![values.iter().enumerate().map(quantiles).collect(); 2];
    let fan = Fan { from: 0, answers };
    fans(
        "a <b> & \u{1}c",
        &recording,
        &setting,
        &fan,
        &[Some(0.95), None],
    )
}

fn check(values: &[Option<f64>]) {
    for target in [Target::Value, Target::Peak] {
        let drawing = drawing(values, target);
        let text = svg(&drawing);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        assert!(text.contains("a &lt;b&gt; &amp; \u{fffd}c"), "{text}");
        assert!(text.contains(">12 steps (1 h) ahead<"), "{text}");
        assert!(text.contains("95.0 % within the .95 bound"), "{text}");
        assert!(text.len() < 200_000);
    }
}

#[test]
fn whatever_a_series_is_there_is_a_picture() {
    check(&[]);
    check(&[None; 20]);
    check(&[Some(0.0); 20]);
    check(&[Some(7.5); 20]);
    check(&[Some(1e18), Some(0.0), None, Some(1e18)]);
    check(&[Some(1e-12), Some(2e-12)].repeat(40));
    let hills: Vec<_> = (0..300_u32)
        .map(|i| (i % 50 != 3).then(|| f64::from(i % 37)))
        .collect();
    check(&hills);
}

#[test]
fn forecasts_of_every_fifth_value_are_joined() {
    let values: Vec<_> = (0..100).map(|i| Some(f64::from(i % 7))).collect();
    for every in [1, 5] {
        let drawing = drawing_of(&values, every, Target::Value);
        let corners = drawing.shapes.iter().filter_map(|shape| match shape {
            Shape::Area { outline, .. } => Some(outline.len()),
            _ => None,
        });
        // Three bands in each of two panels, there and back, after the squares of the legend.
        assert_eq!(corners.skip(3).collect::<Vec<_>>(), [2 * 100 / every; 6]);
    }
}

#[test]
fn a_picture_is_a_png_too() {
    for values in [vec![], vec![Some(1e18), Some(0.0), None, Some(1e18)]] {
        let bytes = png(&drawing(&values, Target::Value)).unwrap();
        assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"));
    }
}

#[test]
fn everything_is_inside_the_picture() {
    let hills: Vec<_> = (0..300_u32).map(|i| Some(f64::from(i % 37))).collect();
    let drawing = drawing(&hills, Target::Value);
    let inside =
        |&(x, y): &Point| (0.0..=drawing.width).contains(&x) && (0.0..=drawing.height).contains(&y);
    for shape in &drawing.shapes {
        let points = match shape {
            Shape::Area { outline, .. } => outline.clone(),
            Shape::Line { points, .. } => points.clone(),
            Shape::Dot { at, .. } | Shape::Text { at, .. } => vec![*at],
        };
        assert!(points.iter().all(inside), "{shape:?}");
    }
}

#[test]
fn marks_and_times_are_short() {
    for (mark, step, shown) in [
        (0.0, 1.0, "0"),
        (20.0, 10.0, "20"),
        (0.5, 0.5, "0.5"),
        (1500.0, 500.0, "1.5k"),
        (2e6, 5e5, "2.0M"),
        (1.25, 0.05, "1.25"),
    ] {
        assert_eq!(short(mark, step), shown);
    }
    for (seconds, shown) in [
        (0.2, "200 ms"),
        (59.0, "59 s"),
        (60.0, "1 min"),
        (600.0, "10 min"),
        (5400.0, "1.5 h"),
        (12_600.0, "3.5 h"),
        (345_600.0, "4 d"),
    ] {
        assert_eq!(duration(seconds), shown);
    }
    for (step, round) in [
        (0.9, 1.0),
        (1.1, 2.0),
        (4.0, 5.0),
        (6.0, 10.0),
        (0.03, 0.05),
    ] {
        assert!((round_step(step) / round - 1.0).abs() < 1e-9);
    }
}

#[test]
fn the_name_tells_the_format() {
    assert_eq!(Kind::of(Path::new("a.svg")), Some(Kind::Svg));
    assert_eq!(Kind::of(Path::new("a.b.PNG")), Some(Kind::Png));
    assert_eq!(Kind::of(Path::new("svg")), None);
    assert_eq!(Kind::of(Path::new("a.jpeg")), None);
}
