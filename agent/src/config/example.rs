//! `deploy/backlogd.example.toml`, made from the settings.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    Config, DEFAULT_FILE,
    key::{KEYS, Key},
    shed,
};
use crate::detect::{self, rule::Threshold};

/// The whole example file: every key with its help, range and default, commented out.
#[must_use]
pub fn text() -> String {
    let mut text = format!(
        "# Configuration of backlogd; by default looked for at {DEFAULT_FILE}.\n\
         #\n\
         # Every key is also a flag (--sample-interval-seconds) and a variable\n\
         # (BACKLOGD_SAMPLE_INTERVAL_SECONDS): a flag beats a variable beats this file beats the\n\
         # default. `backlogd config show` prints what is in force, and `backlogd config check FILE`\n\
         # finds mistakes. SIGHUP reloads. The values below are the defaults.\n",
    );
    for key in &KEYS {
        text.push_str(&entry(key));
    }
    text.push_str(DETECT);
    text.push_str(&detections());
    text.push_str(OTHERS);
    text.push_str(&shed::example(wrapped));
    text
}

/// What can be set of each detection.
fn detections() -> String {
    let mut text = String::new();
    for about in detect::all() {
        let (raise, clear) = (about.timing.raise_for, about.timing.clear_for);
        text.push_str("#\n");
        text.push_str(&wrapped(&format!(
            "{}: {}; raise_for_seconds = {}, clear_for_seconds = {}.",
            about.name,
            about.summary,
            raise.as_seconds(),
            clear.as_seconds()
        )));
        for threshold in about.thresholds {
            let Threshold { name, default, range, help } = threshold;
            let line = format!("- {name} = {default} ({range}): {help}");
            text.push_str(&wrapped(&line));
        }
    }
    text
}

/// Before the list of detections.
const DETECT: &str = r#"
# What follows is in this file alone: tables, each as often as it is needed, after all keys.
#
# [[detect]] tunes or silences detections, for what `match` takes, or for all. Of tables that meet,
# the last one wins, setting by setting. What `match` leaves out takes all; in comm (the owner's
# name), namespace, pod, container and unit a * stands for any text; port may be a range.
# Without `alert` it is for all detections, and takes silence and the times alone.
#[[detect]]
#alert = "ListenerStalled"
#match = { port = "8000-8099", addr = "0.0.0.0", comm = "nginx", namespace = "shop", pod = "web-*" }
#raise_for_seconds = 30
#clear_for_seconds = 60
#[[detect]]
#match = { container = "test-*", unit = "lab@*.service", netns = 4026531840 }
#silence = true
#
# The detections, with their defaults and thresholds:
"#;

/// After it.
const OTHERS: &str = r#"
# [[expect]]: a listener that must be there. Without addr any address will do; namespace is that of
# the owner's pod.
#[[expect]]
#addr = "0.0.0.0"
#port = 443
#namespace = "shop"
#within_seconds = 60

# [[alertmanager]]: who is told of alerts, by version 2 of Alertmanager's API; one table for each
# Alertmanager of a cluster. url may have a path prefix. Without ca_file those are trusted that the
# system trusts. Files of tokens and passwords are read for each request. labels are added to each alert,
# and may replace `instance`, which is the host's name.
#[[alertmanager]]
#url = "https://alertmanager:9093"
#ca_file = "/etc/backlogd/ca.pem"
#bearer_token_file = "/etc/backlogd/token"
#timeout_seconds = 10
#resend_seconds = 60
#labels = { cluster = "eu1" }

# [[webhook]]: the same for anything that takes a POST of JSON in the form of Alertmanager's webhooks. Each
# is about one group: the alerts of one name on this host.
#[[webhook]]
#url = "http://[::1]:8080/alerts"
#username = "backlogd"
#password_file = "/etc/backlogd/password"
#timeout_seconds = 10
#resend_seconds = 60
#labels = { cluster = "eu1" }

# [[shed]]: a listener of this process that sheds, in front of a backend; `backlogd run` and
# `backlogd shed` host it, and `backlogd shed --check` prints what holds. SIGHUP changes soft, hard,
# fd_reserve, backlog, backend, half_close_seconds, connect_timeout_seconds and the times of a drain
# of listeners that stay; all else takes effect at the next start, which the log says, and which
# SIGUSR2 is to `backlogd shed` (with one accept loop and without accept_thread).
# A socket that systemd opened is taken by its name or address.
"#;

fn entry(key: &Key) -> String {
    let default = match key.value(&Config::default()) {
        // TOML knows no null; the empty path is the one that is none.
        Value::Null => "\"\"".into(),
        // A string is written alike in JSON and in TOML.
        value => value.to_string(),
    };
    let mut entry = String::from("\n");
    for line in [format!("{}.", key.help), format!("Takes {}.", key.kind.expected())] {
        entry.push_str(&wrapped(&line));
    }
    // Writing to a String cannot fail.
    let _ = writeln!(entry, "#{} = {default}", key.name);
    entry
}

/// As comment lines of at most 100 characters.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if 100 < line.chars().count() + 1 + word.chars().count() {
            lines.push_str(&line);
            lines.push('\n');
            line = "#".into();
        }
        line.push(' ');
        line.push_str(word);
    }
    lines + &line + "\n"
}
