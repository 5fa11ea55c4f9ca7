//! Where a click on a value leads; pure.

use serde_json::{Value, json};

use super::board::{Form, Link};

/// The folder of the runbooks, as the alerts have it.
pub(super) const RUNBOOKS: &str = "https://github.com/backlogd/backlogd/blob/main/docs/runbooks/";

/// What names a listener: more would narrow it to none where a label is empty.
const OF_LISTENER: &[&str] = &["job", "instance", "netns", "addr", "port", "comm"];
const OF_HOST: &[&str] = &["job", "instance"];

impl Link {
    /// The links of all values of a panel.
    pub(super) fn json(self, form: Form) -> Value {
        match self {
            Self::Listener => json!([listener(form)]),
            Self::Host | Self::Alert => {
                json!([board("This host", "backlogd-fleet", OF_HOST, form)])
            }
            Self::Agent => json!([board("Its agent", "backlogd-agent", OF_HOST, form)]),
            Self::Runbook(name) => json!([runbook(name)]),
            Self::None => json!([]),
        }
    }

    /// Columns of a table that have links of their own.
    pub(super) fn of_columns(self) -> Vec<(&'static str, Value)> {
        match self {
            Self::Alert => {
                let listener = json!([listener(Form::Table)]);
                let runbook = json!([runbook("Backlogd${__data.fields.alert}")]);
                vec![("alert", runbook), ("addr", listener.clone()), ("port", listener)]
            }
            Self::Listener | Self::Host | Self::Agent | Self::Runbook(_) | Self::None => Vec::new(),
        }
    }

    /// Columns of a table that are there for the links alone.
    pub(super) const fn hidden(self) -> &'static [&'static str] {
        match self {
            Self::Listener | Self::Host | Self::Alert => &["job", "netns"],
            Self::Agent => &["job"],
            Self::Runbook(_) | Self::None => &[],
        }
    }
}

fn listener(form: Form) -> Value {
    board("This listener", "backlogd-listener", OF_LISTENER, form)
}

/// To a dashboard, with time and labels.
fn board(title: &str, uid: &str, labels: &[&str], form: Form) -> Value {
    let from = if form == Form::Table { "__data.fields" } else { "__field.labels" };
    let labels: String =
        labels.iter().map(|name| format!("&var-{name}=${{{from}.{name}}}")).collect();
    let url = format!("/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}{labels}");
    json!({"title": title, "url": url, "targetBlank": false})
}

fn runbook(name: &str) -> Value {
    json!({"title": "Its runbook", "url": format!("{RUNBOOKS}{name}.md"), "targetBlank": true})
}
