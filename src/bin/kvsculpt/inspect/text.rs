//! An inspection as tables.

use std::fmt::Write as _;

use kvsculpt::budget::{heat_map, length_table};
use kvsculpt::solver::Judged;

use super::statistics::{Attention, Numbers};
use super::{HeadFacts, Inspection, LayerFacts};
use crate::report::size;
use crate::table::{Body, number};

/// Outlier channels named one by one.
const NAMED: usize = 4;

pub(super) fn text(found: &Inspection) -> String {
    let mut parts = vec![head(found), layers(found)];
    let conspicuous = outliers(found);
    if !conspicuous.is_empty() {
        parts.push(conspicuous);
    }
    if let Some(budgets) = &found.budgets {
        parts.push(length_table(budgets));
        if budgets.layers().count() > 1 {
            parts.push(heat_map("Share of the pairs that each head keeps", &budgets.shares()));
        }
    }
    if let Some(made) = made(found) {
        parts.push(made);
    }
    parts.join("\n")
}

/// A line of the summary: what it is, and what it comes to.
pub(super) fn line(text: &mut String, what: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{what:9} {value}");
}

fn head(found: &Inspection) -> String {
    let mut text = String::new();
    let stored: u64 = found.layers.iter().map(|layer| layer.bytes).sum();
    line(&mut text, "file", &format!("{} ({})", found.file.display(), size(found.bytes)));
    line(&mut text, "format", &found.format);
    if let Some(shard) = &found.shard {
        let heads: usize = found.layers.iter().map(|layer| layer.heads.len()).sum();
        line(&mut text, "part", &format!("{shard}, of which these are the {heads} heads"));
    }
    line(&mut text, "stored", &format!("{} of keys and values", size(stored)));
    if let (Some(tokens), Some(next)) = (found.tokens, found.next_position) {
        line(&mut text, "tokens", &format!("{tokens}; the next has position {next}"));
    }
    if let Some(rope) = &found.rope {
        let pairing = format!("{:?}", rope.pairing).to_lowercase();
        let unsupported = rope.unsupported.as_ref().map(|what| format!("; {what}")).unwrap_or_default();
        line(&mut text, "rope", &format!("{} channels, {pairing}{unsupported}", rope.dim));
    }
    if let Some(scale) = found.scale {
        line(&mut text, "scale", &scale.to_string());
    }
    for (key, value) in &found.metadata {
        let named = ["model", "architecture", "text", "rope_theta", "rope_scaling"];
        if named.contains(&key.as_str()) {
            let short: String = value.chars().take(80).flat_map(char::escape_debug).collect();
            line(&mut text, key, &short);
        }
    }
    text
}

/// A line a layer; of what differs from head to head the extremes, or the mean.
fn layers(found: &Inspection) -> String {
    let looks = found
        .layers
        .iter()
        .any(|layer| layer.heads.iter().any(|head| head.attention.is_some()));
    let mut header = vec![
        "layer",
        "heads",
        "dims",
        "dtype",
        "pairs",
        "bytes",
        "keys",
        "norm",
        "values",
        "norm",
        "outlier\nchannels",
    ];
    let has_first = found
        .layers
        .iter()
        .any(|layer| layer.heads.iter().any(|head| head.first_values.is_some()));
    if has_first {
        header.push("first 4\nvalues");
    }
    if looks {
        header.extend(["attention\nto first 4", "to newest\n64", "shared\nby"]);
    }
    let mut table = Body::new(header.into_iter().map(String::from).collect());
    for layer in &found.layers {
        let mut row = vec![
            layer.layer.to_string(),
            heads(layer),
            dims(layer),
            format!("{:?}", layer.dtype).to_lowercase(),
            span(layer, |head| head.pairs as f64, |pairs| format!("{pairs}")),
            size(layer.bytes),
            range(layer, |head| &head.key),
            norm(layer, |head| &head.key),
            range(layer, |head| &head.value),
            norm(layer, |head| &head.value),
            layer.heads.iter().map(|head| head.key.outliers.len()).sum::<usize>().to_string(),
        ];
        if has_first {
            row.push(span(
                layer,
                |head| head.first_values.unwrap_or(f64::NAN),
                |part| format!("{:.0}%", part * 100.0),
            ));
        }
        if looks {
            let percent = |part: f64| format!("{:.0}%", part * 100.0);
            let of = |pick: fn(&Attention) -> f64| move |head: &HeadFacts| head.attention.as_ref().map_or(f64::NAN, pick);
            row.push(span(layer, of(|attention| attention.first), percent));
            row.push(span(layer, of(|attention| attention.newest), percent));
            row.push(span(layer, of(|attention| attention.spread), |pairs| format!("{pairs:.0}")));
        }
        table.row(row);
    }
    table.text(&[])
}

fn heads(layer: &LayerFacts) -> String {
    match layer.query_heads {
        Some(query_heads) => format!("{} of {query_heads}", layer.kv_heads),
        None => layer.kv_heads.to_string(),
    }
}

fn dims(layer: &LayerFacts) -> String {
    if layer.dim == layer.value_dim {
        layer.dim.to_string()
    } else {
        format!("{}, {}", layer.dim, layer.value_dim)
    }
}

/// The least and the most of a layer's heads, as one where they read the same.
fn span(layer: &LayerFacts, pick: impl Fn(&HeadFacts) -> f64, written: impl Fn(f64) -> String) -> String {
    let fold = |choose: fn(f64, f64) -> f64| layer.heads.iter().map(&pick).reduce(choose).unwrap_or(f64::NAN);
    let (least, most) = (written(fold(f64::min)), written(fold(f64::max)));
    if least == most { least } else { format!("{least}–{most}") }
}

fn range(layer: &LayerFacts, pick: impl Fn(&HeadFacts) -> &Numbers) -> String {
    let least = layer.heads.iter().map(|head| pick(head).least).fold(f32::INFINITY, f32::min);
    let most = layer.heads.iter().map(|head| pick(head).most).fold(f32::NEG_INFINITY, f32::max);
    format!("{least:.1} … {most:.1}")
}

fn norm(layer: &LayerFacts, pick: impl Fn(&HeadFacts) -> &Numbers) -> String {
    let sum: f64 = layer.heads.iter().map(|head| pick(head).norm.mean).sum();
    format!("{:.1}", sum / layer.heads.len() as f64)
}

/// The key channels that stand out most.
fn outliers(found: &Inspection) -> String {
    let heads = found
        .layers
        .iter()
        .flat_map(|layer| layer.heads.iter().map(move |head| (layer.layer, head)));
    let mut all: Vec<_> = heads
        .flat_map(|(layer, head)| head.key.outliers.iter().map(move |outlier| (layer, head.head, *outlier)))
        .collect();
    all.sort_by(|one, other| other.2.times.total_cmp(&one.2.times));
    let named: Vec<String> = all
        .iter()
        .take(NAMED)
        .map(|(layer, head, outlier)| format!("layer {layer} head {head} channel {} ({:.0}×)", outlier.channel, outlier.times))
        .collect();
    if named.is_empty() {
        return String::new();
    }
    let more = if all.len() > NAMED { ", …" } else { "" };
    format!("Key channels many times their head's median: {}{more}\n", named.join(", "))
}

/// How a compressed cache was made, and its mean errors on probe rows, else on validation rows.
fn made(found: &Inspection) -> Option<String> {
    let made = found.made.as_ref()?;
    let mut text = String::new();
    for (what, value) in [("method", &made.method), ("tool", &made.tool), ("source", &made.source)] {
        line(&mut text, what, value.as_deref().unwrap_or("not said"));
    }
    line(&mut text, "queries", &made.queries);
    if let Some(keep) = made.keep {
        line(&mut text, "kept", &format!("{:.1}% of the pairs", keep * 100.0));
    }
    let Some(means) = made.means else {
        line(&mut text, "report", "none that can be read");
        return Some(text);
    };
    let errors = |judged: Judged| {
        judged
            .probe
            .map(|errors| ("probe", errors))
            .or(judged.validation.map(|errors| ("validation", errors)))
    };
    let candidates = [
        ("select", Some(means.select)),
        ("select-fit", means.select_fit),
        ("result", Some(means.result)),
    ];
    for (name, judged) in candidates {
        if let Some((rows, errors)) = judged.and_then(errors) {
            let numbers = [errors.output, errors.mass, errors.merged].map(|error| number(Some(error)));
            let [output, mass, merged] = numbers;
            line(
                &mut text,
                name,
                &format!("output {output}, mass {mass}, merged {merged} ({rows} rows, mean over heads)"),
            );
        }
    }
    Some(text)
}
