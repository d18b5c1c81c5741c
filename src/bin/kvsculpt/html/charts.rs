//! Methods side by side, and error curves.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvsculpt::budget::Curve;

use super::heat::Scale;
use super::parts::{brief, tick, ticks};

/// A layer's mean error of each method: select, select-fit, what is returned.
pub(super) type Candidates = [Option<f64>; 3];

const MARKS: [(&str, &str); 3] = [("select", "select"), ("fit", "select-fit"), ("result", "returned")];

/// A row a layer, a mark a method, errors on a logarithmic axis.
pub(super) fn methods(layers: &BTreeMap<usize, Candidates>) -> String {
    const LEFT: f64 = 46.0;
    const WIDE: f64 = 400.0;
    const HIGH: f64 = 18.0;
    let scale = Scale::of(layers.values().flatten().flatten().copied());
    let Scale::Logarithm { least, most } = scale else {
        return String::new();
    };
    let x = |error: f64| LEFT + 10.0 + (WIDE - LEFT - 30.0) * scale.place(error);
    let bottom = HIGH * layers.len() as f64 + 8.0;
    let height = bottom + 22.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDE} {height}\" width=\"{WIDE}\" height=\"{height}\" role=\"img\" aria-label=\"Errors of the methods by layer\">"
    );
    for at_error in ticks(least, most) {
        let at = x(at_error);
        let _ = write!(
            svg,
            "<path class=\"line\" d=\"M{at:.1} 4V{bottom}\"/><text class=\"middle\" x=\"{at:.1}\" y=\"{}\">{}</text>",
            bottom + 15.0,
            tick(at_error)
        );
    }
    for (row, (layer, candidates)) in layers.iter().enumerate() {
        let y = HIGH * row as f64 + 14.0;
        let _ = write!(svg, "<text class=\"right\" x=\"{}\" y=\"{}\">{layer}</text>", LEFT - 8.0, y + 4.0);
        let _ = write!(svg, "<path class=\"line\" d=\"M{LEFT} {y}H{}\"/>", WIDE - 10.0);
        for (candidate, (class, name)) in candidates.iter().zip(MARKS) {
            if let Some(error) = candidate {
                let title = format!("<title>layer {layer}, {name}: {}</title>", brief(*error));
                svg += &mark(class, x(*error), y, &title);
            }
        }
    }
    svg + "</svg>"
}

/// A method's mark, told apart by its form as well as by its colour.
fn mark(class: &str, x: f64, y: f64, title: &str) -> String {
    match class {
        "select" => format!("<circle class=\"select\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\">{title}</circle>"),
        "fit" => format!("<path class=\"fit\" d=\"M{:.1} {y:.1}l5 -5l5 5l-5 5z\">{title}</path>", x - 5.0),
        _ => format!("<circle class=\"result\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\">{title}</circle>"),
    }
}

/// What the marks mean.
pub(super) fn legend() -> String {
    let entries: String = MARKS
        .iter()
        .map(|(class, name)| {
            format!(
                "<span><svg viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\">{}</svg>{name}</span>",
                mark(class, 7.0, 7.0, "")
            )
        })
        .collect();
    format!("<div class=\"legend\">{entries}</div>")
}

/// A small picture a layer: each head's error over its length, and a dot at the length it got.
pub(super) fn curves(curves: &[Curve], kept: impl Fn(usize, usize) -> Option<usize>) -> String {
    let scale = Scale::of(curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.error)));
    let longest = curves
        .iter()
        .flat_map(|curve| &curve.points)
        .map(|point| point.length)
        .max()
        .unwrap_or(1);
    let mut layers: BTreeMap<usize, Vec<&Curve>> = BTreeMap::new();
    for curve in curves {
        layers.entry(curve.layer).or_default().push(curve);
    }
    let pictures: String = layers
        .iter()
        .map(|(layer, curves)| {
            format!(
                "<figure><h3>layer {layer}</h3>{}</figure>",
                layer_curves(curves, scale, longest, &kept)
            )
        })
        .collect();
    let heads = layers.values().map(Vec::len).max().unwrap_or(0);
    let legend: String = (0..heads.min(8))
        .map(|head| {
            let same: Vec<String> = (head..heads).step_by(8).map(|head| head.to_string()).collect();
            format!(
                "<span><svg viewBox=\"0 0 22 8\" width=\"22\" height=\"8\" aria-hidden=\"true\"><path class=\"curve\" style=\"stroke:var(--h{head})\" d=\"M0 4H22\"/></svg>head {}</span>",
                same.join(", ")
            )
        })
        .collect();
    format!("<div class=\"legend\">{legend}</div><div class=\"curves\">{pictures}</div>")
}

fn layer_curves(curves: &[&Curve], scale: Scale, longest: usize, kept: &impl Fn(usize, usize) -> Option<usize>) -> String {
    const WIDE: f64 = 260.0;
    const HIGH: f64 = 150.0;
    let x = |length: usize| 46.0 + (WIDE - 56.0) * length as f64 / longest as f64;
    let y = |error: f64| 8.0 + (HIGH - 32.0) * (1.0 - scale.place(error));
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDE} {HIGH}\" width=\"{WIDE}\" height=\"{HIGH}\" role=\"img\" aria-label=\"Error over length\">");
    if let Scale::Logarithm { least, most } = scale {
        for at_error in ticks(least, most) {
            let at = y(at_error);
            let _ = write!(
                svg,
                "<path class=\"line\" d=\"M46 {at:.1}H{}\"/><text class=\"right\" x=\"42\" y=\"{:.1}\">{}</text>",
                WIDE - 10.0,
                at + 4.0,
                tick(at_error)
            );
        }
    }
    let _ = write!(svg, "<text x=\"46\" y=\"{}\">0</text>", HIGH - 6.0);
    let _ = write!(
        svg,
        "<text class=\"right\" x=\"{}\" y=\"{}\">{longest} pairs</text>",
        WIDE - 8.0,
        HIGH - 6.0
    );
    for curve in curves {
        let points: Vec<String> = lengths(curve)
            .map(|length| format!("{:.1} {:.1}", x(length), y(curve.error(length))))
            .collect();
        let colour = curve.head % 8;
        let _ = write!(
            svg,
            "<path class=\"curve\" style=\"stroke:var(--h{colour})\" d=\"M{}\"><title>head {}</title></path>",
            points.join("L"),
            curve.head
        );
        if let Some(length) = kept(curve.layer, curve.head) {
            let error = curve.error(length);
            let _ = write!(
                svg,
                "<circle style=\"fill:var(--h{colour})\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>head {}: {length} pairs, error {}</title></circle>",
                x(length),
                y(error),
                curve.head,
                brief(error)
            );
        }
    }
    svg + "</svg>"
}

/// Where a curve is drawn: at its points and between them, for what is a straight line of errors bends on a logarithmic axis.
fn lengths(curve: &Curve) -> impl Iterator<Item = usize> {
    const BETWEEN: usize = 10;
    let first = curve.points.first().map(|point| point.length);
    let stretches = curve.points.windows(2).flat_map(|ends| {
        let (from, to) = (ends[0].length, ends[1].length.max(ends[0].length));
        (1..=BETWEEN).map(move |step| from + (to - from) * step / BETWEEN)
    });
    first.into_iter().chain(stretches)
}
