//! Nothing is lost: whatever ends a run, the next goes on from what was finished, and the files are those of one that nothing ended.

#![cfg(unix)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::workplace::{refused, succeeded, text};

/// A folder to write in.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn output(&self) -> PathBuf {
        self.path("short.safetensors")
    }

    fn journal(&self) -> PathBuf {
        self.path("short.safetensors.partial")
    }

    /// The bundled capture, head by head on the CPU engine; without the runner of other tests, which may not hand signals on.
    fn program(&self, more: &[&str]) -> Command {
        let capture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/smollm2-layer20.safetensors");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvsculpt"));
        command.arg("compress").arg(capture).arg("--output").arg(self.output());
        command.args(["--engine", "cpu", "--keep", "0.1", "--iterations", "2"]);
        for [option, value] in [["--steps", "8"], ["--tolerance", "0"], ["--budget", "uniform"]] {
            if !more.contains(&option) {
                command.args([option, value]);
            }
        }
        if !more.contains(&"--memory") {
            // The least that the request gets along with, and so one head at a time.
            command.args(["--memory", MEMORY.get_or_init(|| memory(&command))]);
        }
        command.args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.program(more).output().expect("the program starts")
    }

    fn start(&self, more: &[&str]) -> Child {
        self.program(more).spawn().expect("the program starts")
    }

    /// Starts it, or has it go on from a journal that is there, and stops it where one head is finished and the others are not.
    /// However late this looks, the run it gives is such a one: what was over too soon is started again.
    fn stopped_behind_a_head(&self, more: &[&str]) -> Child {
        let left = fs::read(self.journal()).ok();
        for _ in 0..100 {
            let mut child = self.start(more);
            if left.is_some() {
                // It listens to signals from before it says so.
                let mut note = [0; 20];
                child.stderr.as_mut().expect("a pipe").read_exact(&mut note).expect("a note");
                assert_eq!(&note, b"note: going on from ");
            }
            while self.finished() == 0 && child.try_wait().expect("its state").is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            signal(&child, "-STOP");
            if child.try_wait().expect("its state").is_none() && self.finished() == 1 {
                return child;
            }
            let _ = child.kill();
            child.wait().expect("its end");
            let _ = fs::remove_file(self.output());
            match &left {
                Some(left) => fs::write(self.journal(), left).expect("as it was"),
                None => fs::remove_file(self.journal()).unwrap_or_default(),
            }
        }
        panic!("no run was between its first head and its second when it was looked at");
    }

    /// Leaves what a run leaves that is killed when a head is finished and another is not.
    fn killed_behind_a_head(&self, more: &[&str]) {
        let mut child = self.stopped_behind_a_head(more);
        child.kill().expect("killed");
        child.wait().expect("its end");
        assert!(!self.output().exists());
    }

    /// The heads that are in the journal: more bytes than the lengths take, and about this many a head.
    fn finished(&self) -> u64 {
        fs::metadata(self.journal()).map_or(0, |about| about.len()) / HEAD_BYTES
    }

    /// The bytes of a run that nothing ends, in a folder of its own, and how long it took.
    fn wanted(more: &[&str]) -> (Vec<u8>, Duration) {
        let place = Self::new();
        // What it takes to know the least memory is not the run's.
        let mut program = place.program(more);
        let begun = Instant::now();
        succeeded(&program.output().expect("the program starts"));
        assert!(!place.journal().exists(), "it is not needed any more");
        (fs::read(place.output()).expect("the output"), begun.elapsed())
    }
}

/// The pairs of one finished head in a journal: 204 keys and values of 64 channels in four bytes each.
const HEAD_BYTES: u64 = 204 * 64 * 2 * 4;

/// Sends it a signal; no error where it is over already.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .stderr(Stdio::null())
        .status();
    sent.expect("`kill` is there");
}

/// What one head takes on this machine.
static MEMORY: OnceLock<String> = OnceLock::new();

/// The least memory that the program takes for this command: it says what it needs where there is less.
fn memory(command: &Command) -> String {
    let mut memory = "1".to_owned();
    loop {
        let mut probe = Command::new(command.get_program());
        probe.args(command.get_args()).args(["--memory", &memory]).stdin(Stdio::null());
        let probe = probe.output().expect("the program starts");
        if probe.status.success() {
            return memory;
        }
        let said = text(&probe.stderr);
        let needs = said.split("needs ").nth(1).and_then(|rest| rest.split(' ').next());
        memory = needs.unwrap_or_else(|| panic!("{said}")).to_owned();
    }
}

/// Steps enough that a head takes a while.
const LONG: [&str; 2] = ["--steps", "60"];
/// A disk that takes no file as large as the output, of which a head or two fit; all heads at once, their lengths by curves.
const LARGE: [&str; 6] = ["--dtype", "f32", "--budget", "head", "--memory", "2GiB"];

/// Went on from what was there, and says so.
fn resumed(output: &Output) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("note: going on from ") && said.lines().count() == 1, "{said}");
}

/// What is said last may have nowhere to go: the output is whole by then, and nothing is unfinished.
#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_leaves_no_journal() {
    let place = Place::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    let output = place.program(&["--steps", "2"]).stdout(full).output().expect("the program starts");
    refused(&output, 6, &["standard output"]);
    assert!(place.output().exists() && !place.journal().exists());
    let again = place.program(&["--steps", "2"]).output().expect("the program starts");
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
}

#[test]
fn a_run_killed_at_any_moment_goes_on_with_the_same_bytes() {
    let (wanted, whole) = Place::wanted(&[]);
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a time after 1970")
        .subsec_nanos();
    println!("seed {seed}, a run takes {whole:?}");
    let mut random = fastrand::Rng::with_seed(seed.into());
    let mut kept = 0;
    for kill in 0..10 {
        let place = Place::new();
        let moment = whole.mul_f64(random.f64());
        let mut child = place.start(&[]);
        std::thread::sleep(moment);
        child.kill().expect("killed, or over already");
        let ended = child.wait().expect("its end");
        let finished = place.finished();
        println!("kill {kill} at {moment:?}: {ended}, {finished} finished heads");
        kept += u32::from(finished > 0);
        let again = place.run(&["--resume"]);
        assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
        assert!(fs::read(place.output()).expect("the output") == wanted, "killed at {moment:?}");
        assert!(!place.journal().exists());
    }
    println!("{kept} of 10 went on from finished heads");
}

#[test]
fn an_interrupt_keeps_what_is_finished_and_says_how_to_go_on() {
    let place = Place::new();
    let more = |place: &Place, names: [&str; 2]| -> Vec<String> {
        let (budgets, page) = (place.path(names[0]), place.path(names[1]));
        let text = |path: PathBuf| path.to_str().expect("a path of letters").to_owned();
        let mut more: Vec<String> = LONG.iter().map(|&argument| argument.to_owned()).collect();
        more.extend(["--save-budgets".into(), text(budgets), "--report".into(), text(page)]);
        more
    };
    let arguments = more(&place, ["budgets.json", "page.html"]);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let interrupted = |child: Child, code: i32| {
        let ended = child.wait_with_output().expect("its end");
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{said}");
        let last = said.lines().last().expect("a sentence");
        assert!(
            last.starts_with("error: interrupted; ") && last.contains("--resume") && last.contains("finished head"),
            "{said}"
        );
        assert!(place.journal().exists() && !place.output().exists());
    };
    let child = place.stopped_behind_a_head(&arguments);
    let left = fs::read(place.journal()).expect("the journal");
    signal(&child, "-INT");
    signal(&child, "-CONT");
    interrupted(child, 130);
    // The interrupt may have come after another head.
    fs::write(place.journal(), left).expect("one head");
    arguments.push("--resume");
    let child = place.stopped_behind_a_head(&arguments);
    signal(&child, "-TERM");
    signal(&child, "-CONT");
    interrupted(child, 143);
    resumed(&place.run(&arguments));
    let whole = Place::new();
    let wanted = more(&whole, ["budgets.json", "page.html"]);
    succeeded(&whole.run(&wanted.iter().map(String::as_str).collect::<Vec<_>>()));
    for name in ["short.safetensors", "budgets.json"] {
        assert!(
            fs::read(place.path(name)).expect(name) == fs::read(whole.path(name)).expect(name),
            "{name} differs"
        );
    }
    assert!(place.path("page.html").exists());
    assert!(!place.journal().exists());
}

#[test]
fn what_was_finished_is_neither_thrown_away_nor_mixed_with_other_work() {
    let place = Place::new();
    let mut child = place.stopped_behind_a_head(&LONG);
    // While it is written nobody else may have it.
    for more in [&[][..], &["--resume"], &["--restart"]] {
        refused(&place.run(more), 3, &["short.safetensors.partial", "another kvsculpt", "--output"]);
    }
    child.kill().expect("killed");
    child.wait().expect("its end");
    let before = fs::read(place.journal()).expect("the journal");
    refused(&place.run(&LONG), 3, &["short.safetensors.partial", "--resume", "--restart"]);
    refused(&place.run(&["--resume"]), 3, &["other options (", "steps", "--restart"]);
    assert_eq!(place.run(&["--resume", "--restart"]).status.code(), Some(2));
    assert!(
        before == fs::read(place.journal()).expect("the journal"),
        "who is refused changes nothing"
    );
    assert!(!place.output().exists());
    let (wanted, _) = Place::wanted(&[]);
    succeeded(&place.run(&["--restart"]));
    assert!(fs::read(place.output()).expect("the output") == wanted);
    // With nothing to go on from it just starts.
    succeeded(&place.run(&["--resume"]));
    fs::write(place.journal(), "a letter").expect("written");
    refused(&place.run(&["--restart"]), 3, &["short.safetensors.partial", "in the way"]);
}

#[test]
fn a_full_disk_leaves_no_output_and_keeps_what_fits() {
    let place = Place::new();
    let (wanted, _) = Place::wanted(&LARGE);
    let program = place.program(&LARGE);
    // The limit is in blocks of 512 bytes; without the trap the signal that comes with it would end the program.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 320; exec \"$0\" \"$@\""]);
    limited.arg(program.get_program()).args(program.get_args());
    let ended = limited.stdin(Stdio::null()).output().expect("the program starts");
    let said = text(&ended.stderr);
    assert_eq!((ended.status.code(), text(&ended.stdout)), (Some(6), ""), "{said}");
    assert!(said.contains("the work goes on") && said.contains("--resume"), "{said}");
    let last = said.lines().last().expect("a sentence");
    assert!(
        last.starts_with("error: ") && last.contains("short.safetensors: cannot be written"),
        "{said}"
    );
    assert!(!place.output().exists());
    let files = fs::read_dir(place.0.path()).expect("the folder").count();
    assert_eq!(files, 1, "nothing but the journal was left behind");
    let mut again = LARGE.to_vec();
    again.push("--resume");
    resumed(&place.run(&again));
    assert!(fs::read(place.output()).expect("the output") == wanted);
}

/// A job runner starts a part that was killed again as it did first.
#[test]
fn a_part_that_is_killed_goes_on_by_itself_with_the_same_bytes() {
    // Two of the three heads, of which one is finished by then.
    let first = [&LONG[..], &["--shard", "0/2"]].concat();
    let (wanted, _) = Place::wanted(&first);
    let place = Place::new();
    place.killed_behind_a_head(&first);
    let second = place.run(&[&LONG[..], &["--shard", "1/2", "--resume"]].concat());
    refused(&second, 3, &["part 0/2", "part 1/2", "--restart"]);
    let left = fs::read(place.journal()).expect("the journal");
    for again in [&[][..], &["--resume"]] {
        fs::write(place.journal(), &left).expect("as it was left");
        resumed(&place.run(&[&first[..], again].concat()));
        assert!(fs::read(place.output()).expect("the part") == wanted, "{again:?}");
        assert!(!place.journal().exists());
        fs::remove_file(place.output()).expect("removed");
    }
    // What is of other heads is nothing to go on from.
    fs::write(place.journal(), &left).expect("as it was left");
    let second = [&LONG[..], &["--shard", "1/2"]].concat();
    succeeded(&place.run(&second));
    assert!(fs::read(place.output()).expect("the part") == Place::wanted(&second).0);
}

#[test]
fn a_run_on_guessed_queries_goes_on_with_the_same_guesses() {
    let guessed = [&LONG[..], &["--queries", "keys", "--method", "kvsculpt"]].concat();
    let (wanted, _) = Place::wanted(&guessed);
    let place = Place::new();
    place.killed_behind_a_head(&guessed);
    refused(&place.run(&[&LONG[..], &["--resume"]].concat()), 3, &["other queries", "--restart"]);
    resumed(&place.run(&[&guessed[..], &["--resume"]].concat()));
    assert!(fs::read(place.output()).expect("the output") == wanted);
}
