//! A file of what is finished, written while the work goes on: whatever ends a compression, the next one goes on from there.
//!
//! ```
//! # #[cfg(feature = "cpu")] {
//! # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
//! use kvsculpt::{cpu::CpuEngine, engine::Engine as _, journal::{Existing, Journal, Origin}, solver::{Request, compress_from}};
//!
//! let mut request = Request::default();
//! # request.options.method = kvsculpt::options::Method::Select;
//! # request.options.budget = kvsculpt::options::Scope::Uniform;
//! # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
//! # let output = folder.path().join("short.safetensors");
//! let mut engine = CpuEngine::new();
//! let origin = Origin::new(&capture, &request, &engine.name())?;
//! let mut opened = Journal::open(&Journal::path_of(&output), &origin, Existing::Resume)?;
//! let short = compress_from(&mut engine, &capture, &request, &mut opened.finished, &mut opened.journal)?;
//! short.compressed.write(&output)?;
//! opened.journal.remove()?;
//! # }
//! # Ok::<(), kvsculpt::Error>(())
//! ```
//!
//! # The format
//!
//! `kvsculpt journal 1` and a line feed; then records, each
//!
//! | bytes | |
//! |---|---|
//! | 1 | kind: `O` origin, `L` lengths, `H` head |
//! | 8 | bytes of the contents, little-endian |
//! | … | contents |
//! | 8 | the first bytes of the SHA-256 of all before |
//!
//! The first record is the [`Origin`]. Origin and lengths are CBOR, which keeps every number as it is, those that are not finite too. A head is
//! four bytes that say how long its CBOR is (outcome, free pairs, and how many floats of keys, values and biases follow), the CBOR, and the
//! floats, little-endian. Records are added and never changed. One that is cut off or damaged ends the file: it and what follows is
//! dropped. Of two heads of the same free pairs either will do.

mod origin;
mod record;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use origin::Origin;
use record::{Contents, MAGIC, cbor, check_magic, record};

use crate::cache::{unreadable, unwritable};
use crate::solver::{Finished, FinishedHead, Lengths, Observer};
use crate::{Error, Result};

/// What is written is brought to the disk this often, for the case that the power goes; a process that dies loses nothing that is written.
const SYNC: Duration = Duration::from_secs(1);

/// What to do with a journal that is there already.
///
/// ```
/// use kvsculpt::journal::Existing;
///
/// // As the program's flags --resume and --restart have it.
/// fn existing(resume: bool, restart: bool) -> Existing {
///     match (resume, restart) {
///         (true, _) => Existing::Resume,
///         (_, true) => Existing::Restart,
///         _ => Existing::Refuse,
///     }
/// }
/// assert_eq!(existing(false, false), Existing::Refuse);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing: it is refused, unless nothing is finished in it.
    Refuse,
    /// Go on from it.
    Resume,
    /// Go on from it where it is of the same origin, else begin anew.
    Adopt,
    /// Begin anew, and lose what is in it.
    Restart,
}

/// A journal being written. No other process can write it meanwhile.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// use kvsculpt::{Error, journal::{Existing, Journal, Origin}, solver::Request};
///
/// let origin = Origin::new(&capture, &Request::default(), "a GPU")?;
/// let path = Journal::path_of(&folder.path().join("short.safetensors"));
/// let opened = Journal::open(&path, &origin, Existing::Refuse)?;
/// // While it is held no other process, and nobody here, writes the same output.
/// assert!(matches!(Journal::open(&path, &origin, Existing::Resume), Err(Error::File { .. })));
/// opened.journal.remove()?;
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    length: u64,
    synced: Instant,
    /// It could not be written any more.
    failed: bool,
}

/// A journal just opened.
///
/// ```
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
/// # let path = folder.path().join("short.safetensors.partial");
/// use kvsculpt::{journal::{Existing, Journal, Origin}, solver::Request};
///
/// let origin = Origin::new(&capture, &Request::default(), "a GPU")?;
/// let opened = Journal::open(&path, &origin, Existing::Resume)?;
/// println!("going on from {} finished heads", opened.finished.heads.len());
/// assert_eq!((opened.finished.heads.len(), opened.dropped), (0, 0));
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Opened {
    /// The journal, to be told of what is finished from here on.
    pub journal: Journal,
    /// What was finished in it.
    pub finished: Finished,
    /// Bytes at its end that were cut off or damaged, and dropped.
    pub dropped: u64,
}

impl Journal {
    /// The journal of a file to be written: beside it, with `.partial` behind its name.
    ///
    /// ```
    /// use std::path::Path;
    /// use kvsculpt::journal::Journal;
    ///
    /// assert_eq!(Journal::path_of(Path::new("out/short.safetensors")), Path::new("out/short.safetensors.partial"));
    /// ```
    #[must_use]
    pub fn path_of(output: &Path) -> PathBuf {
        let mut name = output.as_os_str().to_owned();
        name.push(".partial");
        name.into()
    }

    /// Opens a journal, or begins one where none is.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
    /// # let path = folder.path().join("short.safetensors.partial");
    /// use kvsculpt::{journal::{Existing, Journal, Origin}, solver::{Lengths, Request}};
    ///
    /// let origin = Origin::new(&capture, &Request::default(), "a GPU")?;
    /// let mut journal = Journal::open(&path, &origin, Existing::Refuse)?.journal;
    /// # let lengths: Lengths = serde_json::from_str(r#"{"free": [[10]], "curves": [], "parts": []}"#).unwrap();
    /// journal.add_lengths(&lengths)?;
    /// drop(journal);
    /// // Something is in it now, so it has to be said what becomes of that.
    /// assert!(Journal::open(&path, &origin, Existing::Refuse).is_err());
    /// assert!(Journal::open(&path, &origin, Existing::Restart)?.finished.lengths.is_none());
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::File`]: one that is there and not to be used, of another origin, in use by another process, or no journal;
    /// [`Error::Write`] where it cannot be begun.
    pub fn open(path: &Path, origin: &Origin, existing: Existing) -> Result<Opened> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| failure(path, &error))?;
        // A file system without locks is no reason not to work.
        if matches!(fs4::FileExt::try_lock(&file), Err(fs4::TryLockError::WouldBlock)) {
            return Err(Error::file(
                path,
                "is in use by another kvsculpt that writes the same output; wait for it, or choose another path for --output",
            ));
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let place = |about: std::fs::Metadata| (about.dev(), about.ino());
            let opened = file.metadata().map_err(|error| unreadable(path, &error))?;
            if std::fs::metadata(path).ok().map(place) != Some(place(opened)) {
                // Its owner took it away just now, between our opening and our locking.
                return Self::open(path, origin, existing);
            }
        }
        let all = file.metadata().map_err(|error| unreadable(path, &error))?.len();
        let mut contents = if existing == Existing::Restart {
            check_magic(path, &file, all)?;
            Contents::default()
        } else {
            Contents::read(path, &file, all)?
        };
        // A journal whose very beginning is damaged holds nothing that can be told of, and is dropped whole.
        let mut dropped = all - contents.length;
        let is_another = |found: &Origin| found.difference(origin).is_some();
        if existing == Existing::Adopt && contents.origin.as_ref().is_some_and(is_another) {
            contents = Contents::default();
            dropped = 0;
        }
        let heads = contents.finished.heads.len();
        let is_worthless = heads == 0 && contents.finished.lengths.is_none();
        if is_worthless {
            contents = Contents::default();
        }
        if existing == Existing::Refuse && !is_worthless {
            let what = match heads {
                0 => "its lengths".to_owned(),
                1 => "1 head".to_owned(),
                heads => format!("{heads} heads"),
            };
            return Err(Error::file(
                path,
                format!("holds what an interrupted run had finished ({what}); --resume goes on from it, --restart begins anew"),
            ));
        }
        if let Some(difference) = contents.origin.as_ref().and_then(|found| found.difference(origin)) {
            return Err(Error::file(
                path,
                format!("is of {difference}; give the same again, or --restart to begin anew"),
            ));
        }
        let mut journal = Self {
            path: path.to_owned(),
            file,
            length: contents.length,
            synced: Instant::now(),
            failed: false,
        };
        journal.cut()?;
        if contents.origin.is_none() {
            journal.begin(origin)?;
        }
        Ok(Opened {
            journal,
            finished: contents.finished,
            dropped: if existing == Existing::Restart { 0 } else { dropped },
        })
    }

    /// Where it is.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
    /// # let path = folder.path().join("short.safetensors.partial");
    /// # use kvsculpt::{journal::{Existing, Journal, Origin}, solver::Request};
    /// # let origin = Origin::new(&capture, &Request::default(), "a GPU")?;
    /// let journal = Journal::open(&path, &origin, Existing::Refuse)?.journal;
    /// assert_eq!(journal.path(), path);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn begin(&mut self, origin: &Origin) -> Result<()> {
        let begun = self.file.write_all(MAGIC);
        begun.map_err(|error| failure(&self.path, &error))?;
        self.length = MAGIC.len() as u64;
        self.add(b'O', cbor(origin))
    }

    /// Cuts off what is behind the whole records.
    fn cut(&mut self) -> Result<()> {
        let cut = self
            .file
            .set_len(self.length)
            .and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
        cut.map(drop).map_err(|error| failure(&self.path, &error))
    }

    /// Adds the lengths that were decided.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
    /// # let path = folder.path().join("short.safetensors.partial");
    /// # use kvsculpt::{journal::{Existing, Journal, Origin}, solver::Request};
    /// # let origin = Origin::new(&capture, &Request::default(), "a GPU")?;
    /// use kvsculpt::solver::Lengths;
    ///
    /// // As `Observer::decided` is told: two heads, the second in two chunks.
    /// let lengths: Lengths = serde_json::from_str(r#"{"free": [[10], [7, 12]], "curves": [], "parts": []}"#).unwrap();
    /// let mut journal = Journal::open(&path, &origin, Existing::Refuse)?.journal;
    /// journal.add_lengths(&lengths)?;
    /// drop(journal);
    /// assert_eq!(Journal::open(&path, &origin, Existing::Resume)?.finished.lengths, Some(lengths));
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Write`]; the journal is as it was then, and takes nothing more.
    pub fn add_lengths(&mut self, lengths: &Lengths) -> Result<()> {
        self.add(b'L', cbor(lengths))
    }

    /// Adds a head that is finished.
    ///
    /// ```
    /// # #[cfg(feature = "cpu")] {
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
    /// # let path = folder.path().join("short.safetensors.partial");
    /// # use kvsculpt::{cpu::CpuEngine, journal::{Existing, Journal, Origin}, solver::{Finished, FinishedHead, Observer, Request, compress_from}};
    /// # let mut request = Request { at_once: Some(1), ..Request::default() };
    /// # request.options.method = kvsculpt::options::Method::Select;
    /// # request.options.budget = kvsculpt::options::Scope::Uniform;
    /// # let origin = Origin::new(&capture, &request, "the CPU engine")?;
    /// struct First(Option<FinishedHead>);
    /// impl Observer for First {
    ///     fn finished(&mut self, head: &FinishedHead) -> kvsculpt::Result<()> {
    ///         self.0 = Some(head.clone());
    ///         Err(kvsculpt::Error::Cancelled)
    ///     }
    /// }
    /// let mut first = First(None);
    /// let _ = compress_from(&mut CpuEngine::new(), &capture, &request, &mut Finished::default(), &mut first);
    /// let head = first.0.expect("one was finished");
    ///
    /// let mut journal = Journal::open(&path, &origin, Existing::Refuse)?.journal;
    /// journal.add_head(&head)?;
    /// drop(journal);
    /// assert_eq!(Journal::open(&path, &origin, Existing::Resume)?.finished.heads, [head]);
    /// # }
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Write`]; the journal is as it was then, and takes nothing more.
    pub fn add_head(&mut self, head: &FinishedHead) -> Result<()> {
        self.add(b'H', record::head(head))
    }

    fn add(&mut self, kind: u8, contents: Result<Vec<u8>, String>) -> Result<()> {
        if self.failed {
            return Err(Error::write(
                &self.path,
                "could not be written before; make room and begin again with --resume",
            ));
        }
        let contents = contents.map_err(|reason| Error::write(&self.path, reason))?;
        let record = record(kind, &contents);
        let written = self.file.write_all(&record).and_then(|()| {
            if self.synced.elapsed() < SYNC {
                return Ok(());
            }
            self.synced = Instant::now();
            self.file.sync_data()
        });
        if let Err(error) = written {
            self.failed = true;
            // Where not even this can be done, the checksum tells.
            let _ = self.cut();
            return Err(failure(&self.path, &error));
        }
        self.length += record.len() as u64;
        Ok(())
    }

    /// Takes the journal away, once what it was kept for is written.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// # let folder = tempfile::tempdir().map_err(|error| kvsculpt::Error::Panicked(error.to_string()))?;
    /// # let path = folder.path().join("short.safetensors.partial");
    /// # use kvsculpt::{journal::{Existing, Journal, Origin}, solver::Request};
    /// # let origin = Origin::new(&capture, &Request::default(), "a GPU")?;
    /// let journal = Journal::open(&path, &origin, Existing::Refuse)?.journal;
    /// // Once the output itself is written:
    /// journal.remove()?;
    /// assert!(!path.exists());
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Write`] where the folder does not let it go.
    pub fn remove(self) -> Result<()> {
        let Self { path, file, .. } = self;
        // Some systems remove no open file.
        drop(file);
        std::fs::remove_file(&path).map_err(|error| failure(&path, &error))
    }
}

/// Writes down all it is told; an error of the file ends the work.
impl Observer for Journal {
    fn decided(&mut self, lengths: &Lengths) -> Result<()> {
        self.add_lengths(lengths)
    }

    fn finished(&mut self, head: &FinishedHead) -> Result<()> {
        self.add_head(head)
    }
}

/// What an error of the system while writing the journal is to its user.
fn failure(path: &Path, error: &std::io::Error) -> Error {
    match unwritable(path, error) {
        Error::Write { path, .. } => Error::write(path, format!("cannot be written: {error}")),
        other => other,
    }
}
