//! ARIMA against statsmodels and statsforecast on the series of `data/arima`.
//!
//! Its README says where series and references come from.

use std::collections::HashMap;
use std::path::PathBuf;

use forebay_forecast::arima::{Arima, Order, Search};

const STEPS: [usize; 5] = [1, 2, 6, 12, 24];

/// The rows of a file by column name.
fn read(name: &str) -> Vec<HashMap<String, String>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/arima")
        .join(name)
        .with_extension("csv");
    let text = std::fs::read_to_string(&path).expect("the file is beside the tests");
    let mut lines = text.lines().map(|line| line.split(',').map(String::from));
    let header: Vec<String> = lines.next().expect("a header").collect();
    lines
        .map(|row| header.iter().cloned().zip(row).collect())
        .collect()
}

fn series(name: &str) -> Vec<f64> {
    read(name).iter().map(|row| number(row, "value")).collect()
}

fn number(row: &HashMap<String, String>, column: &str) -> f64 {
    row[column].parse().expect("a number")
}

fn terms(row: &HashMap<String, String>, column: &str) -> usize {
    row[column].parse().expect("a number")
}

fn order(row: &HashMap<String, String>) -> Order {
    let [p, d, q] = ["p", "d", "q"].map(|column| terms(row, column));
    let mut order = Order::new(p, d, q);
    if terms(row, "period") > 0 {
        let [p, d, q] = ["sp", "sd", "sq"].map(|column| terms(row, column));
        order = order.seasonal(p, d, q, terms(row, "period"));
    }
    order.constant = row["constant"] == "1";
    order
}

/// The greatest difference from the reference's forecasts, in standard deviations
/// of the model's own forecast.
fn forecasts_off(model: &Arima, row: &HashMap<String, String>) -> f64 {
    let path = model.forecast_path(24);
    STEPS.iter().fold(0.0, |most: f64, &steps| {
        let expected = number(row, &format!("step{steps}"));
        let ours = path[steps - 1];
        most.max((ours.mean - expected).abs() / ours.variance.sqrt())
    })
}

#[test]
fn likelihood_and_forecasts_of_an_order_are_those_of_statsmodels() {
    for row in read("fixed") {
        let order = order(&row);
        let what = format!("{} {order}", row["series"]);
        let model = Arima::fit(&series(&row["series"]), order).unwrap();
        let gained = model.log_likelihood() - number(&row, "log_likelihood");
        assert!(gained.abs() < 0.001, "{what}: log-likelihood by {gained}");
        let variance = model.innovation_variance() / number(&row, "variance");
        assert!(
            (variance - 1.0).abs() < 0.001,
            "{what}: variance {variance}"
        );
        let off = forecasts_off(&model, &row);
        // The likelihood of this one is flat: its root is on the unit circle.
        let flat = what == "nile (0,2,2)";
        assert!(off < if flat { 0.1 } else { 0.001 }, "{what}: off by {off}");
    }
}

#[test]
fn an_automatic_order_is_as_good_as_that_of_statsforecast() {
    for row in read("auto") {
        let theirs = order(&row);
        let search = Search {
            period: theirs.seasonal.map(|seasonal| seasonal.period),
            ..Search::default()
        };
        let model = Arima::fit_auto(&series(&row["series"]), search).unwrap();
        let what = format!("{}: {}, theirs {theirs}", row["series"], model.order());
        let lost = model.aicc() - number(&row, "aicc");
        assert!(lost < 2.0, "{what}: AICc by {lost}");
        let off = forecasts_off(&model, &row);
        assert!(off < 0.3, "{what}: off by {off}");
        // Where one difference was too many, ours has one less.
        let same = row["series"] != "seasonal";
        assert_eq!(model.order() == theirs, same, "{what}");
    }
}
