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

/// A place on a logarithmic axis in words: powers of ten.
pub(super) fn powers(least: f64, most: f64) -> Vec<f64> {
    #[allow(clippy::cast_possible_truncation, reason = "logarithms of ordinary numbers; casts saturate")]
    let (first, last) = (least.log10().ceil() as i32, most.log10().floor() as i32);
    // At most seven, evenly spaced.
    let step = usize::try_from((last - first) / 7 + 1).unwrap_or(1);
    (first..=last).step_by(step).map(|power| 10_f64.powi(power)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_markup() {
        assert_eq!(escaped("<a href='x\">&"), "&lt;a href=&#39;x&quot;&gt;&amp;");
    }

    #[test]
    fn an_axis_has_a_few_powers_of_ten() {
        assert_eq!(powers(0.002, 3.0).len(), 3);
        assert!(powers(1e-30, 1.0).len() <= 8);
        assert!(powers(0.2, 0.3).is_empty());
    }
}
