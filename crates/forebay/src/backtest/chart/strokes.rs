//! Letters of strokes, so that a picture needs no fonts of the host.
//!
//! A letter is drawn on a grid, capitals 6 high and at most 4 wide. A stroke is a chain of points;
//! a point is two digits, right and down from the upper left. What is not here is drawn as a box.

use super::Point;

/// Heights of a capital letter in the size of a text.
const CAPITAL: f64 = 0.72;
/// Down to the line that letters stand on, on the grid.
const BASE: f64 = 6.0;
/// Between two letters.
const BETWEEN: f64 = 1.6;
const SPACE: f64 = 2.0;
const BOX: &str = "00 40 46 06 00";

/// Strokes are divided by commas.
fn glyph(letter: char) -> &'static str {
    match letter {
        '0' => "10 30 41 45 36 16 05 01 10",
        '1' => "01 20 26,06 46",
        '2' => "01 10 30 41 42 06 46",
        '3' => "00 40 22 32 43 45 36 16 05",
        '4' => "36 30 04 44",
        '5' => "40 00 02 32 43 45 36 16 05",
        '6' => "30 10 01 05 16 36 45 44 33 13 04",
        '7' => "00 40 16",
        '8' => "10 30 41 42 33 13 02 01 10,13 04 05 16 36 45 44 33",
        '9' => "42 33 13 02 01 10 30 41 45 36 16",
        '.' => "05 06",
        ',' => "15 07",
        ':' => "02 03,05 06",
        '-' => "03 33",
        '_' => "07 47",
        '+' => "03 43,21 25",
        '=' => "02 42,04 44",
        '/' => "06 30",
        '%' => "06 40,00 10 11 01 00,35 45 46 36 35",
        '(' => "10 01 05 16",
        ')' => "00 11 15 06",
        'A' => "06 20 46,14 34",
        'B' => "06 00 30 41 42 33 03,33 44 45 36 06",
        'C' => "41 30 10 01 05 16 36 45",
        'D' => "00 20 42 44 26 06 00",
        'E' => "40 00 06 46,03 33",
        'F' => "40 00 06,03 33",
        'G' => "41 30 10 01 05 16 36 45 43 23",
        'H' => "00 06,40 46,03 43",
        'I' => "00 06",
        'J' => "30 35 26 16 05",
        'K' => "00 06,40 03 46",
        'L' => "00 06 36",
        'M' => "06 00 23 40 46",
        'N' => "06 00 46 40",
        'O' => "10 30 41 45 36 16 05 01 10",
        'P' => "06 00 30 41 42 33 03",
        'Q' => "10 30 41 45 36 16 05 01 10,24 46",
        'R' => "06 00 30 41 42 33 03,23 46",
        'S' => "41 30 10 01 02 13 33 44 45 36 16 05",
        'T' => "00 40,20 26",
        'U' => "00 05 16 36 45 40",
        'V' => "00 26 40",
        'W' => "00 16 23 36 40",
        'X' => "00 46,40 06",
        'Y' => "00 23 40,23 26",
        'Z' => "00 40 06 46",
        'a' => "02 22 33 36,34 14 05 16 26 35",
        'b' => "00 06,03 12 22 33 35 26 16 05",
        'c' => "33 22 12 03 05 16 26 35",
        'd' => "30 36,33 22 12 03 05 16 26 35",
        'e' => "04 34 33 22 12 03 05 16 26 35",
        'f' => "20 11 16,02 22",
        'g' => "32 37 28 18 07,33 22 12 03 05 16 26 35",
        'h' => "00 06,03 12 22 33 36",
        'i' => "02 06,00 01",
        'j' => "12 17 08,10 11",
        'k' => "00 06,32 04 36",
        'l' => "00 06",
        'm' => "02 06,03 12 23 26,23 32 43 46",
        'n' => "02 06,03 12 22 33 36",
        'o' => "12 22 33 35 26 16 05 03 12",
        'p' => "02 08,03 12 22 33 35 26 16 05",
        'q' => "32 38,33 22 12 03 05 16 26 35",
        'r' => "02 06,03 12 22",
        's' => "33 22 12 03 14 24 35 26 16 05",
        't' => "10 15 26,02 22",
        'u' => "02 05 16 26 35,32 36",
        'v' => "02 16 32",
        'w' => "02 16 23 36 42",
        'x' => "02 36,32 06",
        'y' => "02 16,32 08",
        'z' => "02 32 06 36",
        _ => BOX,
    }
}

fn strokes(letter: char) -> impl Iterator<Item = Vec<Point>> {
    glyph(letter).split(',').map(|stroke| {
        let point = |point: &str| {
            let mut digits = point
                .bytes()
                .map(|digit| f64::from(digit.saturating_sub(b'0')));
            Some((digits.next()?, digits.next()?))
        };
        stroke.split(' ').filter_map(point).collect()
    })
}

/// How far the next letter is, on the grid.
fn advance(letter: char) -> f64 {
    if letter == ' ' {
        return SPACE + BETWEEN;
    }
    let rights = strokes(letter).flatten().map(|(right, _)| right);
    rights.fold(0.0, f64::max) + BETWEEN
}

/// Pixels of one step of the grid.
fn unit(size: f64) -> f64 {
    size * CAPITAL / BASE
}

/// How wide a text is, for a size of letters as fonts have it.
pub(super) fn width(text: &str, size: f64) -> f64 {
    (text.chars().map(advance).sum::<f64>() - BETWEEN).max(0.0) * unit(size)
}

/// The strokes of a text that stands on `at`.
pub(super) fn lines(text: &str, size: f64, at: Point) -> Vec<Vec<Point>> {
    let unit = unit(size);
    let mut left = at.0;
    let mut lines = Vec::new();
    for letter in text.chars() {
        if letter != ' ' {
            let place = |(right, down): Point| (left + right * unit, at.1 + (down - BASE) * unit);
            lines.extend(strokes(letter).map(|stroke| stroke.into_iter().map(place).collect()));
        }
        left += advance(letter) * unit;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_is_drawn_on_its_grid() {
        let letters = (' '..='~').chain(['\u{e9}', '\u{1f600}']);
        for letter in letters.filter(|letter| *letter != ' ') {
            assert!(advance(letter) <= 4.0 + BETWEEN, "{letter}");
            for stroke in strokes(letter) {
                assert!(stroke.len() >= 2, "{letter}");
                let inside = |&(right, down): &Point| right <= 4.0 && down <= 8.0;
                assert!(stroke.iter().all(inside), "{letter}");
            }
        }
        let named = ('a'..='z').chain('A'..='Z').chain('0'..='9');
        assert!(named.into_iter().all(|letter| glyph(letter) != BOX));
    }

    #[test]
    fn a_text_is_as_wide_as_its_letters() {
        assert!(width("", 13.0).abs() < 1e-9);
        let (text, size) = ("-4.2 h (ago)", 13.0);
        let right = lines(text, size, (100.0, 50.0))
            .into_iter()
            .flatten()
            .map(|(x, _)| x)
            .fold(0.0, f64::max);
        assert!((right - 100.0 - width(text, size)).abs() < 1e-9);
    }
}
