//! `backlogd config`: check a file, show what is in force.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    Exit,
    flags::Flags,
    out::{self, Align, Cell, Color, Column, Format, Table, Terminal},
};
use crate::config::{self, Loaded, Shown, TABLES};

/// Version of the JSON of `config show`.
const SCHEMA_VERSION: u32 = 1;

/// Check or show the configuration
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Check(Check),
    Show(Show),
}

/// Check a file; says nothing when it is right
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  backlogd config check /etc/backlogd/backlogd.toml\n\n\
    Only the file is looked at, not the environment. Exit code 78 when something is wrong. A [[detect]]\n\
    that silences all detections is right, and standard error has a warning.")]
pub(super) struct Check {
    /// The file to check
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Show every setting in force and where its value came from
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    backlogd config show\n  \
    BACKLOGD_SLOTS=64 backlogd config show --stalled-after-seconds 5 -o json")]
pub(super) struct Show {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    flags: Flags<true>,
}

impl Verb {
    pub(super) fn run(&self, color: Color) -> anyhow::Result<Exit> {
        match self {
            Self::Check(check) => {
                let loaded = config::check(&check.file)?;
                if let Some(entry) = loaded.config.tuning.mutes_all() {
                    out::note(&format!("warning: {} silences all detections", entry.place));
                }
            }
            Self::Show(show) => {
                let loaded = show.flags.load()?;
                out::print(&match show.output {
                    Format::Table | Format::Wide => table(&loaded).render(&Terminal::new(color)),
                    Format::Json => out::json(&document(&loaded))?,
                    Format::Yaml => out::yaml(&document(&loaded))?,
                })?;
            }
        }
        Ok(Exit::Fine)
    }
}

fn table(loaded: &Loaded) -> Table {
    let column = |name| Column { name, align: Align::Left, shrinks: false };
    let rows = loaded.settings().map(|(key, value, from)| {
        let value = match value {
            Value::Null => "-".into(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        vec![Cell::new(key.name), Cell::new(&value), Cell::new(&from.to_string())]
    });
    let tables = loaded.tables.iter().map(|Shown { table, value, from, .. }| {
        let name = format!("[[{table}]]");
        vec![Cell::new(&name), Cell::new(&value.to_string()), Cell::new(&from.to_string())]
    });
    let rows = rows.chain(tables).collect();
    Table { columns: ["KEY", "VALUE", "FROM"].map(column).into(), rows }
}

/// `{"schema_version": 1, "settings": {KEY: {"value": …, "from": {"source": …}}}, "tables": {TABLE:
/// [{"value": …, "from": …}]}}`
fn document(loaded: &Loaded) -> Value {
    let settings: Map<String, Value> = loaded
        .settings()
        .map(|(key, value, from)| (key.name.into(), json!({"value": value, "from": from})))
        .collect();
    let elements = |table| {
        let of_table = loaded.tables.iter().filter(move |shown| shown.table == table);
        of_table.map(|Shown { value, from, .. }| json!({"value": value, "from": from})).collect()
    };
    let tables: Map<String, Value> =
        TABLES.into_iter().map(|table| (table.into(), elements(table))).collect();
    json!({"schema_version": SCHEMA_VERSION, "settings": settings, "tables": tables})
}
