//! What a new configuration changes while the daemon runs, and what takes effect at the next start.

use super::{log::log_muted, sampler::Sampler};
use crate::{
    config::{Config, ConfigError},
    error,
};

/// The configuration in force after SIGHUP: a bad file keeps the old one.
pub(super) fn reloaded(
    old: Config,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    sampler: &Sampler,
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
        ("shed", new.shed != old.shed),
        ("log", new.log != old.log),
        ("log_format", new.log_format != old.log_format),
    ];
    for (key, _) in fixed.iter().filter(|(_, differs)| *differs) {
        tracing::warn!(key, "changed in the file: takes effect at the next start");
    }
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
        shed: old.shed,
        log: old.log,
        log_format: old.log_format,
        ..new
    }
}

fn log_refused(err: &ConfigError) {
    let error = error::chain(err);
    tracing::error!(%error, "not reloaded: the configuration stays as it was");
}
