//! `/api/v1/check`: what is wrong, what is set so that it does harm, and what could not be judged.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alert, Alerts, SCHEMA_VERSION, Source, Unknown, address};
use crate::{
    audit::{self, wanted::Wanted},
    detect::{self, Judged, some, subject::SubjectKind, tuning::SETTLED},
    id::NetnsId,
    input::{Absent, Tier},
    model::snapshot::{self, Snapshot},
    time::Nanos,
};

/// The state of this host, or of the listeners that were asked about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Version of this form.
    pub schema_version: u32,
    /// When the last sample was taken, in seconds since 1970.
    pub unix_time_seconds: f64,
    /// Who took it.
    pub source: Source,
    /// The worst of all that follows.
    pub status: Status,
    /// The same in one line.
    pub summary: String,
    /// What fires, worst first; what another alert says better is among it.
    pub alerts: Vec<Alert>,
    /// Settings that do harm, worst first.
    pub findings: Vec<Finding>,
    /// Detections that could not judge all of their subjects.
    pub unknown: Vec<Unknown>,
    /// Detections that need a longer time than was watched.
    pub need_longer: Vec<String>,
    /// What keeps the agent from seeing more.
    pub missing: Vec<String>,
    /// Entries of the configuration that have matched nothing so far, once there are enough samples.
    #[serde(default)]
    pub unmatched: Vec<String>,
    /// What was checked, by netns, address and port.
    pub listeners: Vec<Checked>,
}

/// How it stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nothing is wrong; there may be something worth a look.
    Fine,
    /// Nothing is known to be wrong, and it is not known whether connections are accepted.
    Unknown,
    /// Somebody has to act, not at once.
    Warning,
    /// Somebody has to act at once.
    Critical,
}

/// A setting that does harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What it is called.
    pub finding: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// What it concerns: `listener`, `process`, …
    pub kind: String,
    /// Its name, for people.
    pub subject: String,
    /// Its names, as the metrics' labels.
    pub labels: BTreeMap<String, String>,
    /// Processes behind it.
    pub pids: Vec<u32>,
    /// What was seen, in numbers.
    pub seen: String,
    /// Why that matters here.
    pub why: String,
    /// What mends it, as text for a shell; what no command does is a comment.
    pub mend: String,
    /// Whether the program has to be started again before that helps.
    pub restart: bool,
}

/// A listener that was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checked {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Local address.
    pub addr: std::net::IpAddr,
    /// Local port.
    pub port: u16,
    /// Address and port as `ss` prints them.
    pub address: String,
    /// Name of the owner with the lowest pid; null: not known.
    pub comm: Option<String>,
    /// Processes that hold one of the sockets.
    pub pids: Vec<u32>,
    /// Number of sockets; 0: nobody listens there any more.
    pub sockets: usize,
    /// Connections that wait for accept.
    pub length: u64,
    /// Accept-queue limit.
    pub limit: u64,
    /// length / limit of the fullest socket; null: no socket.
    pub fill_ratio_max: Option<f64>,
    /// Listen drops since the agent watches; null: not known.
    pub drops: Option<u64>,
    /// Why it is not known whether anybody accepts there; null: it is known.
    pub cannot_tell: Option<Absent>,
}

impl Check {
    /// What a snapshot shows. `watched`: the time that all samples together cover, where that is short.
    #[must_use]
    pub fn new(judged: &Judged, source: Source, watched: Option<Nanos>) -> Self {
        let Judged { snapshot, .. } = judged;
        let Alerts { alerts, unknown, .. } = Alerts::new(judged, source);
        let findings = audit::audit(snapshot, &judged.verdicts);
        let check = Self {
            schema_version: SCHEMA_VERSION,
            unix_time_seconds: Duration::from_nanos(snapshot.unix_time.0).as_secs_f64(),
            source,
            status: Status::Fine,
            summary: String::new(),
            need_longer: watched.map_or_else(Vec::new, |watched| {
                let mut longer = need_longer(watched, judged, &alerts);
                longer.retain(|name| unknown.iter().all(|it: &Unknown| it.alert != *name));
                longer
            }),
            alerts,
            findings: findings.iter().map(Finding::new).collect(),
            unknown,
            missing: missing(snapshot),
            unmatched: unmatched(judged),
            listeners: snapshot.listeners.iter().map(Checked::new).collect(),
        };
        check.summed_up()
    }

    /// The same, where watching ended before it was certain whether a queue that nobody served is stalled.
    #[must_use]
    pub fn too_short_for_stalls(mut self) -> Self {
        self.need_longer.insert(0, "ListenerStalled".to_owned());
        self.summed_up()
    }

    /// Of this, what concerns the listeners that are asked for and the processes behind them; `None`:
    /// there is no such listener.
    #[must_use]
    pub fn only(mut self, wanted: Wanted) -> Option<Self> {
        self.listeners.retain(|it| wanted.takes(it.addr, it.port));
        let pids: Vec<u32> = self.listeners.iter().flat_map(|it| it.pids.iter().copied()).collect();
        // by name alone where the processes are not known; others may have the same
        let comms = |of: &[u32]| {
            let unknown = |it: &&Checked| of.is_empty() || it.pids.is_empty() && 0 < it.sockets;
            let listeners = self.listeners.iter().filter(unknown);
            listeners.filter_map(|it| it.comm.as_deref()).collect::<Vec<_>>()
        };
        let concerns = |kind: &str, labels: &BTreeMap<String, String>, of: &[u32]| {
            let addr = labels.get("addr").and_then(|it| it.parse().ok());
            let port = labels.get("port").and_then(|it| it.parse().ok());
            let comm = labels.get("comm").map(String::as_str);
            match (addr, port) {
                (Some(addr), Some(port)) => {
                    kind != SubjectKind::Udp.name() && wanted.takes(addr, port)
                }
                // wanted at any address, so missing at each
                (None, Some(port)) if kind == SubjectKind::Expected.name() => {
                    wanted.port == Some(port)
                }
                _ if kind == SubjectKind::Process.name() => of.iter().any(|it| pids.contains(it)),
                _ if kind == SubjectKind::Caller.name() => {
                    of.iter().any(|it| pids.contains(it))
                        || comm.is_some_and(|it| comms(of).contains(&it))
                }
                _ => false,
            }
        };
        self.alerts.retain(|it| concerns(&it.kind, &it.labels, &it.pids));
        self.findings.retain(|it| concerns(&it.kind, &it.labels, &it.pids));
        let of_listeners = of_listeners();
        self.unknown.retain(|it| of_listeners.contains(&it.alert.as_str()));
        self.need_longer.retain(|name| of_listeners.contains(&name.as_str()));
        let is_there = self.listeners.iter().any(|it| 0 < it.sockets) || !self.alerts.is_empty();
        is_there.then(|| self.summed_up())
    }

    /// What is told: what fires, and nothing else says it better.
    pub fn told(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.iter().filter(|alert| alert.inhibited_by.is_none())
    }

    /// With status and summary as the rest has them.
    fn summed_up(self) -> Self {
        let alerts = self.told().map(|it| (of(&it.severity), &it.alert, &it.subject));
        let findings = self.findings.iter();
        let findings = findings.map(|it| (of(&it.severity), &it.finding, &it.subject));
        let worst = alerts.chain(findings).min_by_key(|it| std::cmp::Reverse(it.0));
        let worst = worst.filter(|it| it.0 != Status::Fine);
        let unclear = self.listeners.iter().find(|it| it.cannot_tell.is_some());
        let (status, what) = match (worst, unclear) {
            (Some((status, name, subject)), _) => (status, format!(": {name} {subject}")),
            (None, Some(Checked { address, cannot_tell, .. })) => {
                let why = cannot_tell.map_or_else(String::new, |why| format!(": {why}"));
                let what = format!(": whether anybody accepts on {address} cannot be told{why}");
                (Status::Unknown, what)
            }
            (None, None) => (Status::Fine, ", nothing is wrong".to_owned()),
        };
        let (counted, not_judged) = (self.counted(), self.not_judged());
        let summary = match (not_judged, status) {
            (None, _) => format!("{}: {counted}{what}", status.word()),
            (Some(n), Status::Fine) => format!("{}: {counted}{what}, {n}", status.word()),
            (Some(n), Status::Unknown | Status::Warning | Status::Critical) => {
                format!("{}: {counted}, {n}{what}", status.word())
            }
        };
        Self { status, summary, ..self }
    }

    /// How many of what there are, as the summary has it.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let bad = |severity: &str| of(severity) != Status::Fine;
        let (alerts, calm): (Vec<_>, Vec<_>) = self.told().partition(|it| bad(&it.severity));
        let findings = self.findings.iter().filter(|it| bad(&it.severity)).count();
        let infos = calm.len() + self.findings.len() - findings;
        Counts { alerts: alerts.len(), findings, infos }
    }

    /// How many detections could not judge, or not all of their subjects, in words. Not one that looks
    /// only when there is a reason to.
    fn not_judged(&self) -> Option<String> {
        let unknown = self.unknown.iter().filter(|it| !self.is_on_demand(it)).count();
        let n = (unknown + self.need_longer.len()) as u64;
        (0 < n).then(|| format!("{} not judged", some(n, "detection", "detections")))
    }

    /// Whether a detection has not judged because its input is looked for only while somebody waits.
    #[must_use]
    pub fn is_on_demand(&self, it: &Unknown) -> bool {
        it.needs_closer_look() && !self.missing.iter().any(|it| it.starts_with("closer look:"))
    }

    /// The same in words: `2 alerts, 1 finding, 1 info`.
    fn counted(&self) -> String {
        let Counts { alerts, findings, infos } = self.counts();
        let counts = [
            (alerts, "alert", "alerts"),
            (findings, "finding", "findings"),
            (infos, "info", "infos"),
        ];
        let counts = counts.into_iter().filter(|(n, ..)| 0 < *n);
        let counts = counts.map(|(n, one, many)| some(n as u64, one, many));
        let listeners = self.listeners.iter().filter(|it| 0 < it.sockets).count();
        let checked =
            (alerts + findings == 0).then(|| some(listeners as u64, "listener", "listeners"));
        checked.into_iter().chain(counts).collect::<Vec<_>>().join(", ")
    }
}

/// How much a check tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Alerts that are told, warnings and worse.
    pub alerts: usize,
    /// Findings, warnings and worse.
    pub findings: usize,
    /// Infos, of either kind.
    pub infos: usize,
}

impl Status {
    /// As monitoring plugins have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fine => "OK",
            Self::Unknown => "UNKNOWN",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }
}

/// What a severity makes of the whole.
fn of(severity: &str) -> Status {
    match severity {
        "critical" => Status::Critical,
        "warning" => Status::Warning,
        "info" => Status::Fine,
        // what nobody here knows may be the worst there is
        _ => Status::Critical,
    }
}

impl Finding {
    /// One finding.
    #[must_use]
    pub fn new(finding: &audit::Finding) -> Self {
        let subject = &finding.subject;
        let labels = subject.labels.pairs().into_iter();
        Self {
            finding: finding.name.to_owned(),
            severity: finding.severity.name().to_owned(),
            kind: subject.kind.name().to_owned(),
            subject: subject.name.clone(),
            labels: labels.map(|(name, value)| (name.to_owned(), value)).collect(),
            pids: subject.pids.iter().map(|pid| pid.0).collect(),
            seen: finding.seen.clone(),
            why: finding.why.clone(),
            mend: finding.mend.clone(),
            restart: finding.restart,
        }
    }
}

impl Checked {
    fn new(listener: &snapshot::Listener) -> Self {
        let key = listener.key;
        let NetnsId(netns) = key.netns;
        // with an empty queue nobody has to accept
        let cannot_tell =
            listener.stalled.err().filter(|&why| 0 < listener.length && why != Absent::TooEarly);
        Self {
            netns,
            addr: key.addr,
            port: key.port,
            address: address(key, listener.v6only),
            comm: listener.comm.as_deref().map(str::to_owned),
            pids: listener.owners.iter().map(|pid| pid.0).collect(),
            sockets: listener.members.len(),
            length: listener.length,
            limit: listener.limit,
            fill_ratio_max: listener.fill_ratio_max,
            drops: listener.counters.drops.ok(),
            cannot_tell,
        }
    }
}

/// Detections about listeners, those that are expected among them, and the processes behind them.
fn of_listeners() -> Vec<&'static str> {
    let is_meant = |kind| match kind {
        SubjectKind::Listener
        | SubjectKind::Expected
        | SubjectKind::Process
        | SubjectKind::Caller => true,
        SubjectKind::Destination
        | SubjectKind::Udp
        | SubjectKind::Namespace
        | SubjectKind::Host
        | SubjectKind::Agent => false,
    };
    let kinds = detect::kinds().into_iter().filter(|(kind, _)| is_meant(*kind));
    kinds.flat_map(|(_, abouts)| abouts).map(|about| about.name).collect()
}

/// Entries that nothing has matched, if that says something so far.
fn unmatched(judged: &Judged) -> Vec<String> {
    let is_settled = SETTLED <= judged.snapshot.samples;
    let idle = judged.verdicts.idle.iter().filter(|_| is_settled);
    idle.map(ToString::to_string).collect()
}

/// Detections that cannot have judged within `watched`, and of which none fires.
fn need_longer(watched: Nanos, judged: &Judged, alerts: &[Alert]) -> Vec<String> {
    let all = detect::all().into_iter();
    // what may be missing for a while
    let waits = judged.verdicts.expected.iter().any(|(_, is_up)| *is_up == Ok(false));
    let longer = all.filter(|about| {
        watched < about.min_age + about.timing.raise_for
            || waits && about.name == "ExpectedListenerDown"
    });
    let names = longer.map(|about| about.name.to_owned());
    names.filter(|name| alerts.iter().all(|alert| alert.alert != *name)).collect()
}

/// What could not be read, and why no program sees handshakes.
fn missing(snapshot: &Snapshot) -> Vec<String> {
    let degraded = snapshot.degraded.iter().map(|(source, why)| format!("{source}: {why}"));
    let unseen = snapshot.hooks.iter().find(|hook| {
        hook.event == "established" && matches!(hook.tier, Tier::Sampled | Tier::None)
    });
    let unseen = unseen.map(|hook| {
        let reasons = hook.reasons();
        format!("no eBPF program runs: {reasons} (see: backlogd doctor)")
    });
    degraded.chain(unseen).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        detect::{
            alert,
            fixture::{listener, snapshot},
            phase::Severity,
        },
        id::Pid,
    };

    /// That accept fails in tasks named nginx, for these processes; whether that concerns a listener.
    #[track_caller]
    fn check(pids: &[u32], change: impl FnOnce(&mut snapshot::Listener), expected: Option<bool>) {
        let mut now = snapshot(vec![listener(80), listener(81)]);
        let fires = [("AcceptErrors", Severity::Critical, 1, "EMFILE from accept")];
        change(&mut now.listeners[0]);
        let mut judged = audit::fixture::judged(now, &fires);
        let told: &mut alert::Alert =
            Arc::make_mut(&mut Arc::make_mut(&mut judged.verdicts).alerts[0]);
        let subject = Arc::make_mut(&mut told.subject);
        (subject.kind, subject.pids) =
            (SubjectKind::Caller, pids.iter().map(|&pid| Pid(pid)).collect());
        (subject.labels.addr, subject.labels.port) = (None, None);
        let all = Check::new(&judged, Source::Daemon, None);
        let only = all.only(Wanted { addr: None, port: Some(80) });
        let got = only.map(|only| only.status == Status::Critical);
        assert_eq!(expected, got, "{pids:?}");
    }

    #[test]
    fn what_fails_for_another_process_of_that_name_does_not_concern_a_listener() {
        let gone = |it: &mut snapshot::Listener| {
            it.members.clear();
            it.owners = Arc::default();
        };
        let unseen = |it: &mut snapshot::Listener| it.owners = Arc::default();
        check(&[100], |_| {}, Some(true));
        check(&[100, 200], |_| {}, Some(true));
        check(&[200], |_| {}, Some(false));
        // nobody listens there, and it is nobody's
        check(&[200], gone, None);
        // by name where nobody knows better
        check(&[], |_| {}, Some(true));
        check(&[], |it| it.comm = Some("redis".into()), Some(false));
        check(&[200], unseen, Some(true));
    }
}
