//! Small parts of a page.

/// Text as it may stand in HTML, in an element or an attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

/// A number that counts, and what it is.
pub(super) fn tile(number: &str, what: &str) -> String {
    format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>", escaped(number), escaped(what))
}

/// A table of names and values; nothing where there are none.
pub(super) fn facts(rows: &[(String, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| {
            format!(
                "<tr><td class=\"text\">{}</td><td class=\"text wrap\">{}</td></tr>",
                escaped(name),
                escaped(value)
            )
        })
        .collect();
    format!("<table>{rows}</table>")
}

/// Short names with their values, in as many columns as there is room for.
pub(super) fn columns(rows: &[(String, String)]) -> String {
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<div><span>{}</span><span>{}</span></div>", escaped(name), escaped(value)))
        .collect();
    format!("<div class=\"columns\">{rows}</div>")
}

/// Where a logarithmic axis has lines: powers of ten, and where those are few their twofold and fivefold too.
pub(super) fn ticks(least: f64, most: f64) -> Vec<f64> {
    #[allow(clippy::cast_possible_truncation, reason = "logarithms of ordinary numbers; casts saturate")]
    let (first, last) = (least.log10().floor() as i32, most.log10().ceil() as i32);
    let factors: &[f64] = if last - first > 2 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    // At most eight powers, evenly spaced.
    let step = usize::try_from((last - first) / 8 + 1).unwrap_or(1);
    let all = (first..=last)
        .step_by(step)
        .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
    all.filter(|tick| (least..=most).contains(tick)).collect()
}

/// An error in at most six characters.
pub(super) fn brief(error: f64) -> String {
    match error {
        error if !error.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        error if !(1e-3..1e3).contains(&error) => format!("{error:.1e}"),
        error if error < 1.0 => format!("{error:.4}"),
        error => format!("{error:.2}"),
    }
}

/// A tick of an axis in words.
pub(super) fn tick(at: f64) -> String {
    if (9.99e-3..1e4).contains(&at) {
        // Away with what multiplication by a power of ten leaves behind.
        let text = format!("{at:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{at:.0e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escaped("<a href='x\">&"), "&lt;a href=&#39;x&quot;&gt;&amp;");
    }

    #[test]
    fn an_axis_has_a_few_lines_within_its_ends() {
        assert_eq!(
            ticks(0.002, 30.0).iter().map(|&at| tick(at)).collect::<Vec<_>>(),
            ["0.01", "0.1", "1", "10"]
        );
        assert_eq!(
            ticks(0.004, 0.03).iter().map(|&at| tick(at)).collect::<Vec<_>>(),
            ["5e-3", "0.01", "0.02"]
        );
        assert!((1..=9).contains(&ticks(1e-30, 1.0).len()));
        assert!(ticks(0.21, 0.3).len() <= 1);
    }

    #[test]
    fn errors_are_brief() {
        for error in [0.0, 1e-12, 0.00123, 0.5, 9.996, 999.9, 1e9, f64::NAN] {
            assert!(brief(error).len() <= 7, "{}", brief(error));
        }
        assert_eq!([brief(6.4e-4), brief(0.0115)], ["6.4e-4", "0.0115"]);
    }
}
