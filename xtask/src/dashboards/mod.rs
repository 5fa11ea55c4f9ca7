//! `cargo xtask dashboards`: Grafana's dashboards, made from one description, and what provisions rules and
//! dashboards in Kubernetes, made from the files of `dashboards/`.
//!
//! With `--check` nothing is written: a file that differs is an error. What the queries mean is tested by
//! the agent's tests (`agent/tests/rules.rs`, `agent/tests/dashboards.rs`), on the committed files.

mod agent;
mod board;
mod fleet;
mod kubernetes;
mod link;
mod listener;
mod panel;
mod shed;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use self::board::Board;
use crate::sh;

const BOARDS: [(&str, &Board); 3] = [
    ("dashboards/fleet.json", &fleet::BOARD),
    ("dashboards/listener.json", &listener::BOARD),
    ("dashboards/agent.json", &agent::BOARD),
];

/// The flags of the verb.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only says whether the committed files are what this makes
    #[arg(long)]
    check: bool,
}

/// Writes all files, or compares them.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = sh::root()?;
    if arguments.check {
        return check(&root);
    }
    for (path, text) in files(&root)? {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Fails on files that are not what this would write.
pub(crate) fn check(root: &Path) -> Result<()> {
    let differs = |(path, text): &(PathBuf, String)| {
        fs::read_to_string(root.join(path)).ok().as_ref() != Some(text)
    };
    let others: Vec<_> = files(root)?.into_iter().filter(differs).collect();
    let names: Vec<_> = others.iter().map(|(path, _)| path.display().to_string()).collect();
    if !names.is_empty() {
        bail!("{}: not what `cargo xtask dashboards` writes", names.join(", "));
    }
    Ok(())
}

/// Paths below the root, and texts.
fn files(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for (path, board) in BOARDS {
        files.push((PathBuf::from(path), serde_json::to_string_pretty(&board.json())? + "\n"));
    }
    let made = |path: &Path| files.iter().find(|(ours, _)| ours == path).map(|it| it.1.clone());
    let read = |path: &Path| match made(path) {
        Some(text) => Ok(text),
        None => fs::read_to_string(root.join(path))
            .with_context(|| format!("cannot read {}", path.display())),
    };
    let objects = kubernetes::files(read)?;
    files.extend(objects);
    Ok(files)
}
