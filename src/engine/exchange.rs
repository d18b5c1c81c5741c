//! What goes to a device and comes back.

#[cfg(doc)]
use super::Engine;
use crate::error::Result;

/// What has gone to a device and come back, counted where it happens: tables count too, and compact arrays as they are stored.
///
/// ```
/// use kvsculpt::engine::Exchange;
///
/// let exchange = Exchange { reads: 2, bytes_read: 128, ..Exchange::default() };
/// assert_eq!(exchange.bytes_read / exchange.reads, 64);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Exchange {
    /// Portions of work handed over.
    pub submissions: u64,
    /// Waits for something to be read back.
    pub reads: u64,
    /// Bytes read back.
    pub bytes_read: u64,
    /// Uploads, of whole arrays and tables or to overwrite them.
    pub writes: u64,
    /// Bytes of those.
    pub bytes_written: u64,
}

impl Exchange {
    /// Each count of this and of another, put together.
    pub(crate) fn with(self, other: Self, of: fn(u64, u64) -> u64) -> Self {
        Self {
            submissions: of(self.submissions, other.submissions),
            reads: of(self.reads, other.reads),
            bytes_read: of(self.bytes_read, other.bytes_read),
            writes: of(self.writes, other.writes),
            bytes_written: of(self.bytes_written, other.bytes_written),
        }
    }
}

/// Makes arrays for an engine on a thread that is not the engine's.
///
/// An array is the engine's from when it is handed to the engine's thread: what the engine is told after that finds it written. What is
/// under way on the engine meanwhile does not change by it. A failure here is not the engine's: the engine may be asked for the same
/// array, and fails itself where the machine does.
///
/// ```
/// use kvsculpt::engine::{Engine, Uploader};
///
/// /// Two arrays, the second uploaded while the engine works on the first.
/// fn pair<E: Engine>(engine: &mut E, first: &[f32], second: &[f32]) -> kvsculpt::Result<[E::Array; 2]> {
///     let Some(mut uploader) = engine.uploader() else {
///         return Ok([engine.upload("first", first)?, engine.upload("second", second)?]);
///     };
///     std::thread::scope(|scope| {
///         let ahead = scope.spawn(move || uploader.upload("second", second));
///         let first = engine.upload("first", first)?;
///         Ok([first, ahead.join().expect("it does not panic")?])
///     })
/// }
/// # #[cfg(feature = "cpu")] {
/// # let mut engine = kvsculpt::cpu::CpuEngine::new();
/// let [_, second] = pair(&mut engine, &[1.0], &[2.0, 3.0])?;
/// assert_eq!(engine.read(&second)?, [2.0, 3.0]);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
pub trait Uploader<A> {
    /// As [`Engine::upload`].
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes; lost device.
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<A>;

    /// As [`Engine::upload_compact`].
    ///
    /// ```
    /// use kvsculpt::engine::Uploader;
    ///
    /// /// Has nothing smaller to store numbers in.
    /// struct Host;
    ///
    /// impl Uploader<Vec<f32>> for Host {
    ///     fn upload(&mut self, _: &'static str, data: &[f32]) -> kvsculpt::Result<Vec<f32>> {
    ///         Ok(data.to_vec())
    ///     }
    /// }
    /// assert_eq!(Host.upload_compact("keys", &[0.5])?, [0.5]);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Out of memory, naming the array and its bytes; lost device.
    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<A> {
        self.upload(label, data)
    }
}
