//! A drawing as PNG.

use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Stroke, Transform,
};

use super::strokes;
use super::{Anchor, Colour, Drawing, Point, Shape};

/// Pixels for each unit of the drawing: sharp on screens that have many.
const SCALE: f64 = 2.0;

/// The drawing in a file's bytes.
pub(crate) fn png(drawing: &Drawing) -> Result<Vec<u8>, String> {
    let side = |length: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "four panels at most"
        )]
        let pixels = (length * SCALE) as u32;
        pixels
    };
    let mut pixels = Pixmap::new(side(drawing.width), side(drawing.height))
        .ok_or("a picture of this size cannot be made")?;
    pixels.fill(Color::WHITE);
    for shape in &drawing.shapes {
        draw(&mut pixels, shape);
    }
    pixels.encode_png().map_err(|error| error.to_string())
}

fn draw(pixels: &mut Pixmap, shape: &Shape) {
    match shape {
        Shape::Area { outline, colour } => {
            if let Some(path) = path(&[outline], true) {
                fill(pixels, &path, *colour);
            }
        }
        Shape::Line {
            points,
            width,
            colour,
        } => stroke(pixels, &[points], *width, *colour),
        Shape::Dot {
            at: (x, y),
            radius,
            colour,
        } => {
            if let Some(path) = PathBuilder::from_circle(narrow(*x), narrow(*y), narrow(*radius)) {
                fill(pixels, &path, *colour);
            }
        }
        Shape::Text {
            at,
            anchor,
            text,
            size,
            colour,
        } => {
            let width = strokes::width(text, *size);
            let left = match anchor {
                Anchor::Start => at.0,
                Anchor::Middle => at.0 - width / 2.0,
                Anchor::End => at.0 - width,
            };
            let lines = strokes::lines(text, *size, (left, at.1));
            let lines: Vec<&[Point]> = lines.iter().map(Vec::as_slice).collect();
            stroke(pixels, &lines, *size / 11.0, *colour);
        }
    }
}

fn fill(pixels: &mut Pixmap, path: &Path, colour: Colour) {
    let paint = paint(colour);
    pixels.fill_path(path, &paint, FillRule::Winding, transform(), None);
}

fn stroke(pixels: &mut Pixmap, lines: &[&[Point]], width: f64, colour: Colour) {
    let Some(path) = path(lines, false) else {
        return;
    };
    let stroke = Stroke {
        width: narrow(width),
        line_cap: LineCap::Round,
        line_join: LineJoin::Round,
        ..Stroke::default()
    };
    pixels.stroke_path(&path, &paint(colour), &stroke, transform(), None);
}

/// None where there is nothing to draw.
fn path(lines: &[&[Point]], closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for line in lines {
        let Some((&(x, y), rest)) = line.split_first() else {
            continue;
        };
        builder.move_to(narrow(x), narrow(y));
        for &(x, y) in rest {
            builder.line_to(narrow(x), narrow(y));
        }
        if closed {
            builder.close();
        }
    }
    builder.finish()
}

fn paint(Colour(red, green, blue): Colour) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(red, green, blue, 0xff);
    paint.anti_alias = true;
    paint
}

fn transform() -> Transform {
    Transform::from_scale(narrow(SCALE), narrow(SCALE))
}

#[expect(clippy::cast_possible_truncation, reason = "a place in a picture")]
fn narrow(length: f64) -> f32 {
    length as f32
}
