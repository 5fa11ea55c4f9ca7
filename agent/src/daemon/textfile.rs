//! The file for node_exporter's textfile collector.

use std::{fs, io, path::Path, time::Duration};

use crate::{
    detect::Judged,
    publish::{
        exposition::{self, Format},
        fold::Caps,
        metrics::Scrape,
    },
    shed::Watch,
};

/// How often it is written.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Writes the metrics where node_exporter's textfile collector reads them: whole, or not at all.
/// Without `process_*`, which would stand beside node_exporter's own.
pub(super) fn write(dir: &Path, newest: Judged, caps: &mut Caps, shed: &Watch) {
    let (path, unfinished) = (dir.join("backlogd.prom"), dir.join("backlogd.prom.tmp"));
    let scrape = Scrape::capped(newest, None, caps).with_shed(shed.counted());
    let written = exposition::encode(scrape, Format::Prometheus)
        .map_err(io::Error::other)
        .and_then(|bytes| fs::write(&unfinished, bytes))
        .and_then(|()| fs::rename(&unfinished, &path));
    if let Err(err) = written {
        tracing::warn!(path = %path.display(), error = %err, "textfile not written");
    }
}
