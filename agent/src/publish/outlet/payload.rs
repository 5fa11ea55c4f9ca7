//! Alerts as receivers take them; pure.
//!
//! Alertmanager's API: `postableAlert` of api/v2/openapi.yaml. Webhooks: the form in which Alertmanager
//! tells webhooks, version 4 (template/template.go, `Data`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::queue::Telling;
use crate::{
    detect::alert::{Alert, Untold},
    outlet::Form,
    time::{Nanos, UnixTime},
};

/// Most bytes of a request, unless a single alert has more.
pub(super) const LARGEST: usize = 1 << 20;
/// Most processes that are named.
const PIDS: usize = 32;
/// What Alertmanager writes for a time that is not known.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// What is the same in all payloads for one receiver.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub(super) form: Form,
    /// This host's name.
    pub(super) instance: String,
    /// Labels for each alert.
    pub(super) labels: Vec<(String, String)>,
    /// How often it is told again of what still fires.
    pub(super) resend: Nanos,
}

/// The alert of Alertmanager's API; a webhook's has more fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: String,
    ends_at: String,
    #[serde(flatten)]
    more: Option<More>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct More {
    status: &'static str,
    fingerprint: String,
    #[serde(rename = "generatorURL")]
    generator_url: &'static str,
}

/// The body for as many of `tellings` as there is room for, and how many these are.
///
/// # Errors
/// Those of the encoder, for which there is no reason.
pub(super) fn body(
    style: &Style,
    now: UnixTime,
    tellings: &[Telling],
) -> serde_json::Result<(Vec<u8>, usize)> {
    let mut alerts = Vec::new();
    let mut n = 0;
    for telling in tellings {
        let one = alert(style, now, telling)?;
        if 0 < n && LARGEST < alerts.len() + one.len() {
            break;
        }
        if 0 < n {
            alerts.push(b',');
        }
        alerts.extend(one);
        n += 1;
    }
    let (head, tail) = match style.form {
        Form::Alertmanager => ("[".to_owned(), "]"),
        Form::Webhook => (webhook_head(style, &tellings[..n])?, "]}"),
    };
    Ok(([head.as_bytes(), &alerts, tail.as_bytes()].concat(), n))
}

/// A webhook's document as far as its alerts, which are of one name.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    version: &'static str,
    group_key: String,
    truncated_alerts: u64,
    status: &'static str,
    receiver: &'static str,
    group_labels: BTreeMap<&'a str, &'a str>,
    common_labels: BTreeMap<&'a str, &'a str>,
    common_annotations: BTreeMap<&'a str, &'a str>,
    #[serde(rename = "externalURL")]
    external_url: &'static str,
}

/// The group is that of this host and the alerts' name. It fires while one of them does, also one that is in
/// another request, as Alertmanager has it.
fn webhook_head(style: &Style, tellings: &[Telling]) -> serde_json::Result<String> {
    let first = tellings.first();
    let alertname = first.map_or_else(String::new, |telling| name(&telling.alert));
    let mut common_labels: BTreeMap<&str, &str> = common(style).collect();
    common_labels.insert("alertname", &alertname);
    let mut group_labels = common_labels.clone();
    group_labels.retain(|label, _| ["alertname", "instance"].contains(label));
    let pairs: Vec<_> =
        group_labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    let head = Head {
        version: "4",
        group_key: format!("{{}}:{{{}}}", pairs.join(", ")),
        truncated_alerts: 0,
        status: status(first.is_some_and(|telling| telling.group_fires)),
        receiver: "backlogd",
        group_labels,
        common_labels,
        common_annotations: BTreeMap::new(),
        external_url: "",
    };
    let mut text = serde_json::to_string(&head)?;
    // the alerts are its last member
    text.pop();
    text.push_str(",\"alerts\":[");
    Ok(text)
}

/// As rules for Prometheus name it.
fn name(alert: &Alert) -> String {
    format!("Backlogd{}", alert.about.name)
}

/// Labels of every alert; what is configured comes last, so it wins.
fn common(style: &Style) -> impl Iterator<Item = (&str, &str)> {
    let configured = style.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    [("instance", style.instance.as_str())].into_iter().chain(configured)
}

const fn status(fires: bool) -> &'static str {
    if fires { "firing" } else { "resolved" }
}

fn alert(style: &Style, now: UnixTime, telling: &Telling) -> serde_json::Result<Vec<u8>> {
    let Telling { alert, ended, reason, .. } = telling;
    let name = name(alert);
    let own = alert.subject.labels.pairs();
    let mut labels: BTreeMap<&str, &str> = common(style).collect();
    labels.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
    labels.extend([("alertname", name.as_str()), ("severity", alert.severity.name())]);
    // Alertmanager refuses what ends before it starts, which a clock that is put back would give
    let ends = ended.unwrap_or_else(|| UnixTime(now.0.saturating_add(4 * style.resend.0)));
    let starts = UnixTime(alert.since.0.min(ends.0));
    let is_webhook = style.form == Form::Webhook;
    let ends_at = if is_webhook && ended.is_none() { NO_TIME.to_owned() } else { rfc3339(ends) };
    let more = is_webhook.then(|| More {
        status: status(ended.is_none()),
        fingerprint: format!("{:016x}", telling.key),
        generator_url: "",
    });
    let starts_at = rfc3339(starts);
    let mut annotations = annotations(alert);
    annotations.extend(reason.clone().map(|reason| ("ended", reason)));
    serde_json::to_vec(&Told { labels, annotations, starts_at, ends_at, more })
}

fn annotations(alert: &Alert) -> BTreeMap<&'static str, String> {
    let Alert { about, subject, latest, .. } = alert;
    let mut all = BTreeMap::from([
        ("summary", about.summary.to_owned()),
        ("description", format!("{}: {}", subject.name, latest.seen)),
        ("why", about.why.to_owned()),
    ]);
    all.extend(latest.cause.clone().map(|cause| ("cause", cause)));
    let unknown = |it: Untold| format!("cannot be told since {}: {}", rfc3339(it.since), it.why);
    all.extend(alert.unknown.map(|it| ("unknown", unknown(it))));
    if !latest.mend.is_empty() {
        all.insert("mend", latest.mend.clone());
    }
    if !subject.pids.is_empty() {
        let mut pids: Vec<_> = subject.pids.iter().take(PIDS).map(ToString::to_string).collect();
        if PIDS < subject.pids.len() {
            pids.push(format!("and {} more", subject.pids.len() - PIDS));
        }
        all.insert("pids", pids.join(", "));
    }
    all
}

/// In UTC, with milliseconds.
fn rfc3339(at: UnixTime) -> String {
    let milliseconds = at.0 / 1_000_000;
    let seconds = milliseconds / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let fraction = milliseconds % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}Z")
}

/// Year, month and day of a day since 1970-01-01, in years that begin in March, so that the day of
/// leap years is their last.
const fn civil(days: u64) -> (u64, u64, u64) {
    // 1970-01-01 is day 719,468 of a calendar that begins at 0000-03-01; 400 years have 146,097 days
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(expected, rfc3339(UnixTime(seconds * 1_000_000_000 + 57_250_000)));
    }

    #[test]
    fn a_time_is_written_as_receivers_read_it() {
        check(0, "1970-01-01T00:00:00.057Z");
        check(951_782_399, "2000-02-28T23:59:59.057Z");
        check(951_782_400, "2000-02-29T00:00:00.057Z");
        check(951_868_800, "2000-03-01T00:00:00.057Z");
        check(1_700_000_000, "2023-11-14T22:13:20.057Z");
        check(4_107_542_400, "2100-03-01T00:00:00.057Z");
    }
}
