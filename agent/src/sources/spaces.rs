//! The network namespaces from pass to pass: how to get at each, what its counters showed, and whose
//! turn it is.
//!
//! In: `netns.rs`, `netstat.rs`, `sysctl.rs`, `sock_diag.rs`. Cost: a pass over all processes when one
//! has begun, on a thread of its own and at most a twentieth of a core; 0.1 ms for each namespace
//! whose counters are read. In a sample these are the namespaces whose listeners have moved, and a
//! thirtieth of the others.
//! Nothing here keeps a namespace alive: files and sockets are closed at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    background::Background,
    ebpf::maps::Activity,
    inside::Inside,
    netns::{self, Found, Way},
    netstat::{self, Counts, Fields, NET, NetstatError},
    sockstat,
    turn::{Reading, to_enter, to_read},
};
use crate::{
    id::{Cookie, NetnsId},
    input::{Absent, Known, ListenSocket, NamespaceSample, SlotRecord, Sockstat, UdpSocket},
    sys::netns::visit,
    time::{Monotonic, Nanos},
};

/// How often each is entered, at most.
const ENTER_EVERY: Nanos = Nanos(10_000_000_000);

/// And how many in one sample on average: with more than forty, each is entered more seldom.
const ENTERED_EACH_TIME: u64 = 4;

/// The same where that is the only way to see its listeners.
const DUMP_EVERY: Nanos = Nanos(1_000_000_000);

/// How often the totals of its sockets are read, at most.
const SOCKSTAT_EVERY: Nanos = Nanos(5_000_000_000);

/// A pass over all processes is followed by this many times its duration without one.
const REST: u32 = 20;

/// A pass, whether or not a process has begun since the last.
const FIND_EVERY: Nanos = Nanos(10_000_000_000);

/// One namespace.
#[derive(Debug)]
pub(super) struct Space {
    /// None: nobody knows how to get at it.
    ways: Vec<Way>,
    /// Whether it was made while the agent ran.
    is_new: bool,
    /// Counters, as last read.
    fields: Known<Arc<Fields>>,
    /// `PassiveOpens` among them.
    passive_opens: Known<u64>,
    /// Of its first sample, read after the records.
    passive_opens_after: Option<u64>,
    sysctls: Arc<BTreeMap<&'static str, i64>>,
    reserved_ports: Arc<[RangeInclusive<u16>]>,
    connected: Known<u64>,
    sockstat: Known<Sockstat>,
    sockstat_read: Option<Monotonic>,
    udp: Known<Arc<Vec<UdpSocket>>>,
    udp6_errors: Fields,
    /// Listeners that had no record when it was last entered.
    extra: Known<Vec<ListenSocket>>,
    read: Option<Monotonic>,
    /// Whether that was the first time.
    is_first: bool,
    entered: Option<Monotonic>,
    activity: u64,
}

impl Default for Space {
    fn default() -> Self {
        Self {
            ways: Vec::new(),
            is_new: true,
            fields: Err(Absent::Unreadable),
            passive_opens: Err(Absent::Unreadable),
            passive_opens_after: None,
            sysctls: Arc::default(),
            reserved_ports: Arc::default(),
            connected: Err(Absent::Unreadable),
            sockstat: Err(Absent::Unreadable),
            sockstat_read: None,
            udp: Err(Absent::TooEarly),
            udp6_errors: Fields::new(),
            extra: Ok(Vec::new()),
            read: None,
            is_first: false,
            entered: None,
            activity: 0,
        }
    }
}

/// All namespaces but the agent's own, which is read in each sample by files that stay open.
#[derive(Debug)]
pub(super) struct Spaces {
    spaces: BTreeMap<NetnsId, Space>,
    finding: Background<io::Result<Found>>,
    rest_until: Monotonic,
    found: Option<Monotonic>,
    /// The newest process, and the newest name, when the last pass began.
    newest: (Option<u32>, Vec<SystemTime>),
    /// Whether a namespace has lost its ways.
    is_astray: bool,
    /// Processes that the last pass could not look into.
    unreadable: u64,
}

impl Default for Spaces {
    fn default() -> Self {
        Self {
            spaces: BTreeMap::new(),
            finding: Background::new("namespaces"),
            rest_until: Monotonic::default(),
            found: None,
            newest: (None, Vec::new()),
            is_astray: false,
            unreadable: 0,
        }
    }
}

impl Spaces {
    /// Finds all namespaces, and waits for it: at the start.
    pub(super) fn find_now(&mut self, own: NetnsId, at: Monotonic) -> io::Result<()> {
        self.newest = newest();
        self.take(netns::find()?, own, at);
        Ok(())
    }

    /// Brings the list of namespaces up to date.
    pub(super) fn update(
        &mut self,
        own: NetnsId,
        at: Monotonic,
        active: &BTreeMap<NetnsId, Activity>,
    ) {
        self.finish_finding(own, at);
        for (&netns, activity) in active.iter().filter(|(netns, _)| **netns != own) {
            let space = self.spaces.entry(netns).or_default();
            if space.ways.is_empty() {
                let way = activity.pid.and_then(|pid| netns::by_process(netns, pid));
                self.is_astray |= way.is_none();
                space.ways.extend(way);
            }
        }
        let last = self.found.unwrap_or_default();
        let is_due = || FIND_EVERY <= at - last || self.is_astray || newest() != self.newest;
        if !self.finding.is_busy() && self.rest_until <= at && is_due() {
            self.start_finding();
        }
        self.spaces.retain(|netns, space| !space.ways.is_empty() || active.contains_key(netns));
    }

    /// A way into one of them.
    pub(super) fn way(&self, netns: NetnsId) -> Option<Way> {
        self.spaces.get(&netns)?.ways.first().cloned()
    }

    fn iter(&self) -> impl Iterator<Item = (NetnsId, &Space)> {
        self.spaces.iter().map(|(netns, space)| (*netns, space))
    }

    /// Processes whose namespace the last pass could not tell.
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Reads the counters of those whose turn it is.
    pub(super) fn read(&mut self, at: Monotonic, active: &BTreeMap<NetnsId, Activity>) {
        for netns in self.due(at, active) {
            let Some(space) = self.spaces.get_mut(&netns) else { continue };
            space.activity = active.get(&netns).map_or(0, |activity| activity.sum);
            space.is_first = space.read.is_none();
            space.read = Some(at);
            if let Err(err) = space.read_counters(at) {
                tracing::debug!(%netns, error = %err, "counters not read");
                self.is_astray |= space.lose_ways(netns);
            }
        }
    }

    /// After the records were read: once more for those that were read for the first time.
    pub(super) fn read_again(&mut self, at: Monotonic) {
        for space in self.spaces.values_mut() {
            space.passive_opens_after = None;
            if space.read == Some(at) && space.is_first {
                let folder = space.ways.iter().find_map(Way::counters);
                let read = folder.and_then(|folder| netstat::read(&folder).ok());
                space.passive_opens_after =
                    read.and_then(|counts| counts.fields.get("PassiveOpens").copied());
            }
        }
    }

    /// Whose counters are to be read.
    fn due(&self, at: Monotonic, active: &BTreeMap<NetnsId, Activity>) -> Vec<NetnsId> {
        let has_moved = |netns: NetnsId, space: &Space| {
            active.get(&netns).is_some_and(|activity| activity.sum != space.activity)
        };
        let reachable = self.iter().filter(|(_, space)| !space.ways.is_empty());
        let reading = |(netns, space): (NetnsId, &Space)| Reading {
            read: space.read,
            has_moved: has_moved(netns, space),
            has_failed: space.fields.is_err(),
            netns,
        };
        let mut all = Vec::with_capacity(self.spaces.len());
        all.extend(reachable.map(reading));
        to_read(at, all)
    }

    /// Those whose turn it is to be entered, and the way to do so; `all` of them at the start. Where
    /// no sweep sees their listeners, the turn comes more often.
    pub(super) fn enter_next(
        &mut self,
        at: Monotonic,
        swept: bool,
        all: bool,
    ) -> Vec<(NetnsId, Way)> {
        let turns = (self.spaces.len() as u64).div_ceil(ENTERED_EACH_TIME);
        let every = if swept { ENTER_EVERY.max(Nanos(turns * 1_000_000_000)) } else { DUMP_EVERY };
        let is_due = |space: &Space| space.entered.is_none_or(|then| every <= at - then);
        let due = self.spaces.iter().filter(|(_, space)| is_due(space));
        let due = due.filter_map(|(netns, space)| {
            Some((space.entered, *netns, space.ways.first()?.clone()))
        });
        to_enter(due.collect(), all)
    }

    /// Takes in what was found inside.
    pub(super) fn entered(&mut self, netns: NetnsId, at: Monotonic, inside: Inside) {
        if let Some(space) = self.spaces.get_mut(&netns) {
            space.entered = Some(at);
            space.sysctls = inside.sysctls.into();
            space.reserved_ports = inside.reserved_ports;
            space.extra = inside.extra;
            space.udp = inside.udp;
            space.udp6_errors = inside.udp6_errors;
        }
    }

    /// It could not be entered: perhaps it is gone.
    pub(super) fn lost(&mut self, netns: NetnsId, at: Monotonic) {
        if let Some(space) = self.spaces.get_mut(&netns) {
            space.entered = Some(at);
            self.is_astray |= space.lose_ways(netns);
        }
    }

    /// All of them, with the listeners of `records` where the sweep saw them.
    pub(super) fn samples(
        &mut self,
        records: &[SlotRecord],
        swept: bool,
    ) -> impl Iterator<Item = NamespaceSample> {
        let mut sockets: BTreeMap<NetnsId, Vec<ListenSocket>> = BTreeMap::new();
        for record in records.iter().filter(|_| swept) {
            sockets.entry(record.netns).or_default().extend(record.live);
        }
        let followed: BTreeSet<Cookie> = records.iter().map(|record| record.cookie).collect();
        let adopted = records.iter().filter(|record| record.adopted);
        let adopted: BTreeSet<NetnsId> = adopted.map(|record| record.netns).collect();
        self.spaces.iter_mut().map(move |(&netns, space)| {
            let swept = sockets.remove(&netns).unwrap_or_default();
            space.sample(netns, swept, &followed, adopted.contains(&netns))
        })
    }

    fn start_finding(&mut self) {
        self.newest = newest();
        self.is_astray = false;
        self.finding.start(netns::find);
    }

    fn finish_finding(&mut self, own: NetnsId, at: Monotonic) {
        let Some(found) = self.finding.finish(Duration::ZERO) else { return };
        self.rest_until = at + Nanos::from(found.took.saturating_mul(REST));
        match found.value {
            Ok(found) => self.take(found, own, at),
            Err(err) => tracing::debug!(error = %err, "namespaces not found"),
        }
    }

    fn take(&mut self, mut found: Found, own: NetnsId, at: Monotonic) {
        self.unreadable = found.unreadable;
        found.ways.remove(&own);
        for (netns, space) in &mut self.spaces {
            space.ways = found.ways.remove(netns).unwrap_or_default();
        }
        let new = found.ways.into_iter();
        let is_new = self.found.is_some();
        let space = |ways| Space { ways, is_new, ..Space::default() };
        self.spaces.extend(new.map(|(netns, ways)| (netns, space(ways))));
        self.found = Some(at);
    }
}

impl Space {
    fn sample(
        &mut self,
        netns: NetnsId,
        mut swept: Vec<ListenSocket>,
        followed: &BTreeSet<Cookie>,
        adopted: bool,
    ) -> NamespaceSample {
        if let Ok(extra) = &mut self.extra
            && !swept.is_empty()
        {
            // what has a record by now is shown by that
            extra.retain(|socket| !followed.contains(&socket.cookie));
        }
        // who listened before the agent did so in a namespace that nobody could see
        self.is_new &= !adopted;
        let sockets = match &self.extra {
            Ok(extra) => {
                swept.extend(extra);
                Ok(swept)
            }
            Err(_) if !swept.is_empty() => Ok(swept),
            Err(absent) => Err(*absent),
        };
        NamespaceSample {
            netns,
            is_new: self.is_new,
            sockets,
            passive_opens: self.passive_opens,
            passive_opens_after: self.passive_opens_after,
            netstat: self.fields.clone(),
            sysctls: self.sysctls.clone(),
            reserved_ports: self.reserved_ports.clone(),
            connected: self.connected,
            sockstat: self.sockstat,
            table: Err(Absent::TooEarly),
            udp: self.udp.clone(),
        }
    }

    fn read_counters(&mut self, at: Monotonic) -> Result<(), NetstatError> {
        // a namespace that was empty may no longer be
        let was_empty = self.sockstat.is_ok_and(|stat| stat.time_wait == 0);
        let more = was_empty || self.sockstat_read.is_none_or(|then| SOCKSTAT_EVERY <= at - then);
        let by_process = self.ways.iter().filter_map(Way::counters);
        let (counts, sockstat) = by_process
            .map(|folder| read_folder(&folder, more))
            .find(|(counts, _)| counts.is_ok())
            .unwrap_or_else(|| self.read_inside(more));
        if let Some(sockstat) = sockstat {
            (self.sockstat, self.sockstat_read) = (sockstat, Some(at));
        }
        let mut counts = match counts {
            Ok(counts) => counts,
            Err(err) => {
                (self.sockstat, self.sockstat_read) = (UNREADABLE, None);
                (self.fields, self.passive_opens, self.connected) =
                    (Err(Absent::Unreadable), Err(Absent::Unreadable), Err(Absent::Unreadable));
                return Err(err);
            }
        };
        self.connected = counts.established.ok_or(Absent::NotOnThisKernel);
        let passive_opens = counts.fields.get("PassiveOpens").copied();
        self.passive_opens = passive_opens.ok_or(Absent::NotOnThisKernel);
        counts.fields.extend(&self.udp6_errors);
        self.fields = Ok(counts.fields.into());
        Ok(())
    }

    /// Where no process is in the namespace, but a name keeps it.
    fn read_inside(&self, more: bool) -> Read {
        let failed = |source| (Err(NetstatError::Read { file: "net", source }), Some(UNREADABLE));
        let read = || read_folder(Path::new(NET), more);
        let mut names = self.ways.iter().filter(|way| way.counters().is_none());
        names
            .find_map(|way| visit(&way.file(), |_| read()).ok())
            .unwrap_or_else(|| failed(io::ErrorKind::NotFound.into()))
    }

    /// Forgets the ways that lead elsewhere; whether none is left.
    fn lose_ways(&mut self, netns: NetnsId) -> bool {
        self.ways.retain(|way| way.leads_to(netns));
        self.ways.is_empty()
    }
}

const UNREADABLE: Known<Sockstat> = Err(Absent::Unreadable);

/// What a read of counters gave; the totals of sockets are not read each time.
type Read = (Result<Counts, NetstatError>, Option<Known<Sockstat>>);

fn read_folder(folder: &Path, more: bool) -> Read {
    (netstat::read(folder), more.then(|| sockstat::read(folder).or(UNREADABLE)))
}

/// The last process id that was given out, and when the folders of names were changed: whether a process
/// has begun since, or a namespace got a name.
fn newest() -> (Option<u32>, Vec<SystemTime>) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let pid = load.split_whitespace().next_back().and_then(|pid| pid.parse().ok());
    let changed = |folder: &str| fs::metadata(folder).and_then(|it| it.modified()).ok();
    (pid, netns::FOLDERS.into_iter().filter_map(changed).collect())
}
