//! `backlogd shed`: shedding listeners in front of servers that cannot be changed.

use std::{env, net::SocketAddr, path::PathBuf};

use backlogd_shed::Bounds;
use clap::Args;

use super::{
    Exit, log,
    out::{self, Align, Cell, Color, Column, Table, Terminal},
};
use crate::{
    config::{self, Config, ConfigError},
    daemon::{self, Purpose},
    shed::{Backend, Front, bounds, check_backend, check_limits},
};

/// Accept for a server, and shed what is above its limit
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    backlogd shed --listen 0.0.0.0:8080 --backend 127.0.0.1:9000 --soft 1000\n  \
    backlogd shed --listen [::]:443 --backend unix:/run/app.sock --soft 10000 --hard 12500\n  \
    backlogd shed --config /etc/backlogd/shed.toml      its [[shed]] tables\n  \
    backlogd shed --config /etc/backlogd/shed.toml --check\n\n\
    Above the soft limit a connection is accepted and reset at once. At the hard limit, the last\n\
    resort, nothing is accepted; unsaid, it is a quarter above the soft one, at least 16. Deadlines\n\
    hold unless the file says otherwise: 30 s for the first byte, 300 s without any, 30 s without an\n\
    acknowledgement, 60 s after the end of one direction. SIGTERM accepts nothing more (after\n\
    drain_delay_seconds of the file) and waits for what is open; SIGUSR2 hands the listeners over to\n\
    the same command, started again. systemd may open them. `backlogd run` hosts the same tables.")]
pub(super) struct Shed {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT", requires = "backend", requires = "soft")]
    listen: Option<SocketAddr>,
    /// Where connections go: HOST:PORT or unix:/PATH
    #[arg(long, value_name = "ADDR", requires = "listen", value_parser = backend)]
    backend: Option<Backend>,
    /// Above this many open connections, more are shed
    #[arg(long, value_name = "N", requires = "listen")]
    soft: Option<usize>,
    /// At this many, nothing is accepted
    #[arg(long, value_name = "N", requires = "listen")]
    hard: Option<usize>,
    /// The file with [[shed]] tables
    #[arg(long, value_name = "FILE", conflicts_with = "listen")]
    config: Option<PathBuf>,
    /// Where /metrics is served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10512")]
    metrics: SocketAddr,
    /// Print what holds for each listener, and end; nothing listens. Exit code 78 when something is wrong
    #[arg(long)]
    check: bool,
}

fn backend(text: &str) -> Result<Backend, String> {
    text.parse().map_err(|expected| format!("expected {expected}"))
}

impl Shed {
    pub(super) fn run(self, color: Color, verbose: u8) -> anyhow::Result<Exit> {
        let config = match self.load() {
            Err(err @ ConfigError::NothingToShed) => {
                out::note(&err.to_string());
                return Ok(Exit::Usage);
            }
            loaded => loaded?,
        };
        if self.check {
            return check(&config.shed, color);
        }
        let _log = log::for_daemon(&config, verbose, color)?;
        daemon::run(config, move || self.load(), Purpose::Shed)?;
        Ok(Exit::Fine)
    }

    /// What the daemon does that serves for these listeners alone: it looks at its own network
    /// namespace, without programs in the kernel.
    fn load(&self) -> Result<Config, ConfigError> {
        let variable = |name: &str| env::var_os(name);
        let mut loaded = match self.front()? {
            Some(front) => {
                let mut loaded = config::load_variables(variable)?;
                loaded.listens(front.listen, "--listen".to_owned())?;
                loaded.config.shed.push(front);
                loaded
            }
            None => config::load(self.config.as_deref(), variable, &[])?,
        };
        loaded.check_files()?;
        if loaded.config.shed.is_empty() {
            let named = self.config.clone();
            return Err(named.map_or(ConfigError::NothingToShed, ConfigError::NoShed));
        }
        loaded.listens(self.metrics, "--metrics".to_owned())?;
        Ok(Config {
            listen: self.metrics,
            socket: None,
            no_ebpf: true,
            own_netns_only: true,
            ..loaded.config
        })
    }

    /// The listener that the flags describe, if they do.
    fn front(&self) -> Result<Option<Front>, ConfigError> {
        let (Some(listen), Some(backend), Some(soft)) = (self.listen, &self.backend, self.soft)
        else {
            return Ok(None);
        };
        let mut front = Front::new(listen, backend.clone(), soft);
        front.limits.hard = self.hard;
        let checked = check_backend(front.listen, &front.backend)
            .and_then(|()| check_limits(front.limits))
            .map_err(|wrong| ConfigError::Value {
                place: format!("--{}", wrong.key),
                got: wrong.got,
                expected: wrong.expected,
            });
        checked.map(|()| Some(front))
    }
}

/// Prints the limits of `fronts` that would be in force, and where the hard ones come from.
fn check(fronts: &[Front], color: Color) -> anyhow::Result<Exit> {
    let bounds = match bounds(fronts) {
        Ok(bounds) => bounds,
        Err((place, err)) => {
            out::note(&format!("shedding listener {}: {err}", fronts[place].name));
            return Ok(Exit::Configuration);
        }
    };
    let row = |(front, bounds): (&Front, &Bounds)| {
        [
            front.name.clone(),
            front.listen.to_string(),
            front.backend.to_string(),
            bounds.soft().to_string(),
            bounds.hard().to_string(),
            bounds.bound().to_string(),
            front.deadlines(),
        ]
    };
    let rows: Vec<_> = fronts.iter().zip(&bounds).map(row).collect();
    let column = |(name, align)| Column { name, align, shrinks: false };
    let columns = [
        ("LISTENER", Align::Left),
        ("LISTEN", Align::Left),
        ("BACKEND", Align::Left),
        ("SOFT", Align::Right),
        ("HARD", Align::Right),
        ("BOUND", Align::Left),
        ("DEADLINES", Align::Left),
    ];
    let rows = rows.iter().map(|row| row.iter().map(|cell| Cell::new(cell)).collect()).collect();
    let table = Table { columns: columns.map(column).into(), rows };
    out::print(&table.render(&Terminal::new(color)))?;
    Ok(Exit::Fine)
}
