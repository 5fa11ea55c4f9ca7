//! `backlogd run`: the daemon.

use clap::Args;

use super::{Exit, flags::Flags, log, out::Color};
use crate::{
    config::{Config, ConfigError},
    daemon::{self, Purpose},
};

/// Run the daemon: sample, count, serve /metrics and the API
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    sudo backlogd run\n  \
    sudo backlogd run --listen 0.0.0.0:10511 --sample-interval-seconds 0.5\n  \
    backlogd run --no-ebpf --socket ''        without privileges\n\n\
    SIGHUP reads the configuration again; a wrong one is refused and the old one stays.")]
pub(super) struct Run {
    #[command(flatten)]
    flags: Flags<true>,
}

impl Run {
    pub(super) fn run(self, color: Color, verbose: u8) -> anyhow::Result<Exit> {
        let config = self.load()?;
        let _log = log::for_daemon(&config, verbose, color)?;
        daemon::run(config, move || self.load(), Purpose::Watch)?;
        Ok(Exit::Fine)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let mut loaded = self.flags.load()?;
        loaded.check_files()?;
        loaded.check_listen()?;
        Ok(loaded.config)
    }
}
