//! What became of the alerts that receivers were told of.

use super::{Family, Value};
use crate::metric::{Descriptor, Kind};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_alert_notifications_total",
            kind: Kind::Counter,
            labels: &["receiver", "result"],
            help: "Alerts sent to a receiver: taken; refused (an answer 3xx or 4xx but 401, 403, 404, 408 and 429), which are dropped until they are due again; failed, which are tried again",
            source: "answers of the receivers of the configuration, by host and port",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.deliveries.iter().try_for_each(|(receiver, it)| {
                let results = [("taken", it.taken), ("refused", it.refused), ("failed", it.failed)];
                results.into_iter().try_for_each(|(result, n)| {
                    sink(&[("receiver", receiver), ("result", result)], Value::Unsigned(n))
                })
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_alert_notifications_pending",
            kind: Kind::Gauge,
            labels: &["receiver"],
            help: "Alerts whose newest state a receiver does not know yet",
            source: "what is to be sent",
        },
        folds: None,
        emit: |scrape, sink| {
            scrape.deliveries.iter().try_for_each(|(receiver, it)| {
                sink(&[("receiver", receiver)], Value::Unsigned(it.pending))
            })
        },
    },
];
