//! What a new configuration changes while the daemon runs, and what takes effect at the next start.

use backlogd_shed::Bounds;

use super::{log::log_muted, sampler::Sampler};
use crate::{
    config::{Config, ConfigError},
    error,
    shed::{Front, Live, Wrong, bounds, elsewhere, leads_back},
};

/// The configuration in force after SIGHUP: a bad file keeps the old one. `lives` are those of
/// `old.shed`, in its order.
pub(super) fn reloaded(
    old: Config,
    reload: &impl Fn() -> Result<Config, ConfigError>,
    sampler: &Sampler,
    lives: &[Live],
) -> Config {
    let new = match reload() {
        Ok(new) => new,
        Err(err) => {
            log_refused(&err);
            return old;
        }
    };
    let bounds = match checked(&old.shed, &new.shed) {
        Ok(bounds) => bounds,
        Err((listener, error)) => {
            tracing::error!(listener, %error, "not reloaded: the configuration stays as it was");
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
    let shed = fronts_reloaded(&old.shed, &new.shed, &bounds, lives);
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

/// What listeners as in `new` can hold; or one that cannot be, and why not.
fn checked(old: &[Front], new: &[Front]) -> Result<Vec<Bounds>, (String, String)> {
    let bounds = bounds(new).map_err(|(at, err)| (new[at].name.clone(), error::chain(&err)))?;
    match own_backend(old, new) {
        Some((listener, Wrong { key, got, expected })) => {
            Err((listener, format!("{key}: got {got}, expected {expected}")))
        }
        None => Ok(bounds),
    }
}

/// A listener that would be its own backend, by itself or through others: backends change at once,
/// and until the next start each listener stays where it is, whatever the file says.
fn own_backend(old: &[Front], new: &[Front]) -> Option<(String, Wrong)> {
    let changed = |front: &Front| match new.iter().find(|new| new.name == front.name) {
        Some(new) => front.changed(new),
        None => front.clone(),
    };
    let fronts: Vec<_> = old.iter().map(changed).collect();
    let way = leads_back(&fronts)?;
    let (first, others) = way.split_first()?;
    let Front { name, listen, backend, .. } = &fronts[*first];
    let others: Vec<_> = others.iter().map(|&it| fronts[it].name.clone()).collect();
    let expected = elsewhere(*listen, &others);
    Some((name.clone(), Wrong { key: "backend", got: backend.to_string(), expected }))
}

/// What the configuration has for listeners that shed, beside what is in force.
#[derive(Debug, Default, PartialEq)]
struct Changes<'a> {
    /// Listeners that change while they run, by their index, with the keys.
    live: Vec<(usize, &'a Front, Vec<&'static str>)>,
    /// Listeners that come, go, or differ in what is built into them, with the keys.
    later: Vec<(&'a str, Vec<&'static str>)>,
}

impl<'a> Changes<'a> {
    fn between(old: &'a [Front], new: &'a [Front]) -> Self {
        let mut changes = Self::default();
        for (i, front) in old.iter().enumerate() {
            let Some(new) = new.iter().find(|new| new.name == front.name) else {
                changes.later.push((&front.name, Vec::new()));
                continue;
            };
            let differing = front.changes(new);
            let keys = |is_live| {
                let of = differing.iter().filter(|it| it.is_live == is_live);
                of.map(|it| it.key).collect::<Vec<_>>()
            };
            if !keys(true).is_empty() {
                changes.live.push((i, new, keys(true)));
            }
            if !keys(false).is_empty() {
                changes.later.push((&front.name, keys(false)));
            }
        }
        let is_new = |front: &&Front| old.iter().all(|old| old.name != front.name);
        let come = new.iter().filter(is_new).map(|front| (front.name.as_str(), Vec::new()));
        changes.later.extend(come);
        changes
    }
}

/// The keys that hold together or not at all.
const LIMITS: [&str; 3] = ["soft", "hard", "fd_reserve"];

/// What is in force of `new`: what listeners that stay take while they run.
fn fronts_reloaded(old: &[Front], new: &[Front], bounds: &[Bounds], lives: &[Live]) -> Vec<Front> {
    let mut changes = Changes::between(old, new);
    // they share descriptors: who leaves some first
    changes.live.sort_by_key(|(i, front, _)| {
        let at = new.iter().position(|new| new.name == front.name);
        at.is_some_and(|at| lives[*i].handle().bounds().1 < bounds[at].hard())
    });
    for (listener, keys) in changes.later {
        // without keys it is all of them: the listener comes or goes
        let keys = (!keys.is_empty()).then(|| keys.join(", "));
        tracing::warn!(
            key = "shed",
            listener,
            keys,
            "changed in the file: takes effect at the next start"
        );
    }
    for (i, new, mut keys) in changes.live {
        let live = &lives[i];
        if old[i].limits != new.limits && !limit(live, new) {
            keys.retain(|key| !LIMITS.contains(key));
        }
        if !keys.is_empty() {
            tracing::info!(listener = new.name, keys = keys.join(", "), "changed");
        }
        live.change(new);
    }
    lives.iter().map(|live| Front::clone(&live.front())).collect()
}

/// Whether it has the limits of `new`.
fn limit(live: &Live, new: &Front) -> bool {
    match live.limit(new.limits) {
        Ok((soft, hard)) => {
            tracing::info!(listener = new.name, soft, hard, "sheds by other limits");
            true
        }
        Err(err) => {
            let error = error::chain(&err);
            tracing::error!(listener = new.name, %error, "its limits stay as they were");
            false
        }
    }
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

    /// `live` and `later` by name and keys.
    #[track_caller]
    fn check(old: &[Front], new: &[Front], live: &[(&str, &str)], later: &[(&str, &str)]) {
        let got = Changes::between(old, new);
        let of = |name: &str, keys: &[&str]| (name.to_owned(), keys.join(" "));
        let got_live: Vec<_> =
            got.live.iter().map(|(i, _, keys)| of(&old[*i].name, keys)).collect();
        let got_later: Vec<_> = got.later.iter().map(|(name, keys)| of(name, keys)).collect();
        let expected = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(name, keys)| (name.into(), keys.into())).collect::<Vec<_>>()
        };
        assert_eq!((got_live, got_later), (expected(live), expected(later)), "{old:?} {new:?}");
    }

    #[test]
    fn what_can_be_changes_at_once_and_all_else_at_the_next_start() {
        let (web, api) = (front("web", 10), front("api", 20));
        let both = [web.clone(), api.clone()];
        check(&both, &both, &[], &[]);
        // in whatever order
        check(&both, &[front("api", 30), web.clone()], &[("api", "soft")], &[]);
        let mut hard = web.clone();
        hard.limits.hard = Some(100);
        check(&both, &[hard.clone(), api.clone()], &[("web", "hard")], &[]);
        let moved = Front { listen: "127.0.0.1:81".parse().expect("an address"), ..hard.clone() };
        check(&both, &[moved, api.clone()], &[("web", "hard")], &[("web", "listen")]);
        let slower = Front { connect_timeout: Duration::from_secs(9), ..web.clone() };
        let slower = [slower, api.clone()];
        check(&both, &slower, &[("web", "connect_timeout_seconds")], &[]);
        check(&both, slice::from_ref(&web), &[], &[("api", "")]);
        check(&both, &[], &[], &[("web", ""), ("api", "")]);
        check(slice::from_ref(&web), &both, &[], &[("api", "")]);
        check(&[web], &[front("other", 10)], &[], &[("web", ""), ("other", "")]);
    }

    #[test]
    fn a_listener_that_keeps_its_address_is_not_given_it_as_backend() {
        let old = [front("web", 10), at("api", 81, "127.0.0.1:1")];
        #[track_caller]
        fn check(old: &[Front], new: &[Front], expected: Option<(&str, &str, &str)>) {
            let got = own_backend(old, new);
            let got = got.as_ref().map(|(name, it)| (&**name, &*it.got, &*it.expected));
            assert_eq!(got, expected);
        }
        let itself = "an address that does not lead back to listen, which is 127.0.0.1:80";
        let moved = at("web", 90, "localhost:80");
        check(&old, &[moved], Some(("web", "localhost:80", itself)));
        check(&old, &[at("web", 90, "127.0.0.1:1")], None);
        // it is not there so far
        check(&old, &[at("other", 90, "127.0.0.1:80")], None);
        let through = format!("{itself}, through api");
        let circle = Some(("web", "127.0.0.1:81", &*through));
        check(&old, &[at("web", 80, "127.0.0.1:81"), at("api", 90, "127.0.0.1:80")], circle);
        // that one stays until the next start
        let api = [front("web", 10), at("api", 81, "127.0.0.1:80")];
        check(&api, &[at("web", 80, "127.0.0.1:81")], circle);
        check(&old, &[at("web", 80, "127.0.0.1:81")], None);
    }

    fn at(name: &str, port: u16, backend: &str) -> Front {
        let listen = ([127, 0, 0, 1], port).into();
        Front { listen, backend: backend.parse().expect("a backend"), ..front(name, 10) }
    }
}
