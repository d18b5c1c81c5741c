//! What a compression has finished so far: what an interrupted one leaves behind, and the next goes on from.

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::plan::Plan;
use super::supply::{Place, Supply};
use crate::budget::Curve;
use crate::cache::CompressedLayer;
use crate::error::{Error, Result};
use crate::options::Split;

/// One KV head's short cache, before it is rounded to the file's numbers, and what became of the head.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request::default();
/// # request.options.method = kvsculpt::options::Method::Select;
/// # request.options.budget = kvsculpt::options::Scope::Uniform;
/// use kvsculpt::{cpu::CpuEngine, solver::{FinishedHead, Observer, compress}};
///
/// struct Sizes(usize);
/// impl Observer for Sizes {
///     fn finished(&mut self, head: &FinishedHead) -> kvsculpt::Result<()> {
///         assert_eq!(head.key.len() % head.outcome.kept, 0);
///         self.0 += head.outcome.kept;
///         Ok(())
///     }
/// }
/// let mut sizes = Sizes(0);
/// let short = compress(&mut CpuEngine::new(), &capture, &request, &mut sizes)?;
/// assert_eq!(sizes.0, short.budgets.total());
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FinishedHead {
    /// What became of it; names its layer and head, and its length, `kept`.
    pub outcome: Outcome,
    /// Free pairs of each of its chunks. A head that is finished at other lengths is another head.
    pub free: Vec<usize>,
    /// `[kept, dim]`: sinks, free pairs, tail.
    pub key: Vec<f32>,
    /// `[kept, value_dim]`.
    pub value: Vec<f32>,
    /// `[kept]`, added to the scaled logits, where the method gives one.
    pub bias: Option<Vec<f32>>,
}

impl FinishedHead {
    /// Whether it is the head at this place, with these free pairs.
    fn is(&self, place: &Place<'_>, free: &[usize]) -> bool {
        self.outcome.layer == place.layer && self.outcome.head == place.head && self.free == free
    }

    /// # Errors
    /// [`Error::Shape`] where its arrays are not those of the head at this place.
    fn check(&self, place: &Place<'_>, split: Split, has_bias: bool) -> Result<()> {
        let kept = split.sinks + self.free.iter().sum::<usize>() + split.tail;
        let fits = self.outcome.kept == kept
            && self.key.len() == kept * place.shape.dim
            && self.value.len() == kept * place.shape.value_dim
            && self.bias.as_ref().map(Vec::len) == has_bias.then_some(kept);
        if fits {
            return Ok(());
        }
        Err(Error::shape(
            format!("layer {} head {}", place.layer, place.head),
            "what is finished of it does not fit this capture and request; begin anew",
        ))
    }

    /// Adds the head to its layer, behind those that are there.
    fn append(self, layer: &mut CompressedLayer) {
        layer.lengths.push(self.outcome.kept);
        layer.key.extend(self.key);
        layer.value.extend(self.value);
        if let (Some(biases), Some(bias)) = (&mut layer.bias, self.bias) {
            biases.extend(bias);
        }
    }
}

/// Every head's length before it is fitted, and what it was decided by.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let mut request = kvsculpt::solver::Request { at_once: Some(1), ..kvsculpt::solver::Request::default() };
/// # request.options.method = kvsculpt::options::Method::Select;
/// use kvsculpt::{Error, cpu::CpuEngine, solver::{Lengths, Observer, compress}};
///
/// struct Until(Option<Lengths>);
/// impl Observer for Until {
///     fn decided(&mut self, lengths: &Lengths) -> kvsculpt::Result<()> {
///         self.0 = Some(lengths.clone());
///         Err(Error::Cancelled) // the lengths were all that was wanted
///     }
/// }
/// let mut until = Until(None);
/// assert!(compress(&mut CpuEngine::new(), &capture, &request, &mut until).is_err());
/// assert!(until.0.is_some_and(|lengths| lengths.free.len() == 3 && lengths.curves.len() == 3));
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Lengths {
    /// Free pairs of every head's chunks, in the order of layers and heads.
    pub free: Vec<Vec<usize>>,
    /// The error curves of heads; none where lengths were decided otherwise.
    pub curves: Vec<Curve>,
    /// Those of their chunks, a head's one after the other.
    pub parts: Vec<Curve>,
}

impl Lengths {
    pub(super) fn of(plan: &Plan) -> Self {
        Self {
            free: plan.free.clone(),
            curves: plan.curves.clone(),
            parts: plan.parts.clone(),
        }
    }

    /// # Errors
    /// [`Error::Shape`] where they are of other heads or chunks.
    pub(super) fn check(&self, supply: &Supply<'_>) -> Result<()> {
        let (heads, chunks) = (supply.places.len(), &supply.chunks);
        let fits = |free: &Vec<usize>| free.len() == chunks.len() && free.iter().zip(chunks).all(|(&free, chunk)| free <= chunk.zone());
        let named = |curves: &[Curve], count: usize| {
            let places = supply.places.iter().flat_map(|place| std::iter::repeat_n(place, count));
            curves.is_empty()
                || curves.len() == heads * count
                    && curves
                        .iter()
                        .zip(places)
                        .all(|(curve, place)| (curve.layer, curve.head) == (place.layer, place.head))
        };
        if self.free.len() == heads && self.free.iter().all(fits) && named(&self.curves, 1) && named(&self.parts, chunks.len()) {
            return Ok(());
        }
        Err(Error::shape(
            "lengths",
            "those decided before are of other heads than this request has; begin anew",
        ))
    }
}

/// What is finished of a compression. What an interrupted one leaves here, or what an [`Observer`](super::Observer) was told, is not
/// worked on again by the next of the same capture, request and machine, and the result has the bytes of one that was not interrupted.
///
/// ```
/// use kvsculpt::solver::Finished;
///
/// // An application may keep it as it likes.
/// let text = serde_json::to_string(&Finished::default()).unwrap();
/// assert_eq!(serde_json::from_str::<Finished>(&text).unwrap(), Finished::default());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Every head's length, once it is decided.
    pub lengths: Option<Lengths>,
    /// Heads that are finished, in no order; one counts where its free pairs are those that its lengths give it.
    pub heads: Vec<FinishedHead>,
}

impl Finished {
    fn find(&self, place: &Place<'_>, free: &[usize]) -> Option<usize> {
        self.heads.iter().position(|head| head.is(place, free))
    }

    /// Drops heads of other lengths, but not the first `given`: those may be needed again, where lengths are tried.
    pub(super) fn keep_only(&mut self, given: usize, supply: &Supply<'_>, free: &[Vec<usize>]) {
        let later = self.heads.split_off(given.min(self.heads.len()));
        let current = |head: &FinishedHead| supply.places.iter().zip(free).any(|(place, free)| head.is(place, free));
        self.heads.extend(later.into_iter().filter(current));
    }

    /// Which heads are finished at these lengths.
    ///
    /// # Errors
    /// [`Error::Shape`] where one of them is no head of this request.
    pub(super) fn done(&self, supply: &Supply<'_>, free: &[Vec<usize>], has_bias: bool) -> Result<Vec<bool>> {
        let done = |(place, free): (&Place<'_>, &Vec<usize>)| {
            let Some(found) = self.find(place, free) else { return Ok(false) };
            self.heads[found].check(place, supply.split, has_bias)?;
            Ok(true)
        };
        supply.places.iter().zip(free).map(done).collect()
    }

    /// What became of each head of these lengths, in order. All are finished.
    ///
    /// # Errors
    /// [`Error::Shape`] where one is not.
    pub(super) fn outcomes(&self, supply: &Supply<'_>, free: &[Vec<usize>]) -> Result<Vec<Outcome>> {
        let outcome = |(place, free): (&Place<'_>, &Vec<usize>)| {
            let found = self.find(place, free).ok_or_else(|| missing(place))?;
            Ok(self.heads[found].outcome.clone())
        };
        supply.places.iter().zip(free).map(outcome).collect()
    }

    /// Moves the heads of these lengths into their layers; nothing is left.
    ///
    /// # Errors
    /// [`Error::Shape`] where one is not finished.
    pub(super) fn take(&mut self, supply: &Supply<'_>, free: &[Vec<usize>], layers: &mut [CompressedLayer]) -> Result<()> {
        for layer in layers {
            let heads = || supply.places.iter().zip(free).filter(|(place, _)| place.layer == layer.index);
            let pairs: usize = heads()
                .filter_map(|(place, free)| Some(self.heads[self.find(place, free)?].outcome.kept))
                .sum();
            let heads: Vec<_> = heads().collect();
            layer.key.reserve_exact(pairs * layer.dim);
            layer.value.reserve_exact(pairs * layer.value_dim);
            for (place, free) in heads {
                let found = self.find(place, free).ok_or_else(|| missing(place))?;
                self.heads.swap_remove(found).append(layer);
            }
        }
        *self = Self::default();
        Ok(())
    }
}

fn missing(place: &Place<'_>) -> Error {
    Error::shape(format!("layer {} head {}", place.layer, place.head), "it was never finished")
}
