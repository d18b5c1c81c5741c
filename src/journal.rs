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

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::batch::Shard;
use crate::cache::{Capture, hexadecimal, unreadable, unwritable};
use crate::options::Target;
use crate::solver::{Finished, FinishedHead, Lengths, Observer, Outcome, Request};
use crate::{Error, Result};

/// How such a file begins.
const MAGIC: &[u8] = b"kvsculpt journal 1\n";
/// Bytes of a record beside its contents.
const AROUND: u64 = 1 + 8 + 8;
/// What is written is brought to the disk this often, for the case that the power goes; a process that dies loses nothing that is written.
const SYNC: Duration = Duration::from_secs(1);

/// What a journal's heads were made of and by: another origin may give other bytes.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
/// use kvsculpt::{journal::Origin, solver::Request};
///
/// let request = Request::default();
/// let origin = Origin::new(&capture, &request, "the CPU engine")?;
/// // Memory changes no byte of the result, so it is no part of the origin.
/// let less = Request { memory: Some(1 << 28), ..request };
/// assert_eq!(Origin::new(&capture, &less, "the CPU engine")?, origin);
/// # }
/// # Ok::<(), kvsculpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The release of this crate.
    tool: String,
    /// The capture's digest.
    source: String,
    /// Engine and adapter in words.
    machine: String,
    /// The options, as JSON.
    options: String,
    /// The rest that decides the result: layers, dtype, budgets and weights of the request, and what the capture says of itself.
    rest: String,
    /// Which part of the heads, where it is not all.
    #[serde(default)]
    shard: Option<String>,
}

impl Origin {
    /// What a compression of this capture is of. Memory is not part of it: it changes no byte.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// use kvsculpt::{journal::Origin, solver::Request};
    ///
    /// let (default, mut shorter) = (Request::default(), Request::default());
    /// shorter.options.keep = 0.2;
    /// assert_ne!(Origin::new(&capture, &default, "a GPU")?, Origin::new(&capture, &shorter, "a GPU")?);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// A capture that cannot be read.
    pub fn new(capture: &Capture, request: &Request, machine: &str) -> Result<Self> {
        let options = serde_json::to_string(&request.options)
            .map_err(|error| Error::file(&capture.path, format!("options cannot be written down: {error}")))?;
        // Lengths depend on what is written only where its bytes count.
        let written_as = request
            .written_as
            .filter(|_| matches!(request.options.target, Some(Target::Bytes(_))));
        // The metadata say how a capture's numbers are to be understood, and which queries stand in for its own.
        let rest = format!(
            "{:?}",
            (
                &request.layers,
                request.dtype,
                written_as,
                &request.budgets,
                &request.weights,
                &capture.metadata
            )
        );
        Ok(Self {
            tool: env!("CARGO_PKG_VERSION").into(),
            source: capture.digest()?,
            machine: machine.into(),
            options,
            rest: hexadecimal(&Sha256::digest(rest)),
            shard: None,
        })
    }

    /// The same, of these heads alone.
    ///
    /// ```
    /// # let capture = kvsculpt::cache::Capture::open("tests/data/smollm2-layer20.safetensors".as_ref())?;
    /// use kvsculpt::{batch::Shard, journal::Origin, solver::Request};
    ///
    /// let whole = Origin::new(&capture, &Request::default(), "a GPU")?;
    /// assert_ne!(whole.clone().of_shard(Shard::new(0, 2)?), whole);
    /// assert_eq!(whole.clone().of_shard(Shard::WHOLE), whole);
    /// # Ok::<(), kvsculpt::Error>(())
    /// ```
    #[must_use]
    pub fn of_shard(self, shard: Shard) -> Self {
        Self {
            shard: (shard != Shard::WHOLE).then(|| shard.to_string()),
            ..self
        }
    }

    /// What differs, for a sentence that begins with "of".
    fn difference(&self, wanted: &Self) -> Option<String> {
        if self.tool != wanted.tool {
            Some(format!("version {} of kvsculpt, and this is {}", self.tool, wanted.tool))
        } else if self.source != wanted.source {
            Some("another capture".into())
        } else if self.machine != wanted.machine {
            Some(format!("another machine ({}), and this is {}", self.machine, wanted.machine))
        } else if self.options != wanted.options {
            Some(format!("other options ({})", differing(&self.options, &wanted.options)))
        } else if self.rest != wanted.rest {
            Some("other layers, another dtype or format, other queries or facts about the capture, or other files of budgets or sensitivities".into())
        } else if self.shard != wanted.shard {
            let part = |of: &Self| {
                of.shard
                    .as_ref()
                    .map_or("all heads".to_owned(), |shard| format!("the heads of part {shard}"))
            };
            Some(format!("{}, and these are {}", part(self), part(wanted)))
        } else {
            None
        }
    }
}

/// The names of the options that differ.
fn differing(one: &str, other: &str) -> String {
    let read = |text: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).unwrap_or_default();
    let (one, other) = (read(one), read(other));
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    let names: Vec<&str> = names
        .filter(|name| one.get(*name) != other.get(*name))
        .map(String::as_str)
        .collect();
    names.join(", ")
}

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

/// What a file holds.
#[derive(Default)]
struct Contents {
    origin: Option<Origin>,
    finished: Finished,
    /// Bytes of whole records.
    length: u64,
}

/// A head's record, without its floats.
#[derive(Serialize, Deserialize)]
struct HeadRecord {
    outcome: Outcome,
    free: Vec<usize>,
    key: usize,
    value: usize,
    bias: Option<usize>,
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
        let is_another = |found: &Origin| found.difference(origin).is_some();
        if existing == Existing::Adopt && contents.origin.as_ref().is_some_and(is_another) {
            contents = Contents::default();
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
            dropped: if is_worthless { 0 } else { all - contents.length },
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
        let contents = self.cbor(origin)?;
        self.add(b'O', &contents)
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
        let contents = self.cbor(lengths)?;
        self.add(b'L', &contents)
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
        let record = self.cbor(&HeadRecord {
            outcome: head.outcome.clone(),
            free: head.free.clone(),
            key: head.key.len(),
            value: head.value.len(),
            bias: head.bias.as_ref().map(Vec::len),
        })?;
        let length = u32::try_from(record.len()).map_err(|_| Error::write(&self.path, "a head has too many chunks to be written down"))?;
        let mut contents = length.to_le_bytes().to_vec();
        contents.extend(record);
        for floats in [Some(&head.key), Some(&head.value), head.bias.as_ref()].into_iter().flatten() {
            contents.extend(floats.iter().flat_map(|float| float.to_le_bytes()));
        }
        self.add(b'H', &contents)
    }

    fn cbor(&self, contents: &impl Serialize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match ciborium::into_writer(contents, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(Error::write(&self.path, format!("a record cannot be made: {error}"))),
        }
    }

    fn add(&mut self, kind: u8, contents: &[u8]) -> Result<()> {
        if self.failed {
            return Err(Error::write(
                &self.path,
                "could not be written before; make room and begin again with --resume",
            ));
        }
        let mut record = vec![kind];
        record.extend((contents.len() as u64).to_le_bytes());
        record.extend(contents);
        let checksum = checksum(&record);
        record.extend(checksum);
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

fn checksum(record: &[u8]) -> [u8; 8] {
    let hash = Sha256::digest(record);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    first
}

/// Whether the file begins as a journal does; one that was never begun does not.
///
/// # Errors
/// [`Error::File`] where it is something else, which is not ours to change.
fn check_magic(path: &Path, file: &File, length: u64) -> Result<bool> {
    let mut begin = Vec::new();
    let read = file.take(MAGIC.len() as u64).read_to_end(&mut begin);
    read.map_err(|error| unreadable(path, &error))?;
    if !MAGIC.starts_with(&begin) || (begin.len() < MAGIC.len() && begin.len() as u64 != length) {
        return Err(Error::file(
            path,
            "is in the way: what is finished would be kept there, and it is no journal of kvsculpt of this version; move it away, or choose another path for --output",
        ));
    }
    Ok(begin.len() == MAGIC.len())
}

impl Contents {
    /// All whole records.
    fn read(path: &Path, file: &File, length: u64) -> Result<Self> {
        let mut contents = Self::default();
        if !check_magic(path, file, length)? {
            return Ok(contents);
        }
        contents.length = MAGIC.len() as u64;
        let mut reader = BufReader::new(file);
        while let Some(record) = whole_record(&mut reader, length - contents.length).map_err(|error| unreadable(path, &error))? {
            if contents.take(record[0], &record[9..]).is_none() {
                break;
            }
            contents.length += record.len() as u64 + 8;
        }
        Ok(contents)
    }

    /// Takes a record up; `None` where it is not what it should be.
    fn take(&mut self, kind: u8, contents: &[u8]) -> Option<()> {
        match (kind, &self.origin) {
            (b'O', None) => self.origin = Some(ciborium::from_reader(contents).ok()?),
            (b'L', Some(_)) => self.finished.lengths = Some(ciborium::from_reader(contents).ok()?),
            (b'H', Some(_)) => self.finished.heads.push(head(contents)?),
            _ => return None,
        }
        Some(())
    }
}

/// The next record without its checksum, of a file of which so many bytes are left; `None` where none is, or none that is whole.
fn whole_record(reader: &mut impl Read, left: u64) -> std::io::Result<Option<Vec<u8>>> {
    if left < AROUND {
        return Ok(None);
    }
    let mut record = vec![0; 9];
    reader.read_exact(&mut record)?;
    let mut length = [0; 8];
    length.copy_from_slice(&record[1..]);
    let length = u64::from_le_bytes(length);
    if length > left - AROUND {
        return Ok(None);
    }
    reader.take(length).read_to_end(&mut record)?;
    let mut found = [0; 8];
    reader.read_exact(&mut found)?;
    Ok((found == checksum(&record)).then_some(record))
}

/// The head of a record.
fn head(contents: &[u8]) -> Option<FinishedHead> {
    let (length, rest) = contents.split_first_chunk()?;
    let (record, mut rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let record: HeadRecord = ciborium::from_reader(record).ok()?;
    let mut floats = |count: usize| {
        let (mine, others) = rest.split_at_checked(count.checked_mul(4)?)?;
        rest = others;
        Some(
            mine.as_chunks()
                .0
                .iter()
                .map(|&float| f32::from_le_bytes(float))
                .collect::<Vec<f32>>(),
        )
    };
    let (key, value) = (floats(record.key)?, floats(record.value)?);
    let bias = match record.bias {
        Some(count) => Some(floats(count)?),
        None => None,
    };
    rest.is_empty().then_some(FinishedHead {
        outcome: record.outcome,
        free: record.free,
        key,
        value,
        bias,
    })
}

#[cfg(test)]
mod tests;
