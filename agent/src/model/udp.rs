//! Bound UDP sockets from read to read: drops that never go back, and who owns them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    id::{Cookie, ListenerKey, NetnsId},
    input::{Absent, Known, Sample, UdpSocket},
    model::{
        delta::{Total, moved_u32},
        snapshot::UdpListener,
    },
};

/// Keys that are remembered while nobody is bound there.
const MAX_KEYS: usize = 4_096;

/// What is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Udp {
    /// Drops of each socket when it was last seen.
    drops: BTreeMap<(NetnsId, Cookie), u32>,
    totals: BTreeMap<ListenerKey, Total>,
}

impl Udp {
    /// The sockets of a sample, by key.
    pub(super) fn show(&mut self, sample: &Sample) -> Vec<UdpListener> {
        let mut shown: BTreeMap<ListenerKey, UdpListener> = BTreeMap::new();
        let mut present = BTreeSet::new();
        for namespace in &sample.namespaces {
            let netns = namespace.netns;
            for socket in namespace.udp.iter().flat_map(|sockets| sockets.iter()) {
                present.insert((netns, socket.cookie));
                let key = ListenerKey { netns, addr: socket.addr, port: socket.port };
                let drops = self.count(key, socket);
                let entry = shown.entry(key).or_insert_with(|| UdpListener {
                    key,
                    comm: None,
                    workload: Arc::default(),
                    sockets: 0,
                    queue_bytes: 0,
                    limit_bytes: 0,
                    drops,
                });
                entry.drops = drops;
                entry.sockets += 1;
                entry.queue_bytes += u64::from(socket.queue_bytes);
                entry.limit_bytes += u64::from(socket.limit_bytes);
                let owner = sample.owners.get(&socket.inode).and_then(|pids| pids.first());
                if let Some(process) = owner.and_then(|pid| sample.processes.get(pid)) {
                    entry.comm = Some(process.comm.clone());
                    entry.workload = process.workload.clone();
                }
            }
        }
        self.drops.retain(|socket, _| present.contains(socket));
        if MAX_KEYS < self.totals.len() {
            self.totals.retain(|key, _| shown.contains_key(key));
        }
        shown.into_values().collect()
    }

    /// Adds what a socket dropped since it was last seen; all of it, when it was not seen before.
    fn count(&mut self, key: ListenerKey, socket: &UdpSocket) -> Known<u64> {
        let now: Known<u32> = socket.drops;
        let total = self.totals.entry(key).or_default();
        let Ok(now) = now else { return Err(Absent::NotOnThisKernel) };
        let before = self.drops.insert((key.netns, socket.cookie), now).unwrap_or(0);
        total.add(moved_u32(before, now));
        total.known()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::{
        id::Inode,
        input::{HostSample, NamespaceSample},
        time::{Monotonic, UnixTime},
    };

    fn socket(cookie: u64, drops: u32) -> UdpSocket {
        UdpSocket {
            cookie: Cookie(cookie),
            inode: Inode(cookie),
            addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 53,
            queue_bytes: 10,
            limit_bytes: 100,
            drops: Ok(drops),
        }
    }

    fn sample(sockets: Vec<UdpSocket>) -> Sample {
        let unknown = Err(Absent::Unreadable);
        Sample {
            at: Monotonic(1),
            unix_time: UnixTime(1),
            namespaces: vec![NamespaceSample {
                netns: NetnsId(1),
                is_new: false,
                reserved_ports: Arc::default(),
                sockets: Ok(Vec::new()),
                passive_opens: unknown,
                passive_opens_after: None,
                netstat: Err(Absent::Unreadable),
                sysctls: Arc::default(),
                connected: unknown,
                sockstat: Err(Absent::Unreadable),
                table: Err(Absent::TooEarly),
                udp: Ok(Arc::new(sockets)),
            }],
            slots: Err(Absent::NoEbpf),
            owners: Arc::default(),
            processes: BTreeMap::new(),
            threads: BTreeMap::new(),
            host: HostSample {
                open_fds: unknown,
                max_fds: unknown,
                nr_open: unknown,
                tcp_memory_bytes: unknown,
                tcp_memory_limits: Err(Absent::Unreadable),
                tcp_orphans: unknown,
            },
            degraded: BTreeMap::new(),
            durations: Vec::new(),
        }
    }

    #[test]
    fn drops_go_on_when_a_socket_is_replaced_and_wrap() {
        let mut udp = Udp::default();
        let drops = |udp: &mut Udp, sockets| udp.show(&sample(sockets))[0].drops;
        assert_eq!(Ok(u64::from(u32::MAX)), drops(&mut udp, vec![socket(1, u32::MAX)]));
        assert_eq!(Ok(u64::from(u32::MAX) + 3), drops(&mut udp, vec![socket(1, 2)]));
        let two = udp.show(&sample(vec![socket(2, 5), socket(3, 1)]));
        assert_eq!(1, two.len());
        assert_eq!((2, 20, 200), (two[0].sockets, two[0].queue_bytes, two[0].limit_bytes));
        assert_eq!(Ok(u64::from(u32::MAX) + 9), two[0].drops);
    }
}
