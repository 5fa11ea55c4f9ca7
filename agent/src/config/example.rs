//! `deploy/backlogd.example.toml`, made from the settings.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    Config, DEFAULT_FILE,
    key::{KEYS, Key},
};

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
    text
}

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
