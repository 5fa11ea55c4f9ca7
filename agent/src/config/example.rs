//! `deploy/backlogd.example.toml`, made from the settings.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    Config, DEFAULT_FILE,
    key::{KEYS, Key},
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
# `backlogd shed` host it. listen, backend (HOST:PORT or unix:/PATH) and soft must be there. SIGHUP
# changes soft, hard and fd_reserve of listeners that stay; all else takes effect at the next start.
# Above soft connections are accepted and get on_shed at once: "rst", "fin", "http-503", "http-429",
# or { bytes = "TEXT" }. At hard nothing is accepted: at least 20 % above soft, and 25 % if it is not
# said; each connection takes two descriptors of RLIMIT_NOFILE less fd_reserve. backlog is the limit of
# the accept queue. exempt is shed at hard alone. per_ip is connections of one address, an IPv6 one
# of ipv6_prefix bits; rate and per_ip_rate are connections per second, burst at once.
# Connections from proxy_protocol_from begin with a header of the PROXY protocol, version 1 or 2.
# At SIGTERM it accepts for drain_delay_seconds more, while /readyz says that it is not ready, and open
# connections may go on for drain_seconds after that; the service manager has to wait longer
# (TimeoutStopSec, terminationGracePeriodSeconds). Without a key, what it limits is unlimited, but for
# connect_timeout_seconds = 1, drain_delay_seconds = 0 and drain_seconds = 20.
#[[shed]]
#name = "web"
#listen = "[::]:8080"
#backend = "127.0.0.1:9000"
#soft = 10000
#hard = 12500
#fd_reserve = 256
#backlog = 4096
#on_shed = "http-503"
#exempt = ["10.1.0.0/16"]
#per_ip = 100
#per_ip_rate = 50
#ipv6_prefix = 64
#rate = 5000
#burst = 10000
#proxy_protocol_from = ["10.0.0.0/24"]
#first_byte_seconds = 3
#idle_seconds = 120
#write_stall_seconds = 30
#lifetime_seconds = 86400
#connect_timeout_seconds = 1
#drain_delay_seconds = 5
#drain_seconds = 20
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
