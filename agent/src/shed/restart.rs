//! A restart without a gap: the same program, with the same arguments, has the listeners of this
//! process, and its descriptor of /metrics. That the next generation accepts, it has to say; until
//! then, and where it does not, this one goes on.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs, future, io, mem,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{self, Path, PathBuf},
    pin::Pin,
    process::{Child, Command},
};

use backlogd_shed::{Generation, GenerationError, HandoverError, Handovers};
use tokio::{sync::watch, task};

/// What the socket for scrapes is called among those of listeners where it is inherited: by the
/// generation before, and by systemd, of the unit that comes with the agent.
pub const SCRAPES: [&str; 2] = ["/metrics", "backlogd.socket"];

/// Starts the next generation, one at a time.
#[derive(Debug)]
pub struct Restart {
    program: PathBuf,
    arguments: Vec<OsString>,
    number: u64,
    handovers: watch::Sender<Handovers>,
    state: State,
}

/// A generation that tried to hand over, and what came of it.
type Ended = (Generation, Result<Child, HandoverError>);

enum State {
    /// This generation serves.
    Serves(Generation),
    /// The next one starts.
    Starts(Pin<Box<dyn Future<Output = Ended>>>),
    /// The next one serves.
    Over,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serves(_) => "Serves",
            Self::Starts(_) => "Starts",
            Self::Over => "Over",
        })
    }
}

/// What there is to know of a process whose listeners go from generation to generation.
#[derive(Clone, Debug)]
pub struct Generations {
    /// How many there were before this one.
    pub number: u64,
    /// How the handovers of this one ended.
    pub handovers: watch::Receiver<Handovers>,
}

impl Restart {
    /// Of `generation`, which has listeners. To be called before the file of this program may be
    /// replaced.
    ///
    /// # Errors
    /// It is not known which file that is.
    pub fn new(generation: Generation) -> io::Result<Self> {
        let mut arguments = env::args_os();
        let program = program(arguments.next().as_deref())?;
        Ok(Self {
            program,
            arguments: arguments.collect(),
            number: generation.number(),
            handovers: watch::Sender::new(generation.handovers()),
            state: State::Serves(generation),
        })
    }

    /// What is known of it, from anywhere.
    #[must_use]
    pub fn watch(&self) -> Generations {
        Generations { number: self.number, handovers: self.handovers.subscribe() }
    }

    /// Tells the generation before, if there is one, that this one accepts.
    ///
    /// # Errors
    /// That one is gone.
    pub fn ready(&mut self) -> Result<(), GenerationError> {
        match &mut self.state {
            State::Serves(generation) => generation.ready(),
            State::Starts(_) | State::Over => Ok(()),
        }
    }

    /// Starts the next generation. `false`: it starts already.
    pub fn begin(&mut self) -> bool {
        match mem::replace(&mut self.state, State::Over) {
            State::Serves(mut generation) => {
                let mut command = Command::new(&self.program);
                // a watchdog is fed by whoever is the service's main process
                command.args(&self.arguments).env_remove("WATCHDOG_PID");
                self.state = State::Starts(Box::pin(async move {
                    let result = generation.hand_over(command).await;
                    (generation, result)
                }));
                true
            }
            other @ (State::Starts(_) | State::Over) => {
                self.state = other;
                false
            }
        }
    }

    /// Ends when the next generation accepts, or is gone; where none starts, never. It may be
    /// cancelled: nothing is lost.
    ///
    /// # Errors
    /// The next generation is gone. This one goes on.
    pub async fn ended(&mut self) -> Result<Child, HandoverError> {
        let State::Starts(starts) = &mut self.state else { return future::pending().await };
        let (generation, result) = starts.await;
        self.handovers.send_replace(generation.handovers());
        self.state = match &result {
            Ok(_) => State::Over,
            Err(_) => State::Serves(generation),
        };
        result
    }

    /// Has none start any more, since this one is told to end: the next generation is killed, unless
    /// it accepts by then.
    pub async fn give_up(&mut self) -> GivenUp {
        if !matches!(self.state, State::Starts(_)) {
            return GivenUp::Nothing;
        }
        let result = tokio::select! {
            biased;
            result = self.ended() => Some(result),
            // it is looked once more: what it said may not have been read so far
            () = task::yield_now() => None,
        };
        match result {
            Some(Ok(next)) => GivenUp::Serves(next),
            Some(Err(_)) => GivenUp::Nothing,
            None => {
                // waits for it, so that nobody accepts beside the drain
                self.state = State::Over;
                GivenUp::Killed
            }
        }
    }
}

/// What there was to give up.
#[derive(Debug)]
pub enum GivenUp {
    /// No next generation, or it was gone.
    Nothing,
    /// It was killed.
    Killed,
    /// None: it serves.
    Serves(Child),
}

/// The file that this program was started by, under the name that a newer one will have, too:
/// /proc/self/exe would be the older one.
fn program(called: Option<&OsStr>) -> io::Result<PathBuf> {
    let called = Path::new(called.unwrap_or_default());
    if called.as_os_str().as_bytes().contains(&b'/') {
        let program = path::absolute(called)?;
        if is_program(&program) {
            return Ok(program);
        }
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(called));
    // where it is called by a name that is none of a file
    found.filter(|it| it.is_absolute()).find(|it| is_program(it)).map_or_else(env::current_exe, Ok)
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_file_that_was_called() {
        let check = |called: Option<&str>, expected: &Path| {
            assert_eq!(program(called.map(OsStr::new)).unwrap(), expected, "{called:?}");
        };
        let this = env::current_exe().unwrap();
        check(Some("/bin/sh"), Path::new("/bin/sh"));
        let found = program(Some(OsStr::new("sh"))).unwrap();
        assert!(found.is_absolute() && found.ends_with("sh"), "{}", found.display());
        for called in [None, Some(""), Some("no such program"), Some("/no/such/program")] {
            check(called, &this);
        }
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("backlogd");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        // where it leads to later
        check(Some(link.to_str().unwrap()), &link);
    }
}
