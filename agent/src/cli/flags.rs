//! The settings as flags, made from [`KEYS`].

use std::{env, io, path::PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::config::{
    self, Config, ConfigError, DEFAULT_FILE, FILE_VARIABLE, Loaded,
    key::{KEYS, Key, Kind, Raw},
};

/// The settings that matter to a verb that reads, and may have to sample by itself.
const READING: [&str; 7] =
    ["socket", "no_ebpf", "tier", "accept_tracepoints", "slots", "own_netns_only", "host_root"];

const HEADING: &str = "Configuration (each is also a variable, as BACKLOGD_SLOTS, and a key of the \
                       file)";

/// `--config` and the flags of all settings, or of those for reading verbs.
#[derive(Clone, Debug)]
pub(super) struct Flags<const ALL: bool> {
    file: Option<PathBuf>,
    given: Vec<(&'static str, String)>,
}

impl<const ALL: bool> Flags<ALL> {
    fn keys() -> impl Iterator<Item = &'static Key> {
        // A reference to a constant lives as long as the program.
        const ALL_KEYS: &[Key] = &KEYS;
        ALL_KEYS.iter().filter(|key| ALL || READING.contains(&key.name))
    }

    /// Whether the flag of this setting was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// Merges the file, the environment and these flags.
    pub(super) fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(self.file.as_deref(), |name| env::var_os(name), &self.given)
    }
}

impl Flags<false> {
    /// As `load`, but a default file that only the daemon may read stands in nobody's way.
    pub(super) fn load_readable(&self) -> Result<Loaded, ConfigError> {
        match self.load() {
            Err(ConfigError::Read { path, source })
                if path == DEFAULT_FILE && source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let empty = PathBuf::from("/dev/null");
                Self { file: Some(empty), given: self.given.clone() }.load()
            }
            other => other,
        }
    }
}

impl<const ALL: bool> Args for Flags<ALL> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help_heading(HEADING)
            .help(format!("The file [default: ${FILE_VARIABLE}, else {DEFAULT_FILE} if present]"));
        command.arg(file).args(Self::keys().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALL: bool> FromArgMatches for Flags<ALL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &Key| matches.get_one::<String>(key.name).cloned();
        Ok(Self {
            file: matches.get_one("config").cloned(),
            given: Self::keys().filter_map(|key| Some((key.name, given(key)?))).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A flag that takes what the key takes, and keeps it as text.
fn flag(key: &'static Key) -> Arg {
    let default = match key.value(&Config::default()) {
        serde_json::Value::Null => "none".into(),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let check = move |text: &str| match key.set(&mut Config::default(), Raw::Text(text)) {
        Ok(()) => Ok(text.to_owned()),
        Err(_) => Err(format!("expected {}", key.kind.expected())),
    };
    let flag = Arg::new(key.name)
        .long(key.name.replace('_', "-"))
        .value_parser(check)
        .help_heading(HEADING)
        .help(match key.kind {
            Kind::Seconds(..)
            | Kind::Whole(..)
            | Kind::Share(..)
            | Kind::Log(_)
            | Kind::LogFormat(_)
            | Kind::Histograms(_)
            | Kind::Tier(_) => {
                format!("{}: {} [default: {default}]", key.help, key.kind.expected())
            }
            Kind::Address(_) | Kind::Switch(_) | Kind::Path(..) | Kind::Root(..) => {
                format!("{} [default: {default}]", key.help)
            }
        });
    match key.kind {
        Kind::Address(_) => flag.value_name("ADDR:PORT"),
        Kind::Seconds(..) => flag.value_name("SECONDS"),
        Kind::Whole(..) => flag.value_name("NUMBER"),
        Kind::Share(..) => flag.value_name("RATIO"),
        Kind::Path(..) | Kind::Root(..) => flag.value_name("PATH"),
        Kind::Log(_) => flag.value_name("FILTER"),
        Kind::LogFormat(_) => flag.value_name("FORMAT"),
        Kind::Tier(_) => flag.value_name("TIER"),
        Kind::Histograms(_) => flag.value_name("FORM"),
        Kind::Switch(_) => flag
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}
