//! What a generated head's rows are made of.

use super::noise::Stream;

/// Different words of the text that is made up.
const WORDS: usize = 512;
/// Different topics.
const TOPICS: usize = 64;
/// Tokens of a passage on one topic.
const PASSAGE: usize = 96;
/// Shares of the variance that word and topic have; the rest is the token's own.
const SHARES: [f32; 2] = [0.45, 0.25];

/// The text: which word each token is and which topic it stands in; the same for all heads.
#[derive(Clone, Copy, Debug)]
struct Text(Stream);

impl Text {
    /// By Zipf's law: the n-th word is drawn as often as 1/n.
    fn word(self, token: usize) -> usize {
        zipf(self.0.part(0).uniform(token as u64), WORDS)
    }

    fn topic(self, token: usize) -> usize {
        zipf(self.0.part(1).uniform((token / PASSAGE) as u64), TOPICS)
    }
}

/// A rank below `count` with a probability near to that of 1 / (rank + 1).
fn zipf(uniform: f64, count: usize) -> usize {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 1 to count, rounded down as is meant"
    )]
    let rank = libm::pow(count as f64 + 1.0, uniform) as usize;
    rank.clamp(1, count) - 1
}

/// `mean + spread · (√.45 word + √.25 topic + √.3 own)`, channel by channel: rows of keys or queries before RoPE, or of values.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    mean: Vec<f32>,
    spread: Vec<f32>,
    words: Vec<f32>,
    topics: Vec<f32>,
    own: Stream,
    text: Text,
}

impl Rows {
    fn new(stream: Stream, text: Text, mean: Vec<f32>, spread: Vec<f32>) -> Self {
        let dim = mean.len();
        let table = |part, count: usize| -> Vec<f32> {
            let numbers = stream.part(part);
            (0..count * dim).map(|at| numbers.bell(at as u64)).collect()
        };
        Self {
            words: table(0, WORDS),
            topics: table(1, TOPICS),
            own: stream.part(2),
            mean,
            spread,
            text,
        }
    }

    /// One token's row.
    pub(super) fn fill(&self, token: usize, row: &mut [f32]) {
        let dim = self.mean.len();
        let word = &self.words[self.text.word(token) * dim..][..dim];
        let topic = &self.topics[self.text.topic(token) * dim..][..dim];
        let [of_word, of_topic] = SHARES.map(f32::sqrt);
        let of_own = (1.0 - SHARES[0] - SHARES[1]).sqrt();
        for (channel, number) in row.iter_mut().enumerate() {
            let own = self.own.bell((token * dim + channel) as u64);
            let content = of_word * word[channel] + of_topic * topic[channel] + of_own * own;
            *number = self.mean[channel] + self.spread[channel] * content;
        }
    }
}

/// How a query head attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To the first token, most of the time.
    Sink,
    /// To what is near.
    Local,
    /// To tokens of the same word, wherever they stand.
    Retrieval,
    /// To much at once.
    Diffuse,
}

/// What a kind of head is made with.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// The first token's share of attention, roughly.
    sink: f64,
    /// γ of a weight that falls with distance as Δ^−γ.
    nearness: f64,
    /// By how much a token of the same word is scored higher.
    recall: f64,
    /// Size of the query's constant part, a channel: how much more it prefers some words to others whatever it asks.
    bias: f64,
}

impl Kind {
    /// Kinds by depth in [0, 1]: sinks fill the middle layers of a model, not its ends.
    fn of(stream: Stream, depth: f64) -> Self {
        let middle = (0.12..0.92).contains(&depth);
        let bounds = if middle { [0.42, 0.64, 0.82] } else { [0.06, 0.46, 0.6] };
        match stream.uniform(0) {
            u if u < bounds[0] => Self::Sink,
            u if u < bounds[1] => Self::Local,
            u if u < bounds[2] => Self::Retrieval,
            _ => Self::Diffuse,
        }
    }

    fn habits(self, stream: Stream) -> Habits {
        let between = |at, (low, high): (f64, f64)| stream.between(at, low, high);
        let (sink, nearness, recall, bias) = match self {
            Self::Sink => ((0.6, 0.97), (0.3, 0.7), (0.0, 1.0), (0.6, 1.5)),
            Self::Local => ((0.01, 0.3), (1.2, 1.7), (0.0, 1.0), (0.5, 1.2)),
            Self::Retrieval => ((0.02, 0.3), (0.2, 0.5), (3.0, 5.5), (0.5, 1.0)),
            Self::Diffuse => ((0.0, 0.06), (0.4, 0.7), (0.0, 1.0), (0.5, 1.2)),
        };
        Habits {
            sink: between(1, sink).max(1e-3),
            nearness: between(2, nearness),
            recall: between(3, recall),
            bias: between(4, bias),
        }
    }
}

/// The rotary frequencies θ^(−2i / dim), the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Rotation(Vec<f64>);

impl Rotation {
    pub(super) fn new(theta: f64, dim: usize) -> Self {
        Self((0..dim / 2).map(|i| libm::pow(theta, -2.0 * i as f64 / dim as f64)).collect())
    }

    /// Turns channel i with channel i + dim/2 to a position.
    pub(super) fn turn(&self, row: &mut [f32], position: usize) {
        let (first, second) = row.split_at_mut(self.0.len());
        for ((frequency, x), y) in self.0.iter().zip(first).zip(second) {
            let (sine, cosine) = libm::sincos(frequency * position as f64);
            let (a, b) = (f64::from(*x), f64::from(*y));
            *x = narrow(a * cosine - b * sine);
            *y = narrow(b * cosine + a * sine);
        }
    }

    /// Whether two channels turn by less than a radian over so many tokens; the slowest eight pairs always count.
    fn is_slow(&self, pair: usize, tokens: usize) -> bool {
        self.0[pair] * tokens as f64 <= 1.0 || pair + 8 >= self.0.len()
    }

    /// Two channels that turn together.
    fn channels(&self, pair: usize) -> [usize; 2] {
        [pair, pair + self.0.len()]
    }
}

#[allow(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// A KV head: where its keys and values come from, and what its query heads must know of them.
#[derive(Clone, Debug)]
pub(super) struct Head {
    stream: Stream,
    text: Text,
    pub(super) keys: Rows,
    pub(super) values: Rows,
    /// Pairs of channels with a large constant part, the slowest that turn.
    outliers: Vec<usize>,
    depth: f64,
    tokens: usize,
}

/// The first token's key and value beside an ordinary one's.
const SINK_KEY: f32 = 0.4;
const SINK_VALUE: f32 = 0.2;

impl Head {
    /// Head `number` of a layer at a depth in [0, 1].
    pub(super) fn new(seed: Stream, layer: usize, depth: f64, number: usize, rotation: &Rotation, tokens: usize) -> Self {
        let stream = seed.part(1).part(layer as u64).part(number as u64);
        let text = Text(seed.part(0));
        let (pairs, traits) = (rotation.0.len(), stream.part(0));
        let dim = 2 * pairs;
        let numbers = stream.part(1);
        // Larger where keys turn, so that queries can tell distances without taking much notice of words.
        let mut mean: Vec<f32> = (0..dim)
            .map(|channel| {
                let size = if rotation.is_slow(channel % pairs, tokens) { 1.0 } else { 1.6 };
                size * numbers.bell(channel as u64)
            })
            .collect();
        let outliers: Vec<usize> = (pairs - (pairs / 16).clamp(1, 3)..pairs).collect();
        for (at, &pair) in outliers.iter().enumerate() {
            // Mostly one of the two channels: outliers stand alone.
            let [one, other] = rotation.channels(pair);
            let (one, other) = if traits.uniform(10 + at as u64) < 0.5 {
                (one, other)
            } else {
                (other, one)
            };
            let size = narrow(traits.between(20 + at as u64, 5.0, 12.0));
            mean[one] = size.copysign(mean[one]);
            mean[other] *= 0.2 * size;
        }
        let spread_of = |size: f64, part| -> Vec<f32> {
            let numbers = stream.part(part);
            let channel = |channel| narrow(size * numbers.between(channel, 0.5, 1.5));
            (0..dim as u64).map(channel).collect()
        };
        let keys = Rows::new(stream.part(2), text, mean, spread_of(traits.between(0, 0.8, 1.4), 3));
        let size = (0.4 + 1.0 * depth) * traits.between(1, 0.8, 1.25);
        let numbers = stream.part(4);
        let value_mean = (0..dim as u64).map(|channel| narrow(0.4 * size) * numbers.bell(channel)).collect();
        let values = Rows::new(stream.part(5), text, value_mean, spread_of(size, 6));
        Self {
            stream,
            text,
            keys,
            values,
            outliers,
            depth,
            tokens,
        }
    }

    /// A token's key, before RoPE. The first token's lacks the constant part that all others have: it is a sink to queries that
    /// are opposed to that part.
    pub(super) fn key(&self, token: usize, row: &mut [f32]) {
        self.keys.fill(token, row);
        if token == 0 {
            for (number, mean) in row.iter_mut().zip(&self.keys.mean) {
                *number = SINK_KEY * (*number - mean);
            }
        }
    }

    /// A token's value; the first token's is small.
    pub(super) fn value(&self, token: usize, row: &mut [f32]) {
        self.values.fill(token, row);
        if token == 0 {
            row.iter_mut().for_each(|number| *number *= SINK_VALUE);
        }
    }

    /// The word of a token.
    #[cfg(test)]
    pub(super) fn word(&self, token: usize) -> usize {
        self.text.word(token)
    }

    /// How a query head attends.
    pub(super) fn kind(&self, query_head: usize) -> Kind {
        Kind::of(self.query_stream(query_head), self.depth)
    }

    fn query_stream(&self, query_head: usize) -> Stream {
        self.stream.part(7).part(query_head as u64)
    }

    /// The queries before RoPE of one of this head's query heads, at softmax scale 1/√dim.
    pub(super) fn queries(&self, query_head: usize, rotation: &Rotation) -> Rows {
        let stream = self.query_stream(query_head);
        let habits = self.kind(query_head).habits(stream);
        let (pairs, dim) = (rotation.0.len(), 2 * rotation.0.len());
        let scale = 1.0 / (dim as f64).sqrt();
        let numbers = stream.part(1);
        // Mostly in channels that hardly turn: in the others it would prefer distances at random.
        let mut mean: Vec<f32> = (0..dim)
            .map(|channel| {
                let size = if rotation.is_slow(channel % pairs, self.tokens) { 1.4 } else { 0.3 };
                narrow(size * habits.bias) * numbers.bell(channel as u64)
            })
            .collect();
        self.approach(&mut mean, habits, scale, rotation);
        for &pair in &self.outliers {
            for channel in rotation.channels(pair) {
                mean[channel] = 0.0;
            }
        }
        self.oppose(&mut mean, habits, scale, rotation);
        let spread = narrow(stream.between(5, 0.35, 0.9));
        let mut queries = Rows::new(stream.part(2), self.text, mean, vec![spread; dim]);
        self.remember(&mut queries, habits.recall, scale, rotation);
        queries
    }

    /// Adds to a query's mean what makes weights fall with distance: γ log Δ in all, for a pair's cosine falls where Δ reaches its
    /// wavelength, and wavelengths grow by the same factor from pair to pair.
    fn approach(&self, mean: &mut [f32], habits: Habits, scale: f64, rotation: &Rotation) {
        let pairs = rotation.0.len();
        let fast: Vec<usize> = (0..pairs).filter(|&pair| !rotation.is_slow(pair, self.tokens)).collect();
        let channels = || fast.iter().flat_map(|&pair| rotation.channels(pair));
        let square: f64 = channels().map(|channel| f64::from(self.keys.mean[channel]).powi(2)).sum();
        if fast.is_empty() || square == 0.0 {
            return;
        }
        let step = libm::log(rotation.0[0] / rotation.0[1]);
        let factor = habits.nearness * step * fast.len() as f64 / (scale * square);
        for channel in channels() {
            mean[channel] += narrow(factor) * self.keys.mean[channel];
        }
    }

    /// Opposes a query's mean to the constant part of keys, so that the first token draws the share it should.
    fn oppose(&self, mean: &mut [f32], habits: Habits, scale: f64, rotation: &Rotation) {
        let gap = self.mass(mean, scale, rotation) + libm::log(habits.sink / (1.0 - habits.sink));
        let channels: Vec<usize> = self.outliers.iter().flat_map(|&pair| rotation.channels(pair)).collect();
        let square: f64 = channels.iter().map(|&channel| f64::from(self.keys.mean[channel]).powi(2)).sum();
        for channel in channels {
            mean[channel] -= narrow(gap / (scale * square)) * self.keys.mean[channel];
        }
    }

    /// `logsumexp` of the scores that the keys after the first get from a query asked at the end, from some of them: the newest, and
    /// others evenly spaced.
    fn mass(&self, query: &[f32], scale: f64, rotation: &Rotation) -> f64 {
        const NEWEST: usize = 64;
        const OTHERS: usize = 192;
        let mut turned = query.to_vec();
        rotation.turn(&mut turned, self.tokens);
        let others = self.tokens.saturating_sub(NEWEST + 1);
        let drawn = others.min(OTHERS);
        let spaced = (0..drawn).map(|i| (1 + i * others / drawn, others as f64 / drawn as f64));
        let newest = (1 + others..self.tokens).map(|token| (token, 1.0));
        let mut key = vec![0.0; query.len()];
        let mut sum = 0.0;
        for (token, weight) in spaced.chain(newest) {
            self.key(token, &mut key);
            rotation.turn(&mut key, token);
            let score: f64 = turned.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            sum += weight * libm::exp(scale * score);
        }
        libm::log(sum.max(1.0))
    }

    /// Adds to a query's words what makes it score keys of the same word higher by `recall`, in the channels that hardly turn over
    /// the whole context.
    fn remember(&self, queries: &mut Rows, recall: f64, scale: f64, rotation: &Rotation) {
        let channels: Vec<usize> = (0..rotation.0.len())
            .filter(|&pair| rotation.is_slow(pair, self.tokens))
            .filter(|pair| !self.outliers.contains(pair))
            .flat_map(|pair| rotation.channels(pair))
            .collect();
        let square: f64 = channels.iter().map(|&channel| f64::from(self.keys.spread[channel]).powi(2)).sum();
        let share = f64::from(SHARES[0]);
        let dim = self.keys.mean.len();
        for (row, key) in queries.words.chunks_exact_mut(dim).zip(self.keys.words.chunks_exact(dim)) {
            for &channel in &channels {
                let spread = f64::from(self.keys.spread[channel]);
                let gain = recall * spread / (scale * share * square) / f64::from(queries.spread[channel]);
                row[channel] += narrow(gain) * key[channel];
            }
        }
    }
}
