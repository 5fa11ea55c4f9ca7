//! What is done while the daemon runs: signals, samples, a handover, and a listener that died.

use std::{future, process::Child, sync::Arc, time::Duration};

use backlogd_shed::HandoverError;
use tokio::sync::watch;

use super::{
    DaemonError, reload,
    sampler::Sampler,
    signals::{Asked, Signals},
    textfile,
};
use crate::{
    config::{Config, ConfigError},
    detect::{Judged, alert::Verdicts},
    error,
    notify::Manager,
    publish::{fold::Caps, outlet::Outlets},
    shed::{Dead, Fronts, GivenUp, Live, Restart, StartError, Watch},
};

/// Who is told of alerts, and by which channel.
pub(super) struct Receivers {
    pub(super) outlets: Outlets,
    pub(super) verdicts: watch::Sender<Arc<Verdicts>>,
}

/// Who has to be told of what comes.
pub(super) struct Parts<'a> {
    pub(super) sampler: &'a Sampler,
    pub(super) lives: &'a [Live],
    pub(super) receivers: &'a mut Receivers,
    pub(super) manager: &'a mut Manager,
    pub(super) fronts: Option<&'a mut Fronts>,
    pub(super) restart: Option<&'a mut Restart>,
    pub(super) shed: Watch,
}

/// Why nothing is left to watch over.
pub(super) enum Why {
    /// It was told to stop.
    Told,
    /// The next generation serves.
    HandedOver,
}

/// Answers signals and writes the textfile until the agent is told to stop, or another one serves.
pub(super) async fn watch_over(
    config: Config,
    signals: &mut Signals,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    snapshots: watch::Receiver<Option<Judged>>,
    mut parts: Parts<'_>,
) -> Result<Why, DaemonError> {
    match until_told(config, signals, reload, snapshots, &mut parts).await {
        // a next generation that still starts would come to a socket that takes nobody new
        Ok(Why::Told) => Ok(give_up(parts.restart, parts.manager).await),
        Err(err) => {
            give_up(parts.restart, parts.manager).await;
            Err(err)
        }
        Ok(Why::HandedOver) => Ok(Why::HandedOver),
    }
}

async fn until_told(
    mut config: Config,
    signals: &mut Signals,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    mut snapshots: watch::Receiver<Option<Judged>>,
    parts: &mut Parts<'_>,
) -> Result<Why, DaemonError> {
    let Parts { sampler, lives, receivers, manager, fronts, restart, shed } = parts;
    let newest = snapshots.clone();
    let mut textfile_due = tokio::time::interval(textfile::EVERY);
    let mut caps = Caps::new(config.series_limit);
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => return Ok(Why::Told),
                Asked::Reload => {
                    manager.reloading();
                    config = reload::reloaded(config, reload, sampler, lives);
                    receivers.outlets.configure(&config.outlets);
                    manager.reloaded();
                }
                Asked::Restart => begin(restart.as_deref_mut(), lives),
            },
            changed = snapshots.changed() => match (changed, &*snapshots.borrow()) {
                (Err(_), _) => return Err(DaemonError::SamplerDied),
                (Ok(()), Some(judged)) => {
                    // there is something to scrape
                    if let Some(restart) = restart.as_deref_mut() {
                        restart.ready().map_err(StartError::Inherited)?;
                    }
                    receivers.verdicts.send_replace(judged.verdicts.clone());
                    manager.sampled(judged);
                }
                (Ok(()), None) => {}
            },
            ended = ended(restart.as_deref_mut()) => match ended {
                Ok(next) => {
                    return Ok(handed_over(&next, manager));
                }
                Err(err) => {
                    let error = error::chain(&err);
                    tracing::error!(%error, "not handed over: this generation goes on");
                }
            },
            // others go on, and so does the agent
            dead = dead(fronts.as_deref_mut()), if restart.is_some() => return Err(dead.into()),
            _ = textfile_due.tick() => match (&config.textfile, newest.borrow().clone()) {
                (Some(dir), Some(newest)) => textfile::write(dir, newest, &mut caps, shed),
                // before the first sample
                (Some(_), None) => textfile_due.reset_after(Duration::from_millis(100)),
                (None, _) => {}
            }
        }
    }
}

fn begin(restart: Option<&mut Restart>, lives: &[Live]) {
    let Some(restart) = restart else {
        return tracing::warn!("not handed over: that is for backlogd shed");
    };
    if let Some(live) = lives.iter().find(|live| !live.front().accept.may_be_handed_over()) {
        let listener = &live.front().name;
        tracing::error!(
            listener,
            "not handed over: only one accept loop without a thread of its own can be"
        );
        return;
    }
    match restart.begin() {
        true => tracing::info!("starts the next generation"),
        false => tracing::warn!("the next generation starts already"),
    }
}

fn handed_over(next: &Child, manager: &mut Manager) -> Why {
    manager.handed_over(next.id());
    tracing::info!(pid = next.id(), "handed over: the next generation serves");
    Why::HandedOver
}

/// Kills a next generation that does not serve so far, and says so.
async fn give_up(restart: Option<&mut Restart>, manager: &mut Manager) -> Why {
    let Some(restart) = restart else { return Why::Told };
    match restart.give_up().await {
        GivenUp::Serves(next) => return handed_over(&next, manager),
        GivenUp::Killed => {
            tracing::warn!("not handed over: this generation ends, and the next one was killed");
        }
        GivenUp::Nothing => {}
    }
    Why::Told
}

/// Ends when a handover does; where there is none, never.
async fn ended(restart: Option<&mut Restart>) -> Result<Child, HandoverError> {
    match restart {
        Some(restart) => restart.ended().await,
        None => future::pending().await,
    }
}

/// Ends when one of them can accept nothing more.
async fn dead(fronts: Option<&mut Fronts>) -> Dead {
    match fronts {
        Some(fronts) => fronts.dead().await,
        None => future::pending().await,
    }
}
