//! The settings: name, help, range and effect of each, in one place.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde_json::Value;
use tracing_subscriber::EnvFilter;

use super::{Config, LogFormat};
use crate::{input::Tier, metric::HistogramForm};

/// The tiers that can be asked for.
const TIERS: [(&str, Tier); 4] = [
    (Tier::Fentry.name(), Tier::Fentry),
    (Tier::Kprobe.name(), Tier::Kprobe),
    (Tier::Tracepoint.name(), Tier::Tracepoint),
    (Tier::Sampled.name(), Tier::Sampled),
];

/// One setting. Its default is what [`Config::default`] has.
#[derive(Debug)]
pub struct Key {
    /// As in the file. The flag has dashes for underscores, the variable is `BACKLOGD_` and the
    /// name in capitals.
    pub name: &'static str,
    /// What it is, in a sentence without a full stop.
    pub help: &'static str,
    /// What values it takes, and which field of [`Config`] they go to.
    pub kind: Kind,
}

/// What values a setting takes. Lower bound and upper bound are both allowed.
#[derive(Debug)]
pub enum Kind {
    /// Address and port.
    Address(fn(&mut Config) -> &mut SocketAddr),
    /// A number of seconds, fractions allowed.
    Seconds(RangeInclusive<f64>, fn(&mut Config) -> &mut Duration),
    /// A share of a core, as a fraction of 1.
    Share(RangeInclusive<f64>, fn(&mut Config) -> &mut f64),
    /// A whole number.
    Whole(RangeInclusive<u32>, fn(&mut Config) -> &mut u32),
    /// True or false; false unless set.
    Switch(fn(&mut Config) -> &mut bool),
    /// A path of at most so many bytes. Empty: none.
    Path(usize, fn(&mut Config) -> &mut Option<PathBuf>),
    /// An absolute path of at most so many bytes.
    Root(usize, fn(&mut Config) -> &mut PathBuf),
    /// A log level or filter.
    Log(fn(&mut Config) -> &mut String),
    /// One of [`LogFormat::ALL`].
    LogFormat(fn(&mut Config) -> &mut LogFormat),
    /// One of [`TIERS`].
    Tier(fn(&mut Config) -> &mut Tier),
    /// One of [`HistogramForm::ALL`].
    Histograms(fn(&mut Config) -> &mut HistogramForm),
}

/// A value as it was given.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'a> {
    /// By a variable or a flag.
    Text(&'a str),
    /// By the file.
    Toml(&'a toml::Value),
}

/// All settings, in the order of the example file.
pub const KEYS: [Key; 18] = [
    Key {
        name: "listen",
        help: "Address of /metrics, the API and the page for people",
        kind: Kind::Address(|config| &mut config.listen),
    },
    Key {
        name: "socket",
        help: "Unix socket that the reading verbs ask; for root and its group only",
        // sun_path holds 108 bytes, the ending zero included.
        kind: Kind::Path(107, |config| &mut config.socket),
    },
    Key {
        name: "sample_interval_seconds",
        help: "Time between two samples",
        kind: Kind::Seconds(0.1..=60.0, |config| &mut config.sample_interval),
    },
    Key {
        name: "no_ebpf",
        help: "Do without eBPF programs: only what sampling can tell, and no privileges",
        kind: Kind::Switch(|config| &mut config.no_ebpf),
    },
    Key {
        name: "tier",
        help: "The best kind of hook to try; each event falls to the next kind where the kernel \
               refuses: fentry, then kprobe, then tracepoint, then sampled, which is none",
        kind: Kind::Tier(|config| &mut config.tier),
    },
    Key {
        name: "accept_tracepoints",
        help: "Where neither fentry nor kprobe works, see accept and connect by the tracepoints of \
               system calls; every system call of the host then takes some 30 ns longer",
        kind: Kind::Switch(|config| &mut config.accept_tracepoints),
    },
    Key {
        name: "slots",
        help: "Listening sockets that the eBPF programs can count for at a time",
        kind: Kind::Whole(16..=65536, |config| &mut config.slots),
    },
    Key {
        name: "own_netns_only",
        help: "Look at the agent's own network namespace alone, instead of all of the host",
        kind: Kind::Switch(|config| &mut config.own_netns_only),
    },
    Key {
        name: "host_root",
        help: "Where the host's root directory is, for the files of kubelet and container \
               runtimes that name pods; in a container the path that it is mounted at",
        kind: Kind::Root(4095, |config| &mut config.host_root),
    },
    Key {
        name: "table_cpu_ratio",
        help: "How much of a core reads of whole socket tables may take (CLOSE_WAIT, TIME_WAIT, \
               ephemeral ports); 0: there are none",
        kind: Kind::Share(0.0..=0.5, |config| &mut config.table_cpu_ratio),
    },
    Key {
        name: "listener_retention_seconds",
        help: "How long the series of a listener are kept after nobody listens there",
        kind: Kind::Seconds(1.0..=86400.0, |config| &mut config.listener_retention),
    },
    Key {
        name: "length_max_window_seconds",
        help: "Window of the highest accept-queue length; at least the scrape interval, so that \
               no peak is missed",
        kind: Kind::Seconds(1.0..=3600.0, |config| &mut config.length_max_window),
    },
    Key {
        name: "stalled_after_seconds",
        help: "A listener is stalled when its queue is not empty and nobody accepted for so long",
        kind: Kind::Seconds(1.0..=3600.0, |config| &mut config.stalled_after),
    },
    Key {
        name: "series_limit",
        help: "Listeners, UDP sockets, namespaces and destinations, of each so many at most, that \
               have series of their own in /metrics; the rest is one more, named \"other\"",
        kind: Kind::Whole(100..=1_000_000, |config| &mut config.series_limit),
    },
    Key {
        name: "textfile",
        help: "Directory to write backlogd.prom to, for node_exporter's textfile collector",
        kind: Kind::Path(4095, |config| &mut config.textfile),
    },
    Key {
        name: "histograms",
        help: "Form of the histograms where a scraper asks for protobuf; text has classic ones",
        kind: Kind::Histograms(|config| &mut config.histograms),
    },
    Key {
        name: "log",
        help: "What is logged to standard error",
        kind: Kind::Log(|config| &mut config.log),
    },
    Key {
        name: "log_format",
        help: "How it is logged",
        kind: Kind::LogFormat(|config| &mut config.log_format),
    },
];

impl Key {
    /// The flag, dashes included.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// The environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("BACKLOGD_{}", self.name.to_uppercase())
    }

    /// Sets it.
    ///
    /// # Errors
    /// The value as it was given, when it is none that this setting takes; then nothing changed.
    pub fn set(&self, config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
        self.kind.set(config, raw).ok_or_else(|| raw.quoted())
    }

    /// The value it has: a string, a number, true or false; null for no path.
    #[must_use]
    pub fn value(&self, config: &Config) -> Value {
        // The fields are reached by `&mut` alone, so a copy is what is looked at.
        let config = &mut config.clone();
        match self.kind {
            Kind::Address(at) => at(config).to_string().into(),
            Kind::Seconds(_, at) => number(at(config).as_secs_f64()),
            Kind::Share(_, at) => number(*at(config)),
            Kind::Whole(_, at) => (*at(config)).into(),
            Kind::Switch(at) => (*at(config)).into(),
            Kind::Path(_, at) => at(config).as_ref().map(|path| path.to_string_lossy()).into(),
            Kind::Root(_, at) => at(config).to_string_lossy().into(),
            Kind::Log(at) => at(config).as_str().into(),
            Kind::Tier(at) => name_of(&TIERS, *at(config)),
            Kind::LogFormat(at) => name_of(&LogFormat::ALL, *at(config)),
            Kind::Histograms(at) => name_of(&HistogramForm::ALL, *at(config)),
        }
    }
}

impl Kind {
    /// What values it takes, for messages and documentation.
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Self::Address(_) => "an address and port such as 127.0.0.1:10511".into(),
            Self::Seconds(range, _) => {
                format!("a number of seconds, {} to {}", range.start(), range.end())
            }
            Self::Share(range, _) => {
                format!("a share of a core, {} to {}", range.start(), range.end())
            }
            Self::Whole(range, _) => {
                format!("a whole number, {} to {}", range.start(), range.end())
            }
            Self::Switch(_) => "true or false".into(),
            Self::Path(longest, _) => {
                format!("a path of at most {longest} bytes, or nothing for none")
            }
            Self::Root(longest, _) => format!("an absolute path of at most {longest} bytes"),
            Self::Log(_) => {
                "error, warn, info, debug, trace, off, or a filter such as info,backlogd=debug"
                    .into()
            }
            Self::LogFormat(_) => LogFormat::ALL.map(|(name, _)| name).join(" or "),
            Self::Tier(_) => TIERS.map(|(name, _)| name).join(" or "),
            Self::Histograms(_) => HistogramForm::ALL.map(|(name, _)| name).join(" or "),
        }
    }

    fn set(&self, config: &mut Config, raw: Raw<'_>) -> Option<()> {
        match self {
            Self::Address(at) => *at(config) = raw.text()?.parse().ok()?,
            Self::Seconds(range, at) => {
                let seconds = raw.number().filter(|seconds| range.contains(seconds))?;
                *at(config) = Duration::try_from_secs_f64(seconds).ok()?;
            }
            Self::Share(range, at) => {
                *at(config) = raw.number().filter(|share| range.contains(share))?;
            }
            Self::Whole(range, at) => *at(config) = raw.whole().filter(|n| range.contains(n))?,
            Self::Switch(at) => *at(config) = raw.switch()?,
            Self::Path(longest, at) => {
                let path = raw.path(*longest)?;
                *at(config) = (!path.is_empty()).then(|| path.into());
            }
            Self::Root(longest, at) => {
                let path = raw.path(*longest).filter(|path| path.starts_with('/'))?;
                *at(config) = path.into();
            }
            Self::Log(at) => *at(config) = raw.text().filter(|text| is_log(text))?.into(),
            Self::Tier(at) => *at(config) = named(&TIERS, raw.text()?)?,
            Self::LogFormat(at) => *at(config) = named(&LogFormat::ALL, raw.text()?)?,
            Self::Histograms(at) => *at(config) = named(&HistogramForm::ALL, raw.text()?)?,
        }
        Some(())
    }
}

impl Raw<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Toml(value) => value.as_str(),
        }
    }

    /// Text of at most so many bytes that the kernel takes for a path.
    fn path(&self, longest: usize) -> Option<&str> {
        self.text().filter(|path| path.len() <= longest && !path.contains('\0'))
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            // A whole number of seconds is one, too; no range goes beyond 32 bits.
            Self::Toml(toml::Value::Integer(n)) => u32::try_from(*n).ok().map(f64::from),
            Self::Toml(value) => value.as_float(),
        }
    }

    fn whole(&self) -> Option<u32> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Toml(value) => value.as_integer().and_then(|n| u32::try_from(n).ok()),
        }
    }

    fn switch(&self) -> Option<bool> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Toml(value) => value.as_bool(),
        }
    }

    /// As it is written in TOML, and short.
    fn quoted(&self) -> String {
        match self {
            Self::Text(text) => Value::from(*text).to_string(),
            Self::Toml(toml::Value::Table(_)) => "a table".into(),
            Self::Toml(toml::Value::Array(_)) => "an array".into(),
            Self::Toml(toml::Value::String(text)) => Value::from(text.as_str()).to_string(),
            Self::Toml(value) => value.to_string(),
        }
    }
}

/// The word for `value`.
fn name_of<T: Copy + PartialEq>(words: &[(&'static str, T)], value: T) -> Value {
    words.iter().find(|(_, it)| *it == value).map(|&(word, _)| word).into()
}

/// What `word` stands for.
fn named<T: Copy>(words: &[(&str, T)], word: &str) -> Option<T> {
    words.iter().find(|(it, _)| *it == word).map(|&(_, value)| value)
}

/// 1 instead of 1.0, as people write it.
fn number(seconds: f64) -> Value {
    let whole = Duration::try_from_secs_f64(seconds).map_or(0, |duration| duration.as_secs());
    let exact = u32::try_from(whole).is_ok_and(|n| f64::from(n) == seconds);
    if exact { whole.into() } else { seconds.into() }
}

/// tracing takes any lone word for the name of a module, a mistyped level too.
fn is_log(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_known = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part);
    text.split(',').all(is_known) && EnvFilter::builder().parse(text).is_ok()
}
