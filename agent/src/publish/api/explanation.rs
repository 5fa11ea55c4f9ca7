//! `/api/v1/explain`: the stories of listeners, with their numbers.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Alert, Finding, Listener, SCHEMA_VERSION, Source};
use crate::{
    audit::{audit, story, wanted::Asked},
    detect::Judged,
};

/// Stories of the listeners that were asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Version of this form.
    pub schema_version: u32,
    /// When the sample was taken, in seconds since 1970.
    pub unix_time_seconds: f64,
    /// Who took it.
    pub source: Source,
    /// Empty: there is no such listener. Those where nobody listens any more are last.
    pub listeners: Vec<Explained>,
}

/// One listener's story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// Its name, for people.
    pub subject: String,
    /// The story, part by part.
    pub sections: Vec<Section>,
    /// What fires for it and for the processes behind it, worst first.
    pub alerts: Vec<Alert>,
    /// Settings that do harm to it.
    pub findings: Vec<Finding>,
    /// Its numbers.
    pub listener: Listener,
}

/// A part of a story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Section {
    /// `who`, `limit`, `queue`, `traffic`, `drops`, `accept`, `connections`, `wrong` or `todo`.
    pub section: String,
    /// Sentences for people.
    pub lines: Vec<String>,
}

impl Explanation {
    /// The stories of the listeners that are asked for.
    #[must_use]
    pub fn new(judged: &Judged, asked: &Asked, source: Source) -> Self {
        let now = &*judged.snapshot;
        let findings = audit(now, &judged.verdicts);
        let explained = asked.of(now).into_iter().map(|listener| {
            let alerts = story::alerts_of(listener, &judged.verdicts);
            let findings = story::findings_of(listener, &findings);
            let sections = story::tell(listener, now, &alerts, &findings).into_iter();
            Explained {
                subject: crate::detect::subject_of(listener, now).name,
                sections: sections.map(Section::new).collect(),
                alerts: alerts.into_iter().map(|alert| Alert::new(alert)).collect(),
                findings: findings.into_iter().map(Finding::new).collect(),
                listener: Listener::new(listener, now),
            }
        });
        Self {
            schema_version: SCHEMA_VERSION,
            unix_time_seconds: Duration::from_nanos(now.unix_time.0).as_secs_f64(),
            source,
            listeners: explained.collect(),
        }
    }
}

impl Section {
    fn new(story::Section { name, lines }: story::Section) -> Self {
        Self { section: name.to_owned(), lines }
    }
}
