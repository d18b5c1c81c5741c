//! The table of `--timings`.

use std::fmt::Write as _;

use kvsculpt::machine::Measured;

use crate::report::{Report, size};

/// What each kernel or operation cost, and what went to and from the machine; nothing where that was not asked for.
pub(crate) fn text(report: &Report<'_>) -> String {
    report.measured.map_or_else(String::new, table)
}

fn table(measured: &Measured) -> String {
    let all: f64 = measured.costs.iter().map(|cost| cost.seconds).sum();
    let mut text = format!(
        "\n{:17} {:>9} {:>11} {:>7}\n",
        if measured.kernels { "kernel" } else { "operation" },
        "calls",
        "seconds",
        "share"
    );
    for cost in &measured.costs {
        let share = 100.0 * cost.seconds / all.max(f64::MIN_POSITIVE);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:17} {:>9} {:>11.4} {share:>5.1} %", cost.name, cost.calls, cost.seconds);
    }
    let traffic = measured.traffic;
    if !measured.kernels && traffic.submissions > 0 {
        text.push_str("This device cannot time kernels: times are the host's, and a read's holds that of the work before it.\n");
    }
    let _ = writeln!(
        text,
        "{} evaluations, {} reads ({}), {} writes ({}), {} submissions",
        traffic.evaluations,
        traffic.reads,
        size(traffic.bytes_read),
        traffic.writes,
        size(traffic.bytes_written),
        traffic.submissions
    );
    if traffic.writes_ahead > 0 {
        let (writes, bytes) = (traffic.writes_ahead, size(traffic.bytes_ahead));
        let _ = writeln!(text, "{writes} of the writes ({bytes}) went up while the machine worked");
    }
    if let Some(bytes) = measured.device_bytes {
        let _ = writeln!(text, "at most {} on the device at one time", size(bytes));
    }
    if traffic.rounds.count > 0 {
        let _ = writeln!(text, "{}", traffic.rounds);
    }
    text
}
