//! What the agent is told: one TOML file, `BACKLOGD_*` variables and flags, merged into one
//! checked [`Config`].
//!
//! A flag beats a variable beats the file beats the default, and where each value came from is
//! kept. [`key::KEYS`] is the one list of settings: the loader, the flags, `config show` and the
//! example file are made from it. Arrays of tables ([`TABLES`]) are in the file alone. Not here: the
//! flags themselves (`cli/flags.rs`).

mod address;
mod detect;
mod error;
pub mod example;
mod file;
pub mod key;
mod outlet;
mod shed;
mod table;

use std::{
    ffi::OsString,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use toml::{Spanned, de::DeValue};

pub use self::error::ConfigError;
use self::{
    address::Listening,
    key::{KEYS, Key, Raw},
    outlet::NamedFile,
    table::{Entry, Text},
};
use crate::{
    detect::tuning::Tuning,
    input::Tier,
    metric::HistogramForm,
    outlet::{Form, Outlet},
    shed::Front,
};

/// Where the configuration is looked for when nobody names a file.
pub const DEFAULT_FILE: &str = "/etc/backlogd/backlogd.toml";

/// The variable that names the file.
pub const FILE_VARIABLE: &str = "BACKLOGD_CONFIG";

/// The arrays of tables of the file.
pub const TABLES: [&str; 5] = ["detect", "expect", "alertmanager", "webhook", "shed"];

/// Most elements of one array of tables.
const MOST: usize = 1000;
/// Most receivers of one kind: each has a task.
const MOST_OUTLETS: usize = 16;
/// Most shedding listeners.
const MOST_FRONTS: usize = 64;

/// Everything that can be set, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where `/metrics`, the API and the page for people are served.
    pub listen: SocketAddr,
    /// The Unix socket of the reading verbs; `None`: no socket.
    pub socket: Option<PathBuf>,
    /// Time between two samples.
    pub sample_interval: Duration,
    /// Whether to do without eBPF programs.
    pub no_ebpf: bool,
    /// The best kind of hook to try.
    pub tier: Tier,
    /// Whether the tracepoints of system calls may be on for good.
    pub accept_tracepoints: bool,
    /// How many listening sockets the eBPF programs can count for.
    pub slots: u32,
    /// Whether to look at the agent's own network namespace alone.
    pub own_netns_only: bool,
    /// Where the files of kubelet and container runtimes are.
    pub host_root: PathBuf,
    /// How much of a core reads of whole socket tables may take; 0: none.
    pub table_cpu_ratio: f64,
    /// How long a listener is remembered after nobody listens there any more.
    pub listener_retention: Duration,
    /// Over how long `length_max` is the highest length.
    pub length_max_window: Duration,
    /// After how long without an accept a listener with a non-empty queue is stalled.
    pub stalled_after: Duration,
    /// How many of each kind have series of their own.
    pub series_limit: u32,
    /// Directory for node_exporter's textfile collector; `None`: nothing is written.
    pub textfile: Option<PathBuf>,
    /// In which form the protobuf exposition gives histograms.
    pub histograms: HistogramForm,
    /// What is logged: a level, or a filter of tracing-subscriber.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// How detections are tuned and silenced, and which listeners must be there.
    pub tuning: Arc<Tuning>,
    /// Who is told of alerts.
    pub outlets: Vec<Outlet>,
    /// The shedding listeners of this process.
    pub shed: Vec<Front>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10511)),
            socket: Some("/run/backlogd/backlogd.sock".into()),
            sample_interval: Duration::from_secs(1),
            no_ebpf: false,
            tier: Tier::Fentry,
            accept_tracepoints: false,
            slots: 4096,
            own_netns_only: false,
            host_root: "/".into(),
            table_cpu_ratio: 0.02,
            listener_retention: Duration::from_secs(300),
            length_max_window: Duration::from_secs(60),
            stalled_after: Duration::from_secs(4),
            series_limit: 2000,
            textfile: None,
            histograms: HistogramForm::Both,
            log: "info".into(),
            log_format: LogFormat::Text,
            tuning: Arc::default(),
            outlets: Vec::new(),
            shed: Vec::new(),
        }
    }
}

/// How log lines are written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people and the journal.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// All of them, as they are written.
    pub const ALL: [(&str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The file.
    File {
        /// Its path as it was given.
        path: PathBuf,
        /// Line of the key, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag of the command line.
    Flag {
        /// Its name, dashes included.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => f.write_str(variable),
            Self::Flag { flag } => f.write_str(flag),
        }
    }
}

/// A configuration and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// One for each of [`KEYS`], in their order.
    pub origins: Vec<Origin>,
    /// The elements of the arrays of tables, those of one array in the order of the file.
    pub tables: Vec<Shown>,
    /// Where the process would listen.
    listening: Vec<Listening>,
}

/// An element of an array of tables.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Which of [`TABLES`].
    pub table: &'static str,
    /// As it is written.
    pub value: serde_json::Value,
    /// Where it is.
    pub from: Origin,
    /// The files that it names.
    files: Vec<NamedFile>,
}

impl Loaded {
    fn new() -> Self {
        let origins = vec![Origin::Default; KEYS.len()];
        Self { config: Config::default(), origins, tables: Vec::new(), listening: Vec::new() }
    }

    /// Checks that what the daemon needs beside the configuration can be read. Not a part of loading,
    /// since verbs that only read do without, and may be another user's.
    ///
    /// # Errors
    /// The first file that cannot be read, or that holds something else.
    pub fn check_files(&self) -> Result<(), ConfigError> {
        self.tables.iter().flat_map(|shown| &shown.files).try_for_each(NamedFile::check)
    }

    /// Each setting with its value and where that came from.
    pub fn settings(&self) -> impl Iterator<Item = (&'static Key, serde_json::Value, &Origin)> {
        KEYS.iter().zip(&self.origins).map(|(key, from)| (key, key.value(&self.config), from))
    }

    fn set(
        &mut self,
        (index, key): (usize, &Key),
        raw: Raw<'_>,
        from: Origin,
    ) -> Result<(), ConfigError> {
        key.set(&mut self.config, raw).map_err(|got| ConfigError::Value {
            place: from.to_string(),
            got,
            expected: key.kind.expected(),
        })?;
        self.origins[index] = from;
        Ok(())
    }

    /// Sets what the environment says; `variable` looks a variable up.
    fn set_variables(
        &mut self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<(), ConfigError> {
        for keyed in KEYS.iter().enumerate() {
            let name = keyed.1.variable();
            let Some(value) = variable(&name) else { continue };
            let value =
                value.into_string().map_err(|_| ConfigError::Encoding { place: name.clone() })?;
            self.set(keyed, Raw::Text(&value), Origin::Environment { variable: name })?;
        }
        Ok(())
    }

    /// Adds the elements of an array of tables.
    fn add(
        &mut self,
        file: Text<'_>,
        name: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), ConfigError> {
        let Some(table) = TABLES.into_iter().find(|table| *table == name) else { return Ok(()) };
        let entries = Entry::all(file, table, value)?;
        let most = match table {
            "alertmanager" | "webhook" => MOST_OUTLETS,
            "shed" => MOST_FRONTS,
            _ => MOST,
        };
        if let Some(entry) = entries.get(most) {
            return Err(entry.wrong("one more", &format!("at most {most} of them")));
        }
        for (i, entry) in entries.iter().enumerate() {
            let (same, files) = self.take(table, entry)?;
            if let Some((what, first)) = same {
                // those before it are all there
                let first = entries[first.min(i)].place();
                return Err(entry.wrong(&format!("the {what} of {first} again"), "each once"));
            }
            self.tables.push(Shown { table, value: entry.value(), from: entry.origin(), files });
        }
        match table {
            "detect" => detect::refuse_contradictions(&self.config.tuning, &entries),
            "shed" => shed::refuse_circles(&self.config.shed, &entries),
            _ => Ok(()),
        }
    }

    /// Takes in one element. Out: by what it is the same as an earlier one, and which; the files
    /// that it names.
    fn take(&mut self, table: &str, entry: &Entry<'_>) -> Result<Taken, ConfigError> {
        let form = match table {
            "detect" => {
                Arc::make_mut(&mut self.config.tuning).entries.push(detect::detect(entry)?);
                return Ok((None, Vec::new()));
            }
            "expect" => {
                let expected = &mut Arc::make_mut(&mut self.config.tuning).expected;
                let new = detect::expect(entry)?;
                let same = expected.iter().position(|old| {
                    (old.addr, old.port, &old.namespace) == (new.addr, new.port, &new.namespace)
                });
                expected.push(new);
                return Ok((same.map(|first| ("listener", first)), Vec::new()));
            }
            "shed" => {
                let new = shed::front(entry)?;
                for (key, address) in shed::addresses(&new) {
                    self.listens(address, entry.place_of(key).unwrap_or_else(|| entry.place()))?;
                }
                let same = self.config.shed.iter().position(|old| old.name == new.name);
                self.config.shed.push(new);
                return Ok((same.map(|first| ("name", first)), Vec::new()));
            }
            "alertmanager" => Form::Alertmanager,
            _ => Form::Webhook,
        };
        let new = outlet::outlet(form, entry)?;
        let mut alike = self.config.outlets.iter().filter(|old| old.form == form);
        let same = alike.position(|old| old.url == new.url);
        self.config.outlets.push(new);
        Ok((same.map(|first| ("url", first)), outlet::files(entry)?))
    }
}

/// See [`Loaded::take`].
type Taken = (Option<(&'static str, usize)>, Vec<NamedFile>);

/// Merges the file, the environment and the flags.
///
/// `named` is the file of `--config`; `variable` looks a variable up; `flags` are the flags that
/// were given, as key and text.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn load(
    named: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
    flags: &[(&'static str, String)],
) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded::new();
    let from_variable = || variable(FILE_VARIABLE).filter(|path| !path.is_empty());
    match named.map(PathBuf::from).or_else(|| from_variable().map(PathBuf::from)) {
        Some(path) => file::apply(&mut loaded, &path, &file::read(&path)?)?,
        None => match file::read(Path::new(DEFAULT_FILE)) {
            Ok(text) => file::apply(&mut loaded, Path::new(DEFAULT_FILE), &text)?,
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        },
    }
    loaded.set_variables(&variable)?;
    for keyed in KEYS.iter().enumerate() {
        let Some((_, value)) = flags.iter().find(|(name, _)| *name == keyed.1.name) else {
            continue;
        };
        loaded.set(keyed, Raw::Text(value), Origin::Flag { flag: keyed.1.flag() })?;
    }
    Ok(loaded)
}

/// The environment by itself, without a file, for who is told all else by other flags.
///
/// # Errors
/// The first variable that is wrong.
pub fn load_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded::new();
    loaded.set_variables(variable)?;
    Ok(loaded)
}

/// Checks one file by itself, without environment and flags.
///
/// # Errors
/// The first thing that is wrong, with its line and column; a file that it names and that is of no use.
pub fn check(path: &Path) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded::new();
    file::apply(&mut loaded, path, &file::read(path)?)?;
    loaded.check_files()?;
    loaded.check_listen()?;
    Ok(loaded)
}

#[cfg(test)]
mod tests;
