//! The report for people; pure.

use super::report::{Finding, Hook, Machine, Need, Report, Verdict};
use crate::cli::out::{Align, Cell, Column, Paint, Table, Terminal};

const MIB: u64 = 1 << 20;

/// Facts, the table of events, what tiers need (`wide`), findings.
pub(super) fn render(report: &Report, terminal: &Terminal, wide: bool) -> String {
    let mut parts = vec![facts(report).render_rows(terminal)];
    if !report.hooks.is_empty() {
        parts.push(hooks(&report.hooks, wide).render(terminal));
    }
    if wide {
        parts.push(needs(&report.needs).render(terminal));
    }
    parts.extend(report.findings.iter().map(|finding| show(finding, terminal)));
    parts.join("\n")
}

/// Columns of words, none of which is cut.
fn left(names: &[&'static str]) -> Vec<Column> {
    names.iter().map(|&name| Column { name, align: Align::Left, shrinks: false }).collect()
}

fn facts(report: &Report) -> Table {
    let mut rows = vec![
        vec![Cell::new("verdict"), verdict(report)],
        vec![Cell::new("daemon"), Cell::new(&daemon(report))],
    ];
    rows.extend(
        machine(&report.machine).map(|(name, value)| vec![Cell::new(name), Cell::new(&value)]),
    );
    Table { columns: left(&["FACT", "VALUE"]), rows }
}

fn verdict(report: &Report) -> Cell {
    let n = report.findings.len();
    let findings = if n == 1 { "1 finding".to_owned() } else { format!("{n} findings") };
    match report.verdict {
        Verdict::Fine => Cell::new("fine: nothing is lost"),
        Verdict::Degraded => Cell::new(&format!("degraded: {findings}")).painted(Paint::Yellow),
        Verdict::NoEbpf => {
            Cell::new(&format!("no eBPF program runs: {findings}")).painted(Paint::Red)
        }
        Verdict::Unusable => {
            Cell::new(&format!("nothing can be read: {findings}")).painted(Paint::Red)
        }
    }
}

fn daemon(report: &Report) -> String {
    let daemon = &report.daemon;
    let socket = daemon.socket.as_deref().unwrap_or("-");
    match &daemon.why {
        None => format!("answers at {socket}; what follows is what this process may do"),
        Some(why) => format!("none at {socket}: {why}"),
    }
}

fn machine(machine: &Machine) -> impl Iterator<Item = (&'static str, String)> {
    let or_why = |field: &'static str, value: Option<String>| {
        let why = || machine.absent.get(field).map_or("", String::as_str);
        (field, value.unwrap_or_else(|| format!("not known: {}", why())))
    };
    let number = |field, value: Option<i64>| or_why(field, value.map(|n| n.to_string()));
    let words = |words: &[String]| if words.is_empty() { "none".into() } else { words.join(" ") };
    let capabilities = machine.capabilities.as_deref().map(words);
    let withheld = machine.capabilities_withheld.as_deref().unwrap_or_default();
    let also = match withheld {
        [] => String::new(),
        withheld => format!("; the bounding set withholds {}", withheld.join(" ")),
    };
    let filter = if machine.seccomp_filter == Some(true) { "; seccomp filter" } else { "" };
    let tracefs = machine.tracefs_mounted.map(|mounted| match (mounted, &machine.tracefs) {
        (true, Some(point)) => point.clone(),
        _ => "not mounted".to_owned(),
    });
    let user = |first| if first { "the first" } else { "not the first" }.to_owned();
    let there = |there| if there { "available" } else { "none" }.to_owned();
    [
        or_why("kernel", machine.kernel.clone()),
        or_why("btf_bytes", machine.btf_bytes.map(bytes)),
        or_why("capabilities", capabilities.map(|names| names + &also + filter)),
        or_why("initial_user_namespace", machine.initial_user_namespace.map(user)),
        or_why("lockdown", machine.lockdown.clone()),
        or_why("lsm", machine.lsm.as_deref().map(words)),
        or_why("kprobes", machine.kprobes.map(there)),
        or_why("tracefs_mounted", tracefs),
        or_why("cgroup", machine.cgroup.clone()),
        or_why("locked_memory", Some(bytes(machine.locked_memory_limit_bytes))),
        number("unprivileged_bpf_disabled", machine.unprivileged_bpf_disabled),
        number("perf_event_paranoid", machine.perf_event_paranoid),
        number("bpf_jit_enable", machine.bpf_jit_enable),
        number("bpf_stats_enabled", machine.bpf_stats_enabled),
    ]
    .into_iter()
    .map(|(field, value)| (label(field), value))
}

/// What a field is called here.
fn label(field: &'static str) -> &'static str {
    match field {
        "btf_bytes" => "BTF",
        "initial_user_namespace" => "user namespace",
        "lsm" => "LSM",
        "tracefs_mounted" => "tracefs",
        "locked_memory" => "locked memory",
        other => other,
    }
}

fn bytes(n: u64) -> String {
    match n {
        0 => "none".to_owned(),
        u64::MAX => "unlimited".to_owned(),
        n if n < MIB => format!("{} KiB", n >> 10),
        n => format!("{}.{} MiB", n / MIB, n % MIB * 10 / MIB),
    }
}

/// One row for an event, and one more for each further reason.
fn hooks(hooks: &[Hook], wide: bool) -> Table {
    let rows = hooks.iter().flat_map(|hook| {
        let mut whys: Vec<String> = hook
            .refused
            .iter()
            .map(|refused| match wide {
                true => format!("{} {}: {}", refused.tier, refused.program, refused.why),
                false => format!("{}: {}", refused.tier, refused.why),
            })
            .collect();
        // what is said of a refusal is said once
        if whys.is_empty() || !whys.iter().any(|why| why.contains(&hook.why)) {
            whys.push(hook.why.clone());
        }
        let first = [&hook.event, &hook.tier, &hook.program];
        whys.into_iter().enumerate().map(move |(n, why)| {
            let text = |text: &String| if n == 0 { Cell::new(text) } else { Cell::new("") };
            let mut row: Vec<_> = first.iter().map(|cell| text(cell)).collect();
            if hook.tier == "none" {
                row[1] = row[1].clone().painted(Paint::Yellow);
            }
            row.push(Cell::new(&why));
            row
        })
    });
    let mut columns = left(&["EVENT", "TIER", "PROGRAM", "WHY NOT BETTER"]);
    columns[3].shrinks = !wide;
    Table { columns, rows: rows.collect() }
}

fn needs(needs: &[Need]) -> Table {
    let rows = needs.iter().map(|need| {
        let capabilities = match &need.capabilities[..] {
            [] => "none".to_owned(),
            names => names.join(" "),
        };
        let missing = match need.missing.as_deref() {
            None => Cell::missing(),
            Some([]) => Cell::new("nothing"),
            Some(names) => Cell::new(&names.join(" ")).painted(Paint::Yellow),
        };
        let tier = Cell::new(need.tier.unwrap_or("-"));
        vec![tier, Cell::new(need.gives), Cell::new(&capabilities), missing, Cell::new(need.also)]
    });
    let columns = left(&["TIER", "GIVES", "NEEDS", "MISSING", "ALSO"]);
    Table { columns, rows: rows.collect() }
}

/// What, what is lost by it, what would change it.
fn show(finding: &Finding, terminal: &Terminal) -> String {
    let mut rows =
        vec![vec![Cell::new("finding"), Cell::new(&finding.what).painted(Paint::Yellow)]];
    let mut under = |name: &str, lines: Vec<String>| {
        for (n, line) in lines.iter().enumerate() {
            rows.push(vec![Cell::new(if n == 0 { name } else { "" }), Cell::new(line)]);
        }
    };
    if !finding.events.is_empty() {
        under("events", vec![finding.events.join(", ")]);
    }
    under("lost", finding.lost.clone());
    let ways = finding
        .change
        .iter()
        .flat_map(|change| change.how.lines().map(|line| format!("{}: {line}", change.place)));
    let ways: Vec<_> = ways.collect();
    under("change", if ways.is_empty() { vec!["not known".to_owned()] } else { ways });
    Table { columns: left(&["NAME", "TEXT"]), rows }.render_rows(terminal)
}
