//! What fires.

use std::{collections::BTreeMap, fmt};

use super::{Family, Scrape, Sink, Value, emit};
use crate::metric::{Descriptor, Kind};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_alert_firing",
            kind: Kind::Gauge,
            labels: &[
                "alert",
                "severity",
                "netns",
                "addr",
                "port",
                "comm",
                "namespace",
                "pod",
                "container",
                "dst",
                "dst_port",
            ],
            help: "1 for each alert that fires and that no other one says better; beyond the limit of series the number of the others, with addr other",
            source: "the detections (agent/src/detect)",
        },
        folds: None,
        emit: firing,
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_alerts_no_room_total",
            kind: Kind::Counter,
            labels: &[],
            help: "Alerts that ended because more of their subjects are gone than are kept",
            source: "the detections (agent/src/detect)",
        },
        folds: None,
        emit: |scrape, sink| sink(&[], Value::Unsigned(scrape.verdicts.no_room)),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_expected_listener_up",
            kind: Kind::Gauge,
            labels: &["addr", "port", "namespace"],
            help: "1 while somebody listens where [[expect]] of the configuration wants it, else 0; absent while the Kubernetes namespace of who listens there is not known",
            source: "LISTEN sockets of sock_diag",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.verdicts.expected.iter().try_for_each(|(labels, is_up)| {
                let Ok(is_up) = is_up else { return Ok(()) };
                emit(sink, &labels.pairs(), None, Value::Unsigned(u64::from(*is_up)))
            })
        },
    },
];

/// Worst first, so that the rest is the least bad.
fn firing(scrape: &Scrape, sink: Sink<'_>) -> fmt::Result {
    let told: Vec<_> = scrape.verdicts.told().collect();
    let (named, rest) = told.split_at(told.len().min(scrape.alert_limit));
    for alert in named {
        let mut labels = vec![
            ("alert", alert.about.name.to_owned()),
            ("severity", alert.severity.name().to_owned()),
        ];
        labels.extend(alert.subject.labels.pairs());
        emit(sink, &labels, None, Value::Unsigned(1))?;
    }
    let mut others: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for alert in rest {
        *others.entry((alert.about.name, alert.severity.name())).or_default() += 1;
    }
    others.into_iter().try_for_each(|((alert, severity), n)| {
        let labels = [("alert", alert), ("severity", severity), ("addr", "other")];
        sink(&labels, Value::Unsigned(n))
    })
}
