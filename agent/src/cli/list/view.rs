//! Which listeners are shown, in which order and form; from whatever source.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::Context as _;
use clap::Args;

use super::{
    columns,
    select::{self, PortRange, Selection, SortBy},
};
use crate::{
    cli::{
        out::{self, Format, Terminal},
        trace::Namespace,
    },
    publish::api::Listeners,
};

/// See the module.
#[derive(Args, Debug)]
pub(in crate::cli) struct View {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(super) output: Format,
    /// Only these ports, as 443, 80-90 or 80,443; repeatable
    #[arg(short, long = "port", value_delimiter = ',', value_name = "PORT")]
    ports: Vec<PortRange>,
    /// Only listeners of a process with this name; repeatable
    #[arg(long = "comm", value_name = "NAME")]
    comms: Vec<String>,
    /// Only listeners of this process; repeatable
    #[arg(long = "pid", value_name = "PID", value_parser = pid)]
    pids: Vec<u32>,
    /// Only listeners of pods in this Kubernetes namespace; repeatable
    #[arg(short, long = "namespace", value_name = "NAME")]
    namespaces: Vec<String>,
    /// Only listeners of the pod with this name; repeatable
    #[arg(long = "pod", value_name = "NAME")]
    pods: Vec<String>,
    /// Only in this network namespace: its inode number, or a path such as /run/netns/blue or
    /// /proc/PID/ns/net; repeatable
    #[arg(long, value_name = "NETNS")]
    pub(super) netns: Vec<Namespace>,
    /// What comes first
    #[arg(long, value_enum, default_value_t, value_name = "BY")]
    sort: SortBy,
    /// Also those where nobody listens any more
    #[arg(long)]
    all: bool,
    /// Leave out the header
    #[arg(long)]
    no_headers: bool,
}

impl View {
    /// The inode numbers of the network namespaces that were asked for.
    pub(in crate::cli) fn netns(&self) -> anyhow::Result<Vec<u32>> {
        self.netns.iter().map(inode).collect()
    }

    /// What was asked for, in the order that was asked for.
    pub(in crate::cli) fn select(&self, mut listeners: Listeners, netns: &[u32]) -> Listeners {
        let selection = Selection {
            ports: &self.ports,
            comms: &self.comms,
            pids: &self.pids,
            namespaces: &self.namespaces,
            pods: &self.pods,
            netns,
            // Programs get all there is: `sockets` tells them.
            gone: self.all || self.output != Format::Table,
        };
        listeners.listeners.retain(|listener| selection.takes(listener));
        select::sort(&mut listeners.listeners, self.sort);
        listeners
    }

    /// The whole output.
    pub(in crate::cli) fn document(
        &self,
        listeners: &Listeners,
        terminal: &Terminal,
    ) -> anyhow::Result<String> {
        match self.output {
            Format::Table => Ok(self.table(listeners, terminal, false)),
            Format::Wide => Ok(self.table(listeners, terminal, true)),
            Format::Json => out::json(listeners),
            Format::Yaml => out::yaml(listeners),
        }
    }

    fn table(&self, listeners: &Listeners, terminal: &Terminal, wide: bool) -> String {
        let table = columns::table(&listeners.listeners, wide);
        if self.no_headers { table.render_rows(terminal) } else { table.render(terminal) }
    }
}

/// The inode number of a network namespace.
pub(super) fn inode(namespace: &Namespace) -> anyhow::Result<u32> {
    match namespace {
        Namespace::Inode(netns) => Ok(netns.0),
        Namespace::Path(path) => {
            let place = || format!("no network namespace at {}", path.display());
            let inode = fs::metadata(path).with_context(place)?.ino();
            u32::try_from(inode).with_context(place)
        }
    }
}

fn pid(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "expected a process id, a whole number")
}
