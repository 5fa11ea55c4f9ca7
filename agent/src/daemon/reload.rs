//! What a new configuration changes while the daemon runs, and what takes effect at the next start.

use backlogd_shed::{Handle, Limits};

use super::{log::log_muted, sampler::Sampler};
use crate::{
    config::{Config, ConfigError},
    error,
    shed::Front,
};

/// The configuration in force after SIGHUP: a bad file keeps the old one. `handles` are those of
/// `old.shed`, in its order.
pub(super) fn reloaded(
    old: Config,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    sampler: &Sampler,
    handles: &[Handle],
) -> Config {
    let new = match reload() {
        Ok(new) => new,
        Err(err) => {
            log_refused(&err);
            return old;
        }
    };
    let fixed = [
        ("listen", new.listen != old.listen),
        ("socket", new.socket != old.socket),
        ("no_ebpf", new.no_ebpf != old.no_ebpf),
        ("tier", new.tier != old.tier),
        ("accept_tracepoints", new.accept_tracepoints != old.accept_tracepoints),
        ("slots", new.slots != old.slots),
        ("own_netns_only", new.own_netns_only != old.own_netns_only),
        ("host_root", new.host_root != old.host_root),
        ("table_cpu_ratio", new.table_cpu_ratio.total_cmp(&old.table_cpu_ratio).is_ne()),
        ("series_limit", new.series_limit != old.series_limit),
        ("histograms", new.histograms != old.histograms),
        ("log", new.log != old.log),
        ("log_format", new.log_format != old.log_format),
    ];
    for (key, _) in fixed.iter().filter(|(_, differs)| *differs) {
        tracing::warn!(key, "changed in the file: takes effect at the next start");
    }
    let shed = fronts_reloaded(old.shed, &new.shed, handles);
    sampler.configure(&new);
    log_muted(&new.tuning);
    tracing::info!("reloaded");
    Config {
        listen: old.listen,
        socket: old.socket,
        no_ebpf: old.no_ebpf,
        tier: old.tier,
        accept_tracepoints: old.accept_tracepoints,
        slots: old.slots,
        own_netns_only: old.own_netns_only,
        host_root: old.host_root,
        table_cpu_ratio: old.table_cpu_ratio,
        series_limit: old.series_limit,
        histograms: old.histograms,
        shed,
        log: old.log,
        log_format: old.log_format,
        ..new
    }
}

/// What the configuration has for listeners that shed, beside what is in force.
#[derive(Debug, Default, PartialEq)]
struct Changes<'a> {
    /// Limits that are put in force, by the index of the listener.
    limits: Vec<(usize, Limits)>,
    /// Listeners that come, go, or differ by more than their limits.
    later: Vec<&'a str>,
}

impl<'a> Changes<'a> {
    fn between(old: &'a [Front], new: &'a [Front]) -> Self {
        let mut changes = Self::default();
        for (i, front) in old.iter().enumerate() {
            match new.iter().find(|new| new.name == front.name) {
                None => changes.later.push(&front.name),
                Some(new) => {
                    if new.limits != front.limits {
                        changes.limits.push((i, new.limits));
                    }
                    if *new != (Front { limits: new.limits, ..front.clone() }) {
                        changes.later.push(&front.name);
                    }
                }
            }
        }
        let is_new = |front: &&Front| old.iter().all(|old| old.name != front.name);
        changes.later.extend(new.iter().filter(is_new).map(|front| front.name.as_str()));
        changes
    }
}

/// What is in force of `new`: the limits of listeners that stay.
fn fronts_reloaded(mut old: Vec<Front>, new: &[Front], handles: &[Handle]) -> Vec<Front> {
    let changes = Changes::between(&old, new);
    for listener in changes.later {
        tracing::warn!(
            key = "shed",
            listener,
            "changed in the file: takes effect at the next start"
        );
    }
    for (i, limits) in changes.limits {
        let (front, handle) = (&mut old[i], &handles[i]);
        match handle.set_limits(limits) {
            Ok(bounds) => {
                let (soft, hard) = (bounds.soft(), bounds.hard());
                tracing::info!(listener = front.name, soft, hard, "sheds by other limits");
                front.limits = limits;
            }
            Err(err) => {
                let error = error::chain(&err);
                tracing::error!(listener = front.name, %error, "its limits stay as they were");
            }
        }
    }
    old
}

fn log_refused(err: &ConfigError) {
    let error = error::chain(err);
    tracing::error!(%error, "not reloaded: the configuration stays as it was");
}

#[cfg(test)]
mod tests {
    use std::{slice, time::Duration};

    use super::*;
    use crate::shed::Backend;

    fn front(name: &str, soft: usize) -> Front {
        let backend = Backend::Tcp("127.0.0.1:1".into());
        let listen = "127.0.0.1:80".parse().expect("an address");
        Front { name: name.into(), ..Front::new(listen, backend, soft) }
    }

    #[track_caller]
    fn check(old: &[Front], new: &[Front], limits: &[(usize, Limits)], later: &[&str]) {
        let expected = Changes { limits: limits.into(), later: later.into() };
        assert_eq!(Changes::between(old, new), expected, "{old:?} {new:?}");
    }

    #[test]
    fn limits_change_at_once_and_all_else_at_the_next_start() {
        let (web, api) = (front("web", 10), front("api", 20));
        let limits = |front: &Front| front.limits;
        let both = [web.clone(), api.clone()];
        check(&both, &both, &[], &[]);
        // in whatever order
        check(&both, &[front("api", 30), web.clone()], &[(1, limits(&front("api", 30)))], &[]);
        let mut hard = web.clone();
        hard.limits.hard = Some(100);
        check(&both, &[hard.clone(), api.clone()], &[(0, hard.limits)], &[]);
        let moved = Front { listen: "127.0.0.1:81".parse().expect("an address"), ..hard.clone() };
        check(&both, &[moved, api.clone()], &[(0, hard.limits)], &["web"]);
        let slower = Front { connect_timeout: Duration::from_secs(9), ..web.clone() };
        check(&both, &[slower, api.clone()], &[], &["web"]);
        check(&both, slice::from_ref(&web), &[], &["api"]);
        check(&both, &[], &[], &["web", "api"]);
        check(slice::from_ref(&web), &both, &[], &["api"]);
        check(&[web], &[front("other", 10)], &[], &["web", "other"]);
    }
}
