//! Options that few need to change.

use clap::{Args, ValueEnum};
use kvsculpt::Options;
use kvsculpt::options::{Anchor, Ranking, Strength};

use crate::arguments::{Switch, replace, with_presets};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RankingKind {
    /// The attention they get, as published
    Attention,
    /// What the output of attention would lose with them
    Effect,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AnchorKind {
    /// Zero, as published
    Zero,
    /// The values the seed's pairs had in the cache
    Seed,
}

/// The finer points of the method. A strength is a plain number as in the paper (`1e-3`), or a number followed by x (`1e-3x`): so
/// many times the head's own scale.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Finer points (STRENGTH: a number, or 1e-3x for so many times the head's own scale)")]
pub(crate) struct FinerArguments {
    #[arg(long, value_name = "STRENGTH", value_parser = strength, help = with_presets(
        "What an error in the mass costs beside one in the output; x: times the teacher's mean squared output",
        |options| written(options.mass_weight),
    ))]
    mass_weight: Option<Strength>,
    #[arg(long, value_name = "STRENGTH", value_parser = strength, help = with_presets(
        "Ridge of the value solve; x: times the Gram's mean diagonal",
        |options| written(options.ridge),
    ))]
    ridge: Option<Strength>,
    #[arg(long, value_enum, value_name = "on|off", help = with_presets(
        "Let each head take the best of several ridges around that one, by the rows held out",
        |options| if options.ridge_search { "on".into() } else { "off".into() },
    ))]
    ridge_search: Option<Switch>,
    #[arg(long, value_enum, help = with_presets("By what the pairs are ranked that are kept or begun with", |options| match options.ranking {
        Ranking::Effect => "effect".into(),
        _ => "attention".into(),
    }))]
    ranking: Option<RankingKind>,
    #[arg(long, value_enum, help = with_presets("What the ridge pulls values toward", |options| match options.anchor {
        Anchor::Zero => "zero".into(),
        Anchor::Seed => "seed".into(),
    }))]
    anchor: Option<AnchorKind>,
    #[arg(long, value_name = "ROWS", help = with_presets(
        "Training rows a query head from the whole context, turned to the positions that follow",
        |options| options.context_rows.to_string(),
    ))]
    context_rows: Option<usize>,
    #[arg(long, value_name = "POSITIONS|rows", value_parser = count_or("rows", "positions"), help = with_presets(
        "Spread them over so many positions, the newest soonest: about as many as tokens will be made; `rows`: one each, the oldest soonest",
        |options| options.horizon.map_or_else(|| "rows".into(), |horizon| horizon.to_string()),
    ))]
    horizon: Option<Count>,
    #[arg(long, value_name = "ROWS|tail", value_parser = count_or("tail", "rows"), help = with_presets(
        "Training rows a query head at the newest positions; `tail`: as many as the tail is long",
        |options| options.recent_rows.map_or_else(|| "tail".into(), |rows| rows.to_string()),
    ))]
    recent_rows: Option<Count>,
    #[arg(long, value_name = "ROWS", help = with_presets(
        "Rows a query head held out of every fit, by which the best iterate is chosen; 0: the last one is returned",
        |options| options.validation_rows.to_string(),
    ))]
    validation_rows: Option<usize>,
    #[arg(long, value_name = "ERROR", help = with_presets(
        "Leave a head alone once its merged error on the rows held out is below this",
        |options| options.tolerance.to_string(),
    ))]
    tolerance: Option<f64>,
    #[arg(long, value_name = "PAIRS", help = with_presets("Curvature pairs that L-BFGS remembers, at most 256", |options| options.history.to_string()))]
    history: Option<u32>,
    #[arg(long, help = with_presets("L-BFGS iterations in an outer step", |options| options.iterations.to_string()))]
    iterations: Option<u32>,
    #[arg(long, value_name = "STEPS", help = with_presets(
        "Solve the values again after so many outer steps",
        |options| options.refit_every.to_string(),
    ))]
    refit_every: Option<u32>,
    #[arg(long, value_name = "LENGTH", help = with_presets("First trial length of a line search", |options| options.learning_rate.to_string()))]
    learning_rate: Option<f64>,
    #[arg(long, value_name = "TOKENS", help = with_presets(
        "Cut caches whose zone is longer than one and a half times this into chunks of about so many tokens; 0: never",
        |options| options.chunk.to_string(),
    ))]
    chunk: Option<usize>,
    #[arg(long, value_name = "ROWS", help = with_presets(
        "Training rows of a head that its error curve is made from",
        |options| options.curve_rows.to_string(),
    ))]
    curve_rows: Option<usize>,
    #[arg(long, value_name = "RIDGE", help = with_presets(
        "Ridge of the mass fit that biases start from, times the mean diagonal of its Gram",
        |options| options.bias_ridge.to_string(),
    ))]
    bias_ridge: Option<f64>,
}

/// A number, or `None` for the word that stands for it.
#[derive(Clone, Copy, Debug)]
struct Count(Option<usize>);

impl FinerArguments {
    pub(crate) fn put_over(&self, options: &mut Options) {
        replace(&mut options.mass_weight, self.mass_weight);
        replace(&mut options.ridge, self.ridge);
        replace(&mut options.ridge_search, self.ridge_search.map(|search| search == Switch::On));
        replace(
            &mut options.anchor,
            self.anchor.map(|anchor| match anchor {
                AnchorKind::Zero => Anchor::Zero,
                AnchorKind::Seed => Anchor::Seed,
            }),
        );
        replace(
            &mut options.ranking,
            self.ranking.map(|ranking| match ranking {
                RankingKind::Attention => Ranking::Attention,
                RankingKind::Effect => Ranking::Effect,
            }),
        );
        replace(&mut options.context_rows, self.context_rows);
        replace(&mut options.horizon, self.horizon.map(|horizon| horizon.0));
        replace(&mut options.recent_rows, self.recent_rows.map(|rows| rows.0));
        replace(&mut options.validation_rows, self.validation_rows);
        replace(&mut options.tolerance, self.tolerance);
        replace(&mut options.history, self.history);
        replace(&mut options.iterations, self.iterations);
        replace(&mut options.refit_every, self.refit_every);
        replace(&mut options.learning_rate, self.learning_rate);
        replace(&mut options.chunk, self.chunk);
        replace(&mut options.curve_rows, self.curve_rows);
        replace(&mut options.bias_ridge, self.bias_ridge);
    }
}

/// A strength as it is written on the command line.
fn written(strength: Strength) -> String {
    match strength {
        Strength::Absolute(value) => value.to_string(),
        Strength::Relative(factor) => format!("{factor}x"),
    }
}

/// Reads a number of what is counted, or the word.
fn count_or(word: &'static str, counted: &'static str) -> impl Fn(&str) -> Result<Count, String> + Clone + Send + Sync + 'static {
    move |text| {
        if text == word {
            return Ok(Count(None));
        }
        let number = text.parse().map(|number| Count(Some(number)));
        number.map_err(|_| format!("neither a number of {counted} nor `{word}`"))
    }
}

fn strength(text: &str) -> Result<Strength, String> {
    let refuse = |_| "write a number, or a number with x behind it for so many times the head's own scale".to_owned();
    match text.strip_suffix('x') {
        Some(factor) => factor.parse().map(Strength::Relative).map_err(refuse),
        None => text.parse().map(Strength::Absolute).map_err(refuse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strength_is_absolute_unless_it_ends_in_x() {
        assert_eq!(strength("1e-3"), Ok(Strength::Absolute(1e-3)));
        assert_eq!(strength("0.25x"), Ok(Strength::Relative(0.25)));
        assert!(strength("x").is_err() && strength("1y").is_err());
        for value in [Strength::Absolute(1e-3), Strength::Relative(0.25)] {
            assert_eq!(strength(&written(value)), Ok(value));
        }
    }
}
