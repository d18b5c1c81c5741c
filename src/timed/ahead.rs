//! Uploads that are counted on whatever thread they are made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Traffic;
use crate::engine::Uploader;
use crate::error::Result;

/// What was uploaded while the machine worked.
#[derive(Debug, Default)]
pub(super) struct Counts {
    arrays: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    fn add<A>(&self, data: &[f32], uploaded: Result<A>) -> Result<A> {
        let array = uploaded?;
        self.arrays.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(4 * data.len() as u64, Ordering::Relaxed);
        Ok(array)
    }

    /// Traffic with this in it.
    pub(super) fn added_to(&self, traffic: Traffic) -> Traffic {
        let (arrays, bytes) = (self.arrays.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        Traffic {
            writes: traffic.writes + arrays,
            bytes_written: traffic.bytes_written + bytes,
            writes_ahead: traffic.writes_ahead + arrays,
            bytes_ahead: traffic.bytes_ahead + bytes,
            ..traffic
        }
    }
}

/// An uploader whose arrays are counted.
pub(super) struct Counted<A> {
    uploader: Box<dyn Uploader<A> + Send>,
    counts: Arc<Counts>,
}

impl<A> Counted<A> {
    pub(super) fn new(uploader: Box<dyn Uploader<A> + Send>, counts: Arc<Counts>) -> Self {
        Self { uploader, counts }
    }
}

impl<A> Uploader<A> for Counted<A> {
    fn upload(&mut self, label: &'static str, data: &[f32]) -> Result<A> {
        self.counts.add(data, self.uploader.upload(label, data))
    }

    fn upload_compact(&mut self, label: &'static str, data: &[f32]) -> Result<A> {
        self.counts.add(data, self.uploader.upload_compact(label, data))
    }
}
