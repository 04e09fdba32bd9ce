//! A drawing as SVG.

use std::fmt::Write;

use super::{Anchor, Colour, Drawing, Point, Shape};

/// The drawing as one document, without references to anything outside it.
pub(crate) fn svg(drawing: &Drawing) -> String {
    let Drawing {
        width,
        height,
        shapes,
    } = drawing;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for shape in shapes {
        // A string takes everything.
        write(&mut text, shape).ok();
    }
    text + "</svg>\n"
}

fn write(to: &mut String, shape: &Shape) -> std::fmt::Result {
    match shape {
        Shape::Area { outline, colour } => {
            let (points, colour) = (points(outline), hex(*colour));
            writeln!(to, "<polygon points=\"{points}\" fill=\"{colour}\"/>")
        }
        Shape::Line {
            points: line,
            width,
            colour,
        } => {
            let (points, colour) = (points(line), hex(*colour));
            writeln!(
                to,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"{width}\" stroke-linejoin=\"round\"/>"
            )
        }
        Shape::Dot { at, radius, colour } => {
            let ((x, y), colour) = (at, hex(*colour));
            writeln!(
                to,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>"
            )
        }
        Shape::Text {
            at: (x, y),
            anchor,
            text,
            size,
            colour,
        } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let (text, colour) = (escaped(text), hex(*colour));
            writeln!(
                to,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" \
                 fill=\"{colour}\">{text}</text>"
            )
        }
    }
}

fn points(points: &[Point]) -> String {
    let pair = |(x, y): &Point| format!("{x:.1},{y:.1}");
    points.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn hex(Colour(red, green, blue): Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Text that means itself, without characters that XML has no way to write.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
