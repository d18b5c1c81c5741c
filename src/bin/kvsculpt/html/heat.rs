//! Numbers over layers × heads as a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::parts::escaped;

/// Room for a layer's number, and for those of the heads.
const MARGIN: (usize, usize) = (46, 18);
/// The faintest shade that still shows.
const FAINT: f64 = 0.06;

/// By layer, a number for each head.
pub(super) type Grid = BTreeMap<usize, Vec<Option<f64>>>;

/// How numbers become shades.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// Fractions, 0 to 1.
    Share,
    /// Positive numbers by their logarithm, from the least to the largest.
    Logarithm { least: f64, most: f64 },
}

impl Scale {
    /// The logarithmic scale that holds these numbers.
    pub(super) fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let positive = numbers.filter(|number| number.is_finite() && *number > 0.0);
        let (least, most) = positive.fold((f64::INFINITY, 0.0_f64), |(least, most), x| (least.min(x), most.max(x)));
        if most > 0.0 {
            Self::Logarithm { least, most }
        } else {
            Self::Logarithm { least: 1.0, most: 1.0 }
        }
    }

    /// A number's place, 0 to 1.
    pub(super) fn place(self, number: f64) -> f64 {
        let place = match self {
            Self::Share => number,
            Self::Logarithm { least, most } if most > least => (number.max(least) / least).ln() / (most / least).ln(),
            Self::Logarithm { .. } => 0.5,
        };
        place.clamp(0.0, 1.0)
    }
}

/// The picture: layers down, heads across; `written` puts a number into a few characters.
pub(super) fn heat(title: &str, caption: &str, grid: &Grid, scale: Scale, written: impl Fn(f64) -> String) -> String {
    let heads = grid.values().map(Vec::len).max().unwrap_or(0);
    // Few heads leave room for the numbers themselves.
    let (wide, high, told) = match heads {
        0..=8 => (48, 20, true),
        9..=20 => (22, 16, false),
        _ => (13, 13, false),
    };
    let (width, height) = (MARGIN.0 + heads * wide + 1, MARGIN.1 + grid.len() * high + 1);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\">",
        escaped(title)
    );
    svg += "<text x=\"0\" y=\"12\">layer</text>";
    let every = if told { 1 } else { 4 };
    for head in (0..heads).step_by(every) {
        let _ = write!(
            svg,
            "<text class=\"middle\" x=\"{}\" y=\"12\">{head}</text>",
            MARGIN.0 + head * wide + wide / 2
        );
    }
    for (row, (layer, numbers)) in grid.iter().enumerate() {
        let top = MARGIN.1 + row * high;
        let _ = write!(
            svg,
            "<text class=\"right\" x=\"{}\" y=\"{}\">{layer}</text>",
            MARGIN.0 - 8,
            top + high - 5
        );
        for (head, number) in numbers.iter().enumerate() {
            let left = MARGIN.0 + head * wide;
            let place = format!("x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{high}\"");
            let Some(number) = number.filter(|number| number.is_finite()) else {
                let _ = write!(svg, "<rect class=\"none\" {place}/>");
                continue;
            };
            let shade = FAINT + (1.0 - FAINT) * scale.place(number);
            let text = written(number);
            let _ = write!(
                svg,
                "<rect class=\"heat\" {place} fill-opacity=\"{shade:.3}\"><title>layer {layer} head {head}: {text}</title></rect>"
            );
            if told {
                let full = if shade > 0.55 { " full" } else { "" };
                let _ = write!(
                    svg,
                    "<text class=\"cell{full}\" x=\"{}\" y=\"{}\">{text}</text>",
                    left + wide / 2,
                    top + high - 6
                );
            }
        }
    }
    svg += "</svg>";
    let ends = match scale {
        Scale::Share => ["0%".to_owned(), "100%".to_owned()],
        Scale::Logarithm { least, most } => [written(least), written(most)],
    };
    format!(
        "<figure><h3>{}</h3>{svg}{}<figcaption>{}</figcaption></figure>",
        escaped(title),
        bar(&ends),
        escaped(caption)
    )
}

/// The shades from least to most.
fn bar(ends: &[String; 2]) -> String {
    const STEPS: u32 = 12;
    let cells: String = (0..STEPS)
        .map(|step| {
            let shade = FAINT + (1.0 - FAINT) * f64::from(step) / f64::from(STEPS - 1);
            format!(
                "<rect class=\"heat\" x=\"{}\" y=\"0\" width=\"12\" height=\"10\" fill-opacity=\"{shade:.3}\"/>",
                12 * step
            )
        })
        .collect();
    let [least, most] = ends;
    format!(
        "<div class=\"legend\"><span>{least}<svg viewBox=\"0 0 144 10\" width=\"144\" height=\"10\" aria-hidden=\"true\">{cells}</svg>{most}</span></div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_its_place_on_the_scale() {
        assert_eq!(Scale::Share.place(0.25), 0.25);
        let scale = Scale::of([1e-4, f64::NAN, 0.0, 1.0].into_iter());
        assert!((scale.place(1e-2) - 0.5).abs() < 1e-12);
        assert_eq!((scale.place(0.0), scale.place(7.0)), (0.0, 1.0));
        assert_eq!(Scale::of(std::iter::empty()).place(3.0), 0.5);
    }

    #[test]
    fn every_cell_is_drawn_and_what_is_missing_is_marked() {
        let grid = Grid::from([(3, vec![Some(0.5), None]), (7, vec![Some(1.0), Some(0.0)])]);
        let picture = heat("a < b", "", &grid, Scale::Share, |x| format!("{x}"));
        assert_eq!(picture.matches("<title>").count(), 3);
        assert_eq!(picture.matches("class=\"none\"").count(), 1);
        assert!(picture.contains("a &lt; b") && picture.contains("layer 7 head 1: 0<"), "{picture}");
    }
}
